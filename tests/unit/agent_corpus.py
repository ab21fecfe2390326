"""The corpus of the second chance: tunnel packets x socket situations x hop lists, with the verdict on each. Pure data.

What is expected follows from three small tables by the rules of docs/protocol/gue.md, "Accept or bounce"; neither
engine is asked. Readers: the engines with real sockets (tests/netns/test_agent_verdicts.py), the fuzzer.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from ipaddress import IPv4Address
from typing import NamedTuple

import agent_packets as p
from agent_packets import ACK, FIN, RST, SYN

from glb.wire.gue import encapsulate

PSH = 0x08
PORT = 19523
OWN = (p.ME, "127.0.0.1")


class Situation(NamedTuple):
    """What the proxy has for the flow that a packet is of."""

    state: str  # what the kernel's socket table says: a key of _verdict.STATES
    port: int  # the VIP's
    families: tuple[int, ...] = (4, 6)


# A flow's port on the client's side says which situation it is in; see `client_port`.
SITUATIONS: dict[str, Situation] = {
    "none": Situation("none", 81),
    "listener": Situation("listen", 80),
    "listener-of-the-vip": Situation("listen", 82),
    "listener-of-the-interface": Situation("listen", 83),
    "syn-recv": Situation("syn_recv", 80),
    "established": Situation("established", 80),
    "established-at-the-vip": Situation("established", 82),
    "established-dual-stack": Situation("established", 84, (4,)),
    "fin-wait-1": Situation("fin_wait1", 80),
    "fin-wait-2": Situation("fin_wait2", 80),
    "close-wait": Situation("close_wait", 80),
    "closing": Situation("closing", 80),
    "last-ack": Situation("last_ack", 80),
    "time-wait": Situation("time_wait", 80),
    "syn-cookie": Situation("listen", 85),
}


def client_port(situation: str) -> int:
    return 5000 + list(SITUATIONS).index(situation)


class Numbers(NamedTuple):
    """Sequence numbers of the client's next segment."""

    seq: int = 1000
    ack: int = 2000


def _segment(flags: int, payload: bytes = b"") -> Callable[[int, int, int, Numbers], bytes]:
    def build(family: int, port: int, source_port: int, numbers: Numbers) -> bytes:
        segment = p.tcp(flags, seq=numbers.seq, ack=numbers.ack, source_port=source_port, port=port) + payload
        return p.ip(*p.addresses(family), 6, segment)

    return build


def _error(kinds: dict[int, int]) -> Callable[[int, int, int, Numbers], bytes]:
    """An ICMP error (type by family) about a segment of the flow that went to the client."""

    def build(family: int, port: int, source_port: int, numbers: Numbers) -> bytes:
        quoted = p.quoted(family, 6, struct.pack(">HHI", port, source_port, numbers.ack))
        return p.icmp(family, kinds[family], quoted)

    return build


def _datagram(family: int, port: int, source_port: int, _: Numbers) -> bytes:
    return p.ip(*p.addresses(family), 17, struct.pack(">HHHH", source_port, port, 8, 0))


def _echo(family: int, port: int, source_port: int, _: Numbers) -> bytes:
    return p.icmp(family, 8 if family == 4 else 128, struct.pack(">HH", source_port, port))


def _later_fragment(family: int, port: int, source_port: int, _: Numbers) -> bytes:
    rest = p.tcp(ACK, source_port=source_port, port=port)
    return p.ip(*p.addresses(4), 6, rest, offset=0x0010) if family == 4 else p.ipv6_fragment(128, False, rest)


class Kind(NamedTuple):
    """A kind of inner packet."""

    build: Callable[[int, int, int, Numbers], bytes]  # family, the VIP's port, the client's port, numbers
    always: str | None  # reason that does not depend on sockets
    known: str = "established"  # reason where the flow has a socket
    whole: bool = True  # False: IPv4 is put together before the INPUT hook, so it gets there only with the rest


KINDS: dict[str, Kind] = {
    "syn": Kind(_segment(SYN), "syn"),
    "syn-ack": Kind(_segment(SYN | ACK), "syn"),
    "ack": Kind(_segment(ACK), None),
    "data": Kind(_segment(ACK | PSH, b"GET / HTTP/1.1\r\n\r\n"), None),
    "fin": Kind(_segment(FIN | ACK), None),
    "rst": Kind(_segment(RST), None),
    "rst-ack": Kind(_segment(RST | ACK), None),
    "no-flags": Kind(_segment(0), None),
    "too-big": Kind(_error({4: 3, 6: 2}), None, "icmp_error"),  # IPv4: of any code
    "unreachable": Kind(_error({4: 3, 6: 1}), None, "icmp_error"),
    "time-exceeded": Kind(_error({4: 11, 6: 3}), None, "icmp_error"),
    "echo": Kind(_echo, "icmp"),
    "udp": Kind(_datagram, "udp"),
    "later-fragment": Kind(_later_fragment, "fragment", whole=False),
}


class Way(NamedTuple):
    """How the tunnel packet is addressed."""

    hops: tuple[str, ...]  # after the one that it is sent to, which is this host
    next_hop: int = 0
    ttl: int = 64
    udp_checksum: bool = False


_A, _B, _C = p.NEXT, p.LAST, "10.0.0.5"
_THIRTY = tuple(f"10.1.0.{i}" for i in range(1, 31))
WAYS: tuple[Way, ...] = (
    *(
        Way(hops, next_hop, udp_checksum=next_hop % 2 == 1)
        for hops in ((), (_A,), (_A, _B), (_A, _B, _C))
        for next_hop in range(len(hops) + 1)
    ),
    *(Way(_THIRTY, next_hop, udp_checksum=next_hop % 2 == 1) for next_hop in (0, 13, 28, 29, 30)),
    Way((p.ME, _A)),
    Way((_A, p.ME, _B), 1, udp_checksum=True),
    Way((p.ME, p.ME)),
    Way((_A,), ttl=2, udp_checksum=True),
    Way((_A,), ttl=1),
    Way((), ttl=1),
)


class Case(NamedTuple):
    """One tunnel packet, and what becomes of it."""

    name: str
    packet: bytes
    reason: str
    sent: bytes | None  # bounced: what leaves this host
    delivered: bytes | None  # accepted: what the host's stack gets to see


def is_tunnel_packet(packet: bytes, own: Sequence[bytes] = (IPv4Address(p.ME).packed,)) -> bool:
    """What the netfilter engine's rules match: UDP to the port, for this host. The decision relies on that."""
    if len(packet) < 20 or packet[0] >> 4 != 4 or packet[0] & 0x0F < 5 or packet[9] != 17:
        return False
    header = (packet[0] & 0x0F) * 4
    return (
        struct.unpack_from(">H", packet, 6)[0] & 0x1FFF == 0
        and packet[16:20] in own
        and len(packet) >= header + 8
        and packet[header + 2 : header + 4] == PORT.to_bytes(2, "big")
    )


def hop_after(way: Way) -> int:
    """Position of the first hop not yet tried that is not this host, or -1."""
    return next((i for i in range(way.next_hop, len(way.hops)) if way.hops[i] not in OWN), -1)


def verdict(kind: Kind, *, known: bool, cookie: bool, way: Way) -> str:
    """The reason, by docs/protocol/gue.md. `cookie`: the segment answers one, or its flow did a moment ago."""
    if kind.always is not None:
        return kind.always
    if known:
        return kind.known
    if cookie and kind.known == "established":
        return "syn_cookie"
    if hop_after(way) < 0:
        return "last_resort"
    return "ttl" if way.ttl <= 1 else "bounce"


def with_serial(inner: bytes, serial: int) -> bytes:
    """The packet, told apart from others: by IPv4's identification or IPv6's flow label."""
    if inner[0] >> 4 == 6:
        return struct.pack(">I", 6 << 28 | serial & 0xFFFFF) + inner[4:]
    numbered = inner[:4] + struct.pack(">H", serial & 0xFFFF) + inner[6:]
    return p.with_header_checksum(numbered)


def case(name: str, kind: Kind, inner: bytes, way: Way, *, known: bool, cookie: bool = False) -> Case:
    reason = verdict(kind, known=known, cookie=cookie, way=way)
    fields = {"ttl": way.ttl, "udp_checksum": way.udp_checksum, "source_port": 0x8000 | len(name) * 251}
    packet = encapsulate(inner, p.DIRECTOR, [p.ME, *way.hops], next_hop=way.next_hop, **fields)  # type: ignore[arg-type]
    if reason == "bounce":
        hop = hop_after(way)
        fields["ttl"] = way.ttl - 1
        sent = encapsulate(inner, p.ME, [way.hops[hop], *way.hops], next_hop=hop + 1, **fields)  # type: ignore[arg-type]
        return Case(name, packet, reason, sent, None)
    shown = kind.whole or inner[0] >> 4 == 6
    return Case(name, packet, reason, None, inner if reason != "ttl" and shown else None)


def cases(situation: str, family: int, numbers: Numbers | None = None, serial: int = 0) -> Iterator[Case]:
    """Every kind of packet by every way, for a flow in one situation; `serial` numbers the packets from there on.

    `numbers`: the client's next ones. In the situation syn-cookie the ACKs and data have wrong numbers but for the last
    one, which answers the cookie: what comes behind it is accepted.
    """
    at = SITUATIONS[situation]
    known = at.state not in ("none", "listen")
    source_port = client_port(situation)
    later = situation == "syn-cookie"
    used = False
    for name, kind in KINDS.items():
        for i, way in enumerate(WAYS):
            cookie = used
            exact = numbers or Numbers()
            if later and not used and name in ("ack", "data"):
                # Wrong numbers until the last of its ways, then the right ones.
                cookie = used = name == "data" and i == len(WAYS) - 1
                exact = exact if used else exact._replace(ack=exact.ack + 77)
            serial += 1
            inner = with_serial(kind.build(family, at.port, source_port, exact), serial)
            yield case(f"ipv{family}-{situation}-{name}-{i}", kind, inner, way, known=known, cookie=cookie)
