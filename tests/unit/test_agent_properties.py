"""Properties of the second chance over arbitrary packets."""

from __future__ import annotations

import sys
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from glb.wire.gue import parse_tunnel
from proxy_agent._verdict import Settings, decide
from proxy_agent.decide import BY_NAME, Action

sys.path.insert(0, str(Path(__file__).parent))
import agent_packets as p

SETTINGS = Settings(["0.0.0.0/0", "::/0"], None, [p.ME])
ipv4 = st.integers(0, 2**32 - 1).map(IPv4Address)
ipv6 = st.integers(0, 2**128 - 1).map(IPv6Address)
pairs = st.tuples(ipv4, ipv4) | st.tuples(ipv6, ipv6)
hop_lists = st.lists(ipv4.map(str), max_size=30).map(tuple)
payloads = st.binary(max_size=200)


@given(pairs, st.sampled_from([p.SYN, p.ACK, p.FIN | p.ACK, p.RST]), payloads, hop_lists, st.booleans())
def test_encapsulate_then_accept_is_identity(pair, flags, payload, hops, checksum) -> None:  # type: ignore[no-untyped-def]
    inner = p.ip(str(pair[0]), str(pair[1]), 6, p.tcp(flags) + payload)
    packet = p.tunnel(inner, hops, udp_checksum=checksum)
    verdict = decide(packet, SETTINGS, lambda *flow: "established")
    assert verdict.action is Action.ACCEPT
    assert verdict.packet == inner


@given(pairs, hop_lists, st.booleans(), payloads)
def test_packet_that_nobody_knows_visits_each_hop_once_and_stays_whole(pair, hops, checksum, payload) -> None:  # type: ignore[no-untyped-def]
    """Proxies whose tables disagree bounce a packet at most as often as it lists hops."""
    inner = p.ip(str(pair[0]), str(pair[1]), 6, p.tcp(p.ACK) + payload)
    packet = p.tunnel(inner, hops, udp_checksum=checksum)
    visited = []
    while (verdict := decide(packet, SETTINGS)).action is Action.BOUNCE:
        packet = verdict.packet
        visited.append(str(parse_tunnel(packet).destination))
        assert len(visited) <= len(hops)
    assert visited == [hop for hop in hops if hop != p.ME]
    assert (verdict.reason, verdict.packet) == ("last_resort", inner)


@given(st.binary(max_size=300))
def test_any_bytes_get_exactly_one_known_reason(data: bytes) -> None:
    assert BY_NAME[decide(data, SETTINGS).reason].action is Action.DROP


@given(payloads, hop_lists)
def test_any_inner_bytes_get_a_reason_and_never_grow(inner: bytes, hops: tuple[str, ...]) -> None:
    whole = p.tunnel(b"\x45" + inner, hops)
    verdict = decide(whole, SETTINGS)
    assert len(verdict.packet) <= len(whole)
