"""Writes tests/vectors/own/*.jsonl: {name, why, input_hex, verdict, output_hex}, one line a frame.

    python tests/vectors/make_own.py

Nothing here asks the packet path. scapy makes the frames received and the ICMP answers, glb.table.explain chooses the
hops and the UDP port, glb.wire.gue writes the tunnel packet; the verdicts are those of docs/protocol/binds.md. The test
of the same name checks that the files are what this writes, and every engine reads them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_NOP, IPOption_Timestamp
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoReply,
    ICMPv6EchoRequest,
    ICMPv6ND_NS,
    ICMPv6PacketTooBig,
    ICMPv6ParamProblem,
    ICMPv6TimeExceeded,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
)
from scapy.layers.l2 import ARP, GRE, Dot1AD, Dot1Q, Ether
from scapy.packet import Packet, Raw

from glb.table.config import parse_tables
from glb.table.explain import HASH_FIELDS, Flow, explain_flow
from glb.wire import gue

OWN = Path(__file__).parent / "own"
VIP, VIP6, CLIENT, CLIENT6 = "203.0.113.10", "2001:db8::10", "198.51.100.7", "2001:db8:1::7"
SOURCE = "192.0.2.1"
GATEWAY_MAC, SOURCE_MAC, CLIENT_MAC, RECEIVED_MAC = (f"02:00:00:00:00:{n:02x}" for n in (0xFE, 1, 2, 3))
MTU_BYTES = 1500
OVERHEAD = 40  # two hops
TABLES = {
    "tables": [
        {
            "name": "web",
            "hash_key": "000102030405060708090a0b0c0d0e0f",
            "seed": "0f0e0d0c0b0a09080706050403020100",
            "binds": [{"ip": ip, "proto": proto, "port": 80} for ip in (VIP, VIP6) for proto in ("tcp", "udp")],
            "backends": [{"ip": f"10.0.0.{n}", "state": "active", "healthy": True} for n in (1, 2, 3)],
        }
    ]
}
BY_ADDRESS = ("plain", "options", "extensions", "fragments", "errors", "lengths", "tags", "too_big")
# What each file is forwarded by: the fields that are hashed.
HASHED = {**dict.fromkeys(BY_ADDRESS, ("src_addr",)), "fragments_by_port": ("src_addr", "src_port")}


@dataclass(frozen=True)
class Vector:
    name: str
    why: str
    frame: bytes
    verdict: str
    flow: Flow | None = None  # forward: what is hashed
    hint: int = 0  # forward, of packets without ports
    answer: bool = False  # too_big


def ethernet(*tags: Packet, **fields: str) -> Packet:
    frame = Ether(**({"src": CLIENT_MAC, "dst": RECEIVED_MAC} | fields))
    for tag in tags:
        frame /= tag
    return frame


def ipv4(**fields: object) -> Packet:
    return IP(**({"src": CLIENT, "dst": VIP} | fields))


def ipv6(**fields: object) -> Packet:
    return IPv6(**({"src": CLIENT6, "dst": VIP6} | fields))


TCP80, UDP80 = TCP(sport=1234, dport=80), UDP(sport=1234, dport=80)


def flow(version: int = 4, proto: int = 6, source_port: int = 1234) -> Flow:
    source, destination = (CLIENT, VIP) if version == 4 else (CLIENT6, VIP6)
    return Flow(ip_address(source), ip_address(destination), proto, source_port, 80)


def forward(name: str, why: str, packet: Packet, hashed: Flow, *, padding: int = 0, hint: int = 0) -> Vector:
    frame = packet if Ether in packet else ethernet() / packet
    return Vector(name, why, bytes(frame) + bytes(padding), "forward", hashed, hint)


def ends(name: str, why: str, packet: Packet | bytes, verdict: str) -> Vector:
    """Neither forwarded nor answered."""
    frame = packet if isinstance(packet, bytes) else bytes(packet if Ether in packet else ethernet() / packet)
    return Vector(name, why, frame, verdict)


def edited(packet: Packet, at: int, new: bytes) -> bytes:
    """The frame of a packet, with bytes from `at` on (of the IP packet) replaced."""
    frame = bytearray(bytes(ethernet() / packet))
    frame[14 + at : 14 + at + len(new)] = new
    return bytes(frame)


def plain() -> Iterator[Vector]:
    yield forward("ipv4-tcp-forwards", "a bind has the port", ipv4() / TCP80, flow())
    yield forward("ipv4-udp-forwards", "a bind has the port", ipv4() / UDP80, flow(proto=17))
    yield forward("ipv6-tcp-forwards", "a bind has the port", ipv6() / TCP80, flow(6))
    yield forward("ipv6-udp-forwards", "a bind has the port", ipv6() / UDP80, flow(6, 17))
    yield forward("padding-is-sent-along", "it is not part of the packet", ipv4() / UDP80, flow(proto=17), padding=18)
    yield ends("other-port-host", "no bind has it", ipv4() / TCP(dport=81), "host")
    yield ends("other-address-host", "no bind has it", ipv4(dst="203.0.113.11") / TCP80, "host")
    yield ends("other-protocol-host", "binds are of TCP and UDP", ipv4() / GRE(), "host")
    yield ends(
        "ipv4-mapped-address-host", "an IPv6 packet to it is not ours", ipv6(dst=f"::ffff:{VIP}") / TCP80, "host"
    )
    yield ends("arp-host", "not IP", ethernet() / ARP(), "host")


def options() -> Iterator[Vector]:
    why = "ports are read behind the options"
    for n in (1, 4, 40):
        yield forward(f"{n}-bytes-of-options-forward", why, ipv4(options=[IPOption_NOP()] * n) / TCP80, flow())
    yield forward("timestamp-option-forwards", why, ipv4(options=[IPOption_Timestamp()]) / UDP80, flow(proto=17))
    yield ends("options-other-port-host", why, ipv4(options=[IPOption_NOP()] * 4) / TCP(sport=80, dport=81), "host")
    yield ends("header-of-16-bytes-malformed", "20 is the least", edited(ipv4() / TCP80, 0, b"\x44"), "malformed")
    yield ends("header-past-the-packet-malformed", "60 bytes of 40", edited(ipv4() / TCP80, 0, b"\x4f"), "malformed")
    yield ends("version-5-malformed", "the Ethernet type says IPv4", edited(ipv4() / TCP80, 0, b"\x55"), "malformed")
    frame = bytes(ethernet() / ipv4(options=[IPOption_NOP()] * 8) / TCP80)
    yield ends("cut-in-the-options-truncated", "the length field says more", frame[:38], "truncated")


def extensions() -> Iterator[Vector]:
    why = "ports are read behind the extension headers"
    hop, destination, routing = IPv6ExtHdrHopByHop(), IPv6ExtHdrDestOpt(), IPv6ExtHdrRouting()
    for name, headers in (
        ("hop-by-hop", hop),
        ("destination-options", destination),
        ("routing", routing),
        ("routing-with-an-address", IPv6ExtHdrRouting(addresses=["2001:db8::99"], segleft=0)),
        ("all-of-them", hop / destination / routing / destination),
    ):
        yield forward(f"{name}-forwards", why, ipv6() / headers / TCP80, flow(6))
    chain = hop
    for _ in range(7):
        chain = chain / IPv6ExtHdrDestOpt()
    yield forward("8-headers-forward", "that many are walked", ipv6() / chain / TCP80, flow(6))
    yield ends("9-headers-malformed", "no honest sender", ipv6() / chain / IPv6ExtHdrDestOpt() / TCP80, "malformed")
    yield ends("other-port-behind-a-header-host", why, ipv6() / hop / TCP(dport=81), "host")
    yield ends("esp-host", "its ports are encrypted", ipv6(nh=50) / Raw(bytes(16)), "host")
    yield ends("no-next-header-host", "it has no ports", ipv6(nh=59), "host")
    yield ends("version-4-malformed", "the Ethernet type says IPv6", edited(ipv6() / TCP80, 0, b"\x40"), "malformed")
    long = edited(ipv6() / destination / TCP80, 41, b"\x20")
    yield ends("header-past-the-packet-truncated", "264 bytes of 28", long, "truncated")


def fragments(by_port: bool = False) -> Iterator[Vector]:
    why = "first fragments have ports"
    yield forward("ipv4-first-forwards", why, ipv4(flags="MF", id=9) / UDP80 / Raw(bytes(24)), flow(proto=17))
    first6 = ipv6() / IPv6ExtHdrFragment(m=1, id=9) / UDP80 / Raw(bytes(24))
    yield forward("ipv6-first-forwards", why, first6, flow(6, 17))
    yield forward("ipv6-atomic-forwards", "offset 0, no more", ipv6() / IPv6ExtHdrFragment() / TCP80, flow(6))
    later = {
        f"ipv{version}-later-{name}": (packet / Raw(bytes(32)), flow(version, proto, 0))
        for name, proto in (("tcp", 6), ("udp", 17))
        for version, packet in (
            (4, ipv4(frag=4, id=9, proto=proto)),
            (6, ipv6() / IPv6ExtHdrFragment(nh=proto, offset=4, id=9)),
        )
    }
    for name, (packet, hashed) in later.items():
        if by_port:
            yield ends(f"{name}-fragment", "its row depends on ports that it does not have", packet, "fragment")
        else:
            yield forward(f"{name}-forwards", "its row is that of the first fragment", packet, hashed)
    yield ends("later-of-gre-host", "no bind can be for it", ipv4(frag=4, proto=47) / Raw(bytes(32)), "host")
    if not by_port:
        piece = ipv4(frag=4, id=9, proto=1) / Raw(bytes(32))
        yield forward("ipv4-later-icmp-forwards", "as an echo request", piece, flow(proto=1, source_port=0), hint=9)


def errors() -> Iterator[Vector]:
    quoted = {
        4: IP(src=VIP, dst=CLIENT) / TCP(sport=80, dport=1234),
        6: IPv6(src=VIP6, dst=CLIENT6) / UDP(sport=80, dport=1234),
    }
    router, router6 = {"src": "192.0.2.99"}, {"src": "2001:db8:99::1"}
    why = "it reaches the proxy that the quoted flow's packets reach"
    for kind, code in ((3, 0), (3, 1), (3, 3), (3, 4), (3, 13), (11, 0), (12, 0)):
        packet = ipv4(**router) / ICMP(type=kind, code=code) / quoted[4]
        yield forward(f"icmp-{kind}-{code}-follows-its-flow", why, packet, flow())
    for kind6, message in enumerate(
        (ICMPv6DestUnreach(), ICMPv6PacketTooBig(mtu=1400), ICMPv6TimeExceeded(), ICMPv6ParamProblem()), 1
    ):
        yield forward(f"icmpv6-{kind6}-follows-its-flow", why, ipv6(**router6) / message / quoted[6], flow(6, 17))
    unreachable = ipv4(**router) / ICMP(type=3, code=1)
    option = IP(src=VIP, dst=CLIENT, options=[IPOption_NOP()] * 4) / TCP(sport=80, dport=1234)
    yield forward("quote-with-options-follows-its-flow", why, unreachable / option, flow())
    eight = bytes(ethernet() / unreachable / quoted[4])[: 14 + 28 + 28]
    eight = eight[:16] + (56).to_bytes(2, "big") + eight[18:]
    yield Vector("quote-of-8-bytes-follows-its-flow", "RFC 792 asks for no more", eight, "forward", flow())
    yield ends("quoted-strangers-host", "none of ours", unreachable / IP(src="192.0.2.5") / TCP(sport=80), "host")
    yield ends("quoted-other-port-host", "no bind has it", unreachable / IP(src=VIP) / TCP(sport=81), "host")
    yield ends(
        "quoted-later-fragment-host", "no ports", unreachable / IP(src=VIP, frag=3, proto=6) / TCP(sport=80), "host"
    )
    yield ends("quoted-icmp-host", "no ports", unreachable / IP(src=VIP) / ICMP(), "host")
    yield ends(
        "quote-cut-in-its-header-truncated",
        "20 bytes are the least",
        unreachable / Raw(bytes(quoted[4])[:19]),
        "truncated",
    )
    yield ends(
        "quote-cut-in-its-ports-truncated", "no flow to follow", unreachable / Raw(bytes(quoted[4])[:23]), "truncated"
    )
    yield ends("quote-of-version-6-malformed", "in ICMP of IPv4", unreachable / Raw(b"\x60" + bytes(40)), "malformed")
    echo = ipv4(id=0x1234) / ICMP(id=5, seq=6) / Raw(b"ping")
    yield forward("echo-request-forwards", "by its addresses", echo, flow(proto=1, source_port=0), hint=0x1234)
    echo6 = ipv6(fl=0xABCDE) / ICMPv6EchoRequest(data=b"ping")
    yield forward("icmpv6-echo-request-forwards", "by its addresses", echo6, flow(6, 58, 0), hint=0xBCDE)
    yield ends("echo-reply-host", "nobody of ours asked", ipv4() / ICMP(type=0), "host")
    yield ends("icmpv6-echo-reply-host", "nobody of ours asked", ipv6() / ICMPv6EchoReply(), "host")
    yield ends("echo-of-another-code-host", "no echo request", ipv4() / ICMP(type=8, code=1), "host")
    yield ends(
        "redirect-host", "it quotes a flow, but is none of the errors", ipv4() / ICMP(type=5) / quoted[4], "host"
    )
    yield ends("neighbour-solicitation-host", "the host's stack answers it", ipv6() / ICMPv6ND_NS(tgt=VIP6), "host")


def lengths() -> Iterator[Vector]:
    whole = bytes(ethernet() / ipv4() / TCP80)
    yield ends(
        "length-past-the-frame-truncated",
        "never sent longer than received",
        edited(ipv4() / TCP80, 2, b"\x00\x29"),
        "truncated",
    )
    yield ends(
        "length-below-the-header-malformed",
        "it contradicts itself",
        edited(ipv4() / TCP80, 2, b"\x00\x13"),
        "malformed",
    )
    yield ends("ipv6-length-past-the-frame-truncated", "the same", edited(ipv6() / TCP80, 4, b"\x00\x15"), "truncated")
    yield ends("ports-cut-off-truncated", "3 bytes of 4", edited(ipv4() / TCP80, 2, b"\x00\x17"), "truncated")
    yield ends("ipv6-ports-cut-off-truncated", "3 bytes of 4", edited(ipv6() / TCP80, 4, b"\x00\x03"), "truncated")
    yield ends("frame-cut-in-the-ports-truncated", "the length field says more", whole[:37], "truncated")
    yield ends("frame-cut-in-the-header-host", "its destination is not known", whole[:33], "host")
    short = edited(ipv4() / TCP80, 2, b"\x00\x18")
    yield Vector("four-bytes-of-ports-forward", "no more is read", short, "forward", flow())


def tags() -> Iterator[Vector]:
    why = "tags are looked past, and kept"
    one, two, service = Dot1Q(vlan=100, prio=5), Dot1Q(vlan=7), Dot1AD(vlan=9)
    for name, chosen in (
        ("one", (one,)),
        ("priority-only", (Dot1Q(vlan=0, prio=7),)),
        ("service", (service,)),
        ("service-and-customer", (service, one)),
        ("two-of-a-kind", (one, two)),
    ):
        yield forward(f"{name}-ipv4-forwards", why, ethernet(*chosen) / ipv4() / TCP80, flow())
        yield forward(f"{name}-ipv6-forwards", why, ethernet(*chosen) / ipv6() / UDP80, flow(6, 17))
    yield ends("three-host", "no more than two are looked past", ethernet(one, two, one) / ipv4() / TCP80, "host")
    yield ends("arp-host", "not IP", ethernet(one) / ARP(), "host")
    yield ends("other-port-host", "no bind has it", ethernet(one) / ipv4() / TCP(dport=81), "host")
    frame = bytes(ethernet(one) / ipv4() / TCP80)
    yield ends("other-kind-host", "0x9100 is no standard's", frame[:12] + b"\x91\x00" + frame[14:], "host")
    yield ends("cut-in-the-tag-host", "its type is not known", frame[:17], "host")
    yield ends("cut-behind-the-ip-header-truncated", "the length field says more", frame[:40], "truncated")


def too_big() -> Iterator[Vector]:
    most = MTU_BYTES - OVERHEAD

    def filled(packet: Packet, size: int = most + 1) -> Packet:
        return packet / Raw((bytes(range(256)) * 6)[: size - len(packet)])

    def answered(name: str, why: str, packet: Packet, *tag: Packet) -> Vector:
        return Vector(name, why, bytes(ethernet(*tag) / packet), "too_big", answer=True)

    yield forward("ipv4-that-just-fits-forwards", "1,500 with the front", filled(ipv4() / TCP80, most), flow())
    yield forward("ipv6-that-just-fits-forwards", "1,500 with the front", filled(ipv6() / UDP80, most), flow(6, 17))
    yield answered("ipv4-is-answered", "type 3, code 4, 576 bytes", filled(ipv4(flags="DF") / TCP80))
    yield answered("ipv4-that-allows-fragments-is-answered", "a director makes none", filled(ipv4() / UDP80))
    yield answered(
        "ipv4-with-options-is-answered", "they are quoted", filled(ipv4(options=[IPOption_NOP()] * 8) / TCP80)
    )
    yield answered("ipv6-is-answered", "type 2, 1,280 bytes", filled(ipv6() / TCP80))
    yield answered("ipv6-with-a-header-is-answered", "it is quoted", filled(ipv6() / IPv6ExtHdrDestOpt() / UDP80))
    yield answered("first-fragment-is-answered", "it names the flow", filled(ipv4(flags="MF", id=9) / UDP80))
    yield answered("echo-request-is-answered", "no error", filled(ipv4(id=3) / ICMP()))
    yield answered(
        "tagged-is-answered-with-its-tag", "or it would not arrive", filled(ipv4() / TCP80), Dot1Q(vlan=100, prio=5)
    )
    rfc = "RFC 1812 section 4.3.2.7, RFC 4443 section 2.4 (e)"
    yield ends("later-fragment-is-not-answered", rfc, filled(ipv4(frag=9, proto=17)), "too_big")
    yield ends(
        "ipv6-later-fragment-is-not-answered", rfc, filled(ipv6() / IPv6ExtHdrFragment(nh=17, offset=9)), "too_big"
    )
    error = ipv4() / ICMP(type=3, code=1) / IP(src=VIP, dst=CLIENT) / TCP(sport=80)
    yield ends("icmp-error-is-not-answered", rfc, filled(error), "too_big")
    for source in ("0.0.0.0", "127.0.0.1", "224.0.0.5", "255.255.255.255"):
        yield ends(f"from-{source}-is-not-answered", rfc, filled(ipv4(src=source) / TCP80), "too_big")
    for source, name in (("::", "unspecified"), ("ff02::1", "multicast")):
        yield ends(f"ipv6-from-{name}-is-not-answered", rfc, filled(ipv6(src=source) / TCP80), "too_big")
    broadcast = ethernet(dst="ff:ff:ff:ff:ff:ff") / filled(ipv4() / TCP80)
    yield ends("broadcast-frame-is-not-answered", rfc, broadcast, "too_big")


MAKERS = {
    "plain": plain,
    "options": options,
    "extensions": extensions,
    "fragments": fragments,
    "fragments_by_port": lambda: fragments(by_port=True),
    "errors": errors,
    "lengths": lengths,
    "tags": tags,
    "too_big": too_big,
}


def output_of(vector: Vector, hash_fields: tuple[str, ...]) -> bytes | None:
    """The frame that is sent."""
    link = 12
    while vector.frame[link : link + 2] in (b"\x81\x00", b"\x88\xa8"):
        link += 4
    tags, packet = vector.frame[12:link], vector.frame[link + 2 :]
    if vector.flow is not None:
        explained = explain_flow(parse_tables(json.dumps(TABLES), source="own"), vector.flow, hash_fields=hash_fields)
        assert explained is not None
        port = explained.source_port
        if port is None:
            port = gue.SOURCE_PORT_BASE | ((explained.choice.hash ^ vector.hint) & 0x7FFF)
        n_bytes = int.from_bytes(packet[2:4], "big") if packet[0] >> 4 == 4 else 40 + int.from_bytes(packet[4:6], "big")
        hops = [str(hop.address) for hop in explained.hops]
        tunnel = gue.encapsulate(packet[:n_bytes], SOURCE, hops, source_port=port) + packet[n_bytes:]
        macs = bytes.fromhex((GATEWAY_MAC + SOURCE_MAC).replace(":", ""))
        return macs + tags + gue.ETH_P_IP.to_bytes(2, "big") + tunnel
    if vector.answer:
        room = MTU_BYTES - OVERHEAD
        if packet[0] >> 4 == 4:
            received = IP(packet)
            ip = IP(src=received.dst, dst=received.src, tos=0xC0, id=0, flags="DF", ttl=64)
            made = ip / ICMP(type=3, code=4, nexthopmtu=room) / Raw(packet[: 576 - 28])
        else:
            received = IPv6(packet)
            made = IPv6(src=received.dst, dst=received.src, hlim=64)
            made = made / ICMPv6PacketTooBig(mtu=room) / Raw(packet[: 1280 - 48])
        return vector.frame[6:12] + vector.frame[:6] + vector.frame[12 : link + 2] + bytes(made)
    return None


def lines(name: str) -> str:
    """The content of one file."""
    records = []
    for vector in MAKERS[name]():
        output = output_of(vector, HASHED[name])
        records.append(
            {
                "name": vector.name,
                "why": vector.why,
                "input_hex": vector.frame.hex(),
                "verdict": vector.verdict,
                "output_hex": output.hex() if output is not None else None,
            }
        )
    assert len({record["name"] for record in records}) == len(records)
    assert all(field in HASH_FIELDS for field in HASHED[name])
    return "".join(json.dumps(record) + "\n" for record in records)


def main() -> None:
    OWN.mkdir(exist_ok=True)
    for name in MAKERS:
        (OWN / f"{name}.jsonl").write_text(lines(name))


if __name__ == "__main__":
    main()
