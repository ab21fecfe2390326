"""The xdp engine's program and the netfilter engine's decision on the same packets: one verdict, the same bytes.

The program runs by BPF_PROG_TEST_RUN in a network namespace with real sockets; the decision is told what those are.
"""

from __future__ import annotations

import random
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from ipaddress import IPv4Address, ip_network
from pathlib import Path
from typing import NamedTuple

import pytest

from glb import _bpf
from glb.wire.checksum import internet_checksum
from proxy_agent import xdp
from proxy_agent._verdict import Settings, decide
from proxy_agent.config import Network
from proxy_agent.decide import REASONS, Action, Decision
from proxy_agent.engine import Guard
from tests.netns.topology import Host, Switch, eventually

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
import agent_packets as p
from agent_packets import ACK, FIN, RST, SYN
from test_agent_decide import CASES, OUTER

pytestmark = [pytest.mark.netns, pytest.mark.bpf]

PORT = 19523
XDP_DROP, XDP_PASS = 1, 2
OWN = (p.ME, "127.0.0.1")
ETHERNET = bytes.fromhex("02000000000a02000000000b0800")
FUZZED = 20_000


def networks(*texts: str) -> tuple[Network, ...]:
    return tuple(ip_network(text) for text in texts)


class Outcome(NamedTuple):
    """What the program did with a frame."""

    action: int
    frame: bytes
    counted: list[str]  # reasons whose counter has grown


class Bench:
    """The program, loaded in a host's namespace; it asks the sockets of that host."""

    def __init__(self, host: Host, guard: Guard) -> None:
        self.host = host
        # Ifindex 0: the host's stack sends what bounces, so the frame comes back readdressed, its TTL as it was.
        self.program = xdp.Program(xdp.options(PORT, 0, by_redirect=False))
        self.adopt(guard)

    def adopt(self, guard: Guard) -> None:
        self.program.adopt(guard)
        self.settings = Settings(guard.vips, guard.allowed_sources, guard.own_addresses)
        self.own = {IPv4Address(address).packed for address in guard.own_addresses}

    def run(self, packet: bytes) -> Outcome:
        before = self.program.counters()
        action, frame, _ = _bpf.test_run(self.program.fd, ETHERNET + packet)
        after = self.program.counters()
        return Outcome(action, frame, [name for name in after for _ in range(after[name] - before[name])])

    def is_tunnel_packet(self, packet: bytes) -> bool:
        """What the netfilter engine's rules match: UDP to the port, for this host. The decision relies on that."""
        if len(packet) < 20 or packet[0] >> 4 != 4 or packet[0] & 0x0F < 5 or packet[9] != 17:
            return False
        header = (packet[0] & 0x0F) * 4
        return (
            struct.unpack_from(">H", packet, 6)[0] & 0x1FFF == 0
            and packet[16:20] in self.own
            and len(packet) >= header + 8
            and packet[header + 2 : header + 4] == PORT.to_bytes(2, "big")
        )

    def compare(self, packet: bytes, state: str = "none") -> Decision | None:
        """Both verdicts, held against each other; None: no tunnel packet, and passed untouched."""
        outcome = self.run(packet)
        if not self.is_tunnel_packet(packet):
            assert outcome == (XDP_PASS, ETHERNET + packet, [])
            return None
        decision = decide(packet, self.settings, lambda *flow: state)
        assert outcome.counted == [decision.reason], packet.hex()
        if decision.action is Action.DROP:
            assert outcome.action == XDP_DROP
            return decision
        assert outcome.action == XDP_PASS
        if decision.action is Action.ACCEPT:
            family = decision.packet[0] >> 4
            assert outcome.frame[:14] == ETHERNET[:12] + (b"\x08\0" if family == 4 else b"\x86\xdd")
        else:
            assert outcome.frame[:14] == ETHERNET
        assert outcome.frame[14 : 14 + len(decision.packet)] == decision.packet
        return decision


ANY = Guard(networks(p.VIP4, p.VIP6), None, OWN)


@pytest.fixture(scope="module")
def standing() -> Iterator[Bench]:
    with Switch("proxy") as net:
        host = net["proxy"]
        for address in (p.VIP4, p.CLIENT4):
            host.run("ip", "addr", "add", f"{address}/32", "dev", "lo")
        for address in (p.VIP6, p.CLIENT6):
            host.run("ip", "addr", "add", f"{address}/128", "dev", "lo")
        with host.inside():
            yield Bench(host, ANY)


@pytest.fixture
def bench(standing: Bench) -> Iterator[Bench]:
    with standing.host.inside():
        standing.adopt(ANY)
        yield standing


WITHOUT_SOCKET = [name for name, (_, state, _) in CASES.items() if state == "none"]


@pytest.mark.parametrize("hops", [0, 1, 3, 30])
@pytest.mark.parametrize("name", WITHOUT_SOCKET)
def test_verdict_without_a_socket(bench: Bench, name: str, hops: int) -> None:
    inner = CASES[name][0]
    list_of_hops = tuple(f"10.1.0.{i}" for i in range(hops))
    for checksum in (False, True):
        decision = bench.compare(p.tunnel(inner, list_of_hops, udp_checksum=checksum))
        assert decision is not None
        expected = CASES[name][2]
        assert decision.reason == ("last_resort" if expected == "bounce" and not hops else expected)
        bench.compare(p.tunnel(inner, list_of_hops, udp_checksum=checksum) + b"\xff" * 60)


@pytest.mark.parametrize("name", CASES)
def test_packet_cut_at_any_byte(bench: Bench, name: str) -> None:
    if CASES[name][1] in ("none", "unknown"):
        packet = p.tunnel(CASES[name][0])
        for length in range(len(packet)):
            bench.compare(packet[:length])
            if length >= 28:
                bench.compare(p.with_length(packet, length))


def with_checksum(packet: bytearray) -> bytes:
    header = (packet[0] & 0x0F) * 4
    packet[10:12] = b"\0\0"
    packet[10:12] = struct.pack(">H", internet_checksum(bytes(packet[:header])))
    return bytes(packet)


@pytest.mark.parametrize("name", [name for name in OUTER if name != "empty"])
def test_outer_fault(bench: Bench, name: str) -> None:
    at, value, _ = OUTER[name]
    packet = bytearray(p.tunnel(p.from_client(4, SYN)))
    packet[at : at + len(value)] = value
    bench.compare(with_checksum(packet))
    packet[10] ^= 1
    bench.compare(bytes(packet))


@pytest.mark.parametrize("words", range(11))
@pytest.mark.parametrize("flags", [SYN, ACK])
def test_outer_ipv4_options_are_read_past(bench: Bench, words: int, flags: int) -> None:
    packet = bytearray(p.tunnel(p.from_client(4, flags), udp_checksum=True))
    packet[20:20] = random.Random(words).randbytes(4 * words)
    packet[0] += words
    packet[2:4] = struct.pack(">H", len(packet))
    decision = bench.compare(with_checksum(packet))
    assert decision is not None and decision.reason == ("syn" if flags == SYN else "bounce")


@pytest.mark.parametrize("ttl", [0, 1, 2, 255])
def test_ttl(bench: Bench, ttl: int) -> None:
    bench.compare(p.tunnel(p.from_client(4, ACK), ttl=ttl))
    bench.compare(p.tunnel(p.from_client(6, ACK), (p.ME,), ttl=ttl))


@pytest.mark.parametrize(
    "hops", [(p.ME, p.NEXT), (p.ME, "127.0.0.1"), (p.NEXT, p.ME, p.LAST), (p.ME,) * 29 + (p.LAST,)]
)
def test_hops_of_this_host_are_skipped(bench: Bench, hops: tuple[str, ...]) -> None:
    for next_hop in range(len(hops) + 1):
        bench.compare(p.tunnel(p.from_client(6, ACK), hops, next_hop=next_hop, udp_checksum=True))


def test_guard_of_prefixes_changes_without_a_trace_of_the_old(bench: Bench) -> None:
    guards = [
        Guard(networks("198.51.100.0/24", "2001:db8:51::/48"), networks("10.0.0.0/30", "172.16.0.1/32"), OWN),
        Guard(networks("198.51.100.1/32"), networks("172.16.0.0/12"), OWN),
        Guard(networks("203.0.113.0/25", p.VIP6), None, (p.NEXT,)),
        ANY,
    ]
    packets = [
        bytearray(p.tunnel(p.ip(client, vip, 6, p.tcp(SYN))))
        for client, vip in (
            (p.CLIENT4, p.VIP4),
            (p.CLIENT4, "198.51.100.255"),
            (p.CLIENT4, "198.51.101.0"),
            (p.CLIENT6, p.VIP6),
            (p.CLIENT6, "2001:db8:51:ffff::1"),
            (p.CLIENT6, "2001:db8:52::1"),
        )
    ]
    sources = [IPv4Address(a).packed for a in (p.DIRECTOR, "10.0.0.4", "172.16.0.1", "172.31.255.255", "172.32.0.0")]
    for guard in guards:
        bench.adopt(guard)
        for packet in packets:
            for source in sources:
                packet[12:16] = source
                bench.compare(with_checksum(packet))


def test_mutated_packets_get_the_same_verdict_and_bytes(bench: Bench) -> None:
    """Packets with a few bytes changed, half of them with lengths made to fit, most with a right header checksum."""
    rng = random.Random(20261)
    hops = (p.NEXT, p.ME, p.LAST)
    packets = [
        p.tunnel(inner, hops, udp_checksum=i % 2 == 1, next_hop=i % 4, ttl=(64, 64, 1)[i % 3])
        for i, (inner, *_) in enumerate(CASES.values())
    ]
    seen: dict[str, int] = {}
    for _ in range(FUZZED):
        packet = bytearray(rng.choice(packets))
        first = 0 if rng.random() < 0.2 else 28
        for _ in range(rng.randrange(1, 5)):
            value = rng.choice((0, 1, 4, 0x44, 0x46, 0x7F, 0xFF, rng.randrange(256)))
            packet[rng.randrange(first, len(packet))] = value
        if rng.random() < 0.5:
            packet = bytearray(p.with_length(bytes(packet), rng.randrange(28, len(packet) + 1)))
        mutated = with_checksum(packet) if rng.random() < 0.9 else bytes(packet)
        decision = bench.compare(mutated)
        if decision is not None:
            seen[decision.reason] = seen.get(decision.reason, 0) + 1
    assert len(seen) >= 13, seen


# -- real sockets ------------------------------------------------------------------------------------------------------


def ends(family: int, port: int, stack: ExitStack) -> tuple[socket.socket, socket.socket]:
    """A connection of the client's port to the VIP's port 80: both ends."""
    kind = socket.AF_INET if family == 4 else socket.AF_INET6
    client, vip = p.addresses(family)
    listener = stack.enter_context(closing(listen(family)))
    ours = stack.enter_context(closing(socket.socket(kind)))
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    ours.bind((client, port))
    ours.connect((vip, 80))
    theirs = stack.enter_context(closing(listener.accept()[0]))
    return ours, theirs


def listen(family: int) -> socket.socket:
    kind = socket.AF_INET if family == 4 else socket.AF_INET6
    listener = socket.socket(kind)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((p.addresses(family)[1], 80))
    listener.listen()
    return listener


def reset_on_close(sock: socket.socket) -> None:
    if sock.fileno() >= 0:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def state_of(bench: Bench, family: int, port: int) -> str:
    """State of the server's end, as `ss` tells; "" without one."""
    vip = p.addresses(family)[1]
    where = f"[{vip}]" if family == 6 else vip
    lines = bench.host.run("ss", "-Htan", f"src {where}:80 and dport = :{port}").splitlines()
    return lines[0].split()[0] if lines else ""


def established(ours: socket.socket, theirs: socket.socket) -> None:
    """As they are."""


def fin_wait2(ours: socket.socket, theirs: socket.socket) -> None:
    theirs.shutdown(socket.SHUT_WR)


def close_wait(ours: socket.socket, theirs: socket.socket) -> None:
    ours.shutdown(socket.SHUT_WR)


def time_wait(ours: socket.socket, theirs: socket.socket) -> None:
    theirs.close()
    ours.close()


def gone(ours: socket.socket, theirs: socket.socket) -> None:
    reset_on_close(ours)
    ours.close()


SITUATIONS: dict[str, tuple[Callable[[socket.socket, socket.socket], None], str, str]] = {
    "established": (established, "ESTAB", "established"),
    "fin-wait-2": (fin_wait2, "FIN-WAIT-2", "fin_wait2"),
    "close-wait": (close_wait, "CLOSE-WAIT", "close_wait"),
    "time-wait": (time_wait, "TIME-WAIT", "time_wait"),
    "reset": (gone, "", "listen"),
}


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("situation", SITUATIONS)
def test_verdict_with_real_sockets(bench: Bench, situation: str, family: int) -> None:
    bring, shown, state = SITUATIONS[situation]
    error = 3 if family == 4 else 2
    port = 4712 + list(SITUATIONS).index(situation)  # one that is in TIME_WAIT is in nobody's way
    inner = [p.from_client(family, flags, source_port=port) for flags in (SYN, SYN | ACK, ACK, FIN | ACK, RST)]
    ports = struct.pack(">HHI", 80, port, 0)
    inner += [p.icmp(family, error, p.quoted(family, protocol, ports)) for protocol in (6, 17)]
    with ExitStack() as stack:
        ours, theirs = ends(family, port, stack)
        bring(ours, theirs)
        eventually(lambda: state_of(bench, family, port) == shown)
        for packet in inner:
            for hops in ((), (p.NEXT,), (p.NEXT, p.LAST)):
                bench.compare(p.tunnel(packet, hops), state)
        reset_on_close(ours)
        reset_on_close(theirs)


@pytest.mark.parametrize("family", [4, 6])
def test_listener_is_no_flow_and_an_ack_to_it_bounces(bench: Bench, family: int) -> None:
    with closing(listen(family)):
        for flags in (ACK, ACK | FIN, RST):
            decision = bench.compare(p.tunnel(p.from_client(family, flags)), "listen")
            assert decision is not None and decision.reason == "bounce"


def test_each_reason_of_a_drop_names_its_last_sender(bench: Bench) -> None:
    assert {reason.name for reason in REASONS if reason.action is Action.DROP} >= {"gue_malformed"}
    packet = bytearray(p.tunnel(p.from_client(4, SYN)))
    packet[28] |= 0x40
    bench.run(bytes(packet))
    assert bench.program.last_source("gue_malformed") == p.DIRECTOR
