"""Tables that contradict each other, VIPs without a listener: no packet goes round for ever, each is answered."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import closing
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import pytest

from glb.wire.gue import GUE_PORT, encapsulate
from tests.netns.agents import VIP4, VIP6, departures
from tests.netns.test_agent_second_chance import ACK, BOTH, RST, SYN, Site, standing, tcp4, tcp6
from tests.netns.topology import Host, eventually

pytestmark = [pytest.mark.netns, pytest.mark.bpf]

DATA = ACK | 0x08
NO_LISTENER = 81


@pytest.fixture(scope="module", params=["netfilter", "xdp", "auto"])
def standing_site(
    request: pytest.FixtureRequest, netfilter: None, bpffs: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    with standing(request.param, bpffs, tmp_path_factory) as site:
        yield site


class Wire:
    """What the two proxies send: tunnel packets, and resets of the VIPs."""

    def __init__(self, site: Site) -> None:
        self._ports = {host.name: departures(host, site.switch) for host in (site.proxy1, site.proxy2)}
        for port in self._ports.values():
            site.cleanup.enter_context(closing(port))
            port.setblocking(False)

    def read(self) -> tuple[dict[str, int], dict[str, int]]:
        """Since the last call, by proxy: tunnel packets, and resets."""
        tunnel, resets = dict.fromkeys(self._ports, 0), dict.fromkeys(self._ports, 0)
        for name, port in self._ports.items():
            while True:
                try:
                    packet, (_, _, kind, *_) = port.recvfrom(65536)
                except BlockingIOError:
                    break
                if kind == socket.PACKET_OUTGOING:
                    continue
                tunnel[name] += is_tunnel_packet(packet)
                resets[name] += is_reset(packet)
        return tunnel, resets


def is_tunnel_packet(packet: bytes) -> bool:
    return packet[0] == 0x45 and packet[9] == 17 and packet[22:24] == GUE_PORT.to_bytes(2, "big")


def is_reset(packet: bytes) -> bool:
    if packet[0] >> 4 == 4:
        return packet[9] == 6 and packet[12:16] == IPv4Address(VIP4).packed and bool(packet[33] & RST)
    return packet[6] == 6 and packet[8:24] == IPv6Address(VIP6).packed and bool(packet[53] & RST)


def settled(wire: Wire) -> tuple[dict[str, int], dict[str, int]]:
    """All that is sent until a reset was, and for a little while after it: a loop would be on the wire then."""
    tunnel, resets = wire.read()
    over_s = float("inf")
    deadline_s = time.monotonic() + 10
    while time.monotonic() < min(over_s, deadline_s):
        if over_s == float("inf") and any(resets.values()):
            over_s = time.monotonic() + 0.1
        more, more_resets = wire.read()
        tunnel = {name: count + more[name] for name, count in tunnel.items()}
        resets = {name: count + more_resets[name] for name, count in resets.items()}
        time.sleep(0.005)
    return tunnel, resets


def segment(site: Site, vip: str, flags: int, port: int) -> bytes:
    if vip == VIP4:
        return tcp4(site.client.ipv4, 4711, flags, port=port)
    return tcp6(site.client.ipv6, 4711, flags, port=port)


@pytest.mark.parametrize("hops", [1, 2, 3, 30])
@BOTH
def test_proxies_whose_tables_disagree_bounce_a_packet_at_most_hops_times(site: Site, vip: str, hops: int) -> None:
    """One director leads to proxy1 before proxy2, the other the other way round; both lists go on for ever in turns."""
    wire = Wire(site)
    for order in ((site.proxy1, site.proxy2), (site.proxy2, site.proxy1)):
        for agent in site.agents:
            agent.mark()
        addresses = [order[i % 2].ipv4 for i in range(1 + hops)]
        inner = segment(site, vip, DATA, 80)
        site.director.send(encapsulate(inner, site.director.host.ipv4, addresses))
        tunnel, resets = settled(wire)
        last = order[hops % 2].name
        assert sum(tunnel.values()) == hops
        assert resets == {host.name: int(host.name == last) for host in order}
        eventually(lambda: sum(agent.counters().get("bounce", 0) for agent in site.agents) == hops)
        eventually(lambda: sum(agent.counters().get("last_resort", 0) for agent in site.agents) == 1)


@pytest.mark.parametrize(("flags", "from_last"), [(SYN, False), (ACK, True), (DATA, True)], ids=["syn", "ack", "data"])
@BOTH
def test_packet_for_a_port_that_nobody_listens_at_is_reset_by_whoever_must_take_it(
    site: Site, vip: str, flags: int, from_last: bool
) -> None:
    """A SYN belongs to the first proxy, anything else to the last one that is asked."""
    wire = Wire(site)
    site.director.send(site.director.encapsulate(segment(site, vip, flags, NO_LISTENER)))
    tunnel, resets = settled(wire)
    answers: Host = site.proxy2 if from_last else site.proxy1
    assert sum(tunnel.values()) == int(from_last)
    assert resets == {host.name: int(host is answers) for host in (site.proxy1, site.proxy2)}
