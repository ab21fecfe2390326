"""The xdp engine's program and the netfilter engine's decision on the same packets: one verdict, the same bytes.

The program runs by BPF_PROG_TEST_RUN in a network namespace without any socket; test_agent_verdicts.py has them.
"""

from __future__ import annotations

import random
import struct
import sys
from collections.abc import Iterator
from ipaddress import IPv4Address, ip_network
from pathlib import Path

import pytest

from proxy_agent.config import Network
from proxy_agent.decide import REASONS, Action
from proxy_agent.engine import Guard
from tests.netns.pair import Pair
from tests.netns.topology import Host, Switch

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
import agent_packets as p
from agent_corpus import OWN
from agent_packets import ACK, SYN
from test_agent_decide import CASES, OUTER

pytestmark = [pytest.mark.netns, pytest.mark.bpf]


def networks(*texts: str) -> tuple[Network, ...]:
    return tuple(ip_network(text) for text in texts)


ANY = Guard(networks(p.VIP4, p.VIP6), None, OWN)


@pytest.fixture(scope="module")
def standing() -> Iterator[tuple[Host, Pair]]:
    with Switch("proxy") as net, net["proxy"].inside():
        yield net["proxy"], Pair(ANY)


@pytest.fixture
def pair(standing: tuple[Host, Pair]) -> Iterator[Pair]:
    host, pair = standing
    with host.inside():
        pair.adopt(ANY)
        yield pair
        pair.check()


WITHOUT_SOCKET = [name for name, (_, state, _) in CASES.items() if state == "none"]


@pytest.mark.parametrize("hops", [0, 1, 3, 30])
@pytest.mark.parametrize("name", WITHOUT_SOCKET)
def test_verdict_without_a_socket(pair: Pair, name: str, hops: int) -> None:
    inner = CASES[name][0]
    list_of_hops = tuple(f"10.1.0.{i}" for i in range(hops))
    for checksum in (False, True):
        decision = pair.compare(p.tunnel(inner, list_of_hops, udp_checksum=checksum))
        assert decision is not None
        expected = CASES[name][2]
        assert decision.reason == ("last_resort" if expected == "bounce" and not hops else expected)
        pair.compare(p.tunnel(inner, list_of_hops, udp_checksum=checksum) + b"\xff" * 60)


@pytest.mark.parametrize("name", CASES)
def test_packet_cut_at_any_byte(pair: Pair, name: str) -> None:
    if CASES[name][1] in ("none", "unknown"):
        packet = p.tunnel(CASES[name][0])
        for length in range(len(packet)):
            pair.compare(packet[:length])
            if length >= 28:
                pair.compare(p.with_length(packet, length))


def with_checksum(packet: bytearray) -> bytes:
    return p.with_header_checksum(bytes(packet))


@pytest.mark.parametrize("name", [name for name in OUTER if name != "empty"])
def test_outer_fault(pair: Pair, name: str) -> None:
    at, value, _ = OUTER[name]
    packet = bytearray(p.tunnel(p.from_client(4, SYN)))
    packet[at : at + len(value)] = value
    pair.compare(with_checksum(packet))
    packet[10] ^= 1
    pair.compare(bytes(packet))


@pytest.mark.parametrize("words", range(11))
@pytest.mark.parametrize("flags", [SYN, ACK])
def test_outer_ipv4_options_are_read_past(pair: Pair, words: int, flags: int) -> None:
    packet = bytearray(p.tunnel(p.from_client(4, flags), udp_checksum=True))
    packet[20:20] = random.Random(words).randbytes(4 * words)
    packet[0] += words
    packet[2:4] = struct.pack(">H", len(packet))
    decision = pair.compare(with_checksum(packet))
    assert decision is not None and decision.reason == ("syn" if flags == SYN else "bounce")


@pytest.mark.parametrize("ttl", [0, 1, 2, 255])
def test_ttl(pair: Pair, ttl: int) -> None:
    pair.compare(p.tunnel(p.from_client(4, ACK), ttl=ttl))
    pair.compare(p.tunnel(p.from_client(6, ACK), (p.ME,), ttl=ttl))


@pytest.mark.parametrize(
    "hops", [(p.ME, p.NEXT), (p.ME, "127.0.0.1"), (p.NEXT, p.ME, p.LAST), (p.ME,) * 29 + (p.LAST,)]
)
def test_hops_of_this_host_are_skipped(pair: Pair, hops: tuple[str, ...]) -> None:
    for next_hop in range(len(hops) + 1):
        pair.compare(p.tunnel(p.from_client(6, ACK), hops, next_hop=next_hop, udp_checksum=True))


def test_guard_of_prefixes_changes_without_a_trace_of_the_old(pair: Pair) -> None:
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
        pair.adopt(guard)
        for packet in packets:
            for source in sources:
                packet[12:16] = source
                pair.compare(with_checksum(packet))


def test_each_reason_of_a_drop_names_its_last_sender(pair: Pair) -> None:
    assert {reason.name for reason in REASONS if reason.action is Action.DROP} >= {"gue_malformed"}
    packet = bytearray(p.tunnel(p.from_client(4, SYN)))
    packet[28] |= 0x40
    pair.compare(bytes(packet))
    assert pair.program.last_source("gue_malformed") == p.DIRECTOR
