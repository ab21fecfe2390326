"""Real TCP and UDP through tunnel packets to two proxies with the agent: what is accepted, bounced and dropped."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any

import pytest

from glb.wire.checksum import internet_checksum, ipv4_header, pseudo_header
from glb.wire.gue import encapsulate, parse_tunnel
from tests.netns.agents import (
    VIP4,
    VIP6,
    Agent,
    Client,
    Director,
    NamedServer,
    departures,
    fleet,
    next_tunnel_packet,
    sniffer,
)
from tests.netns.topology import Host, Switch, eventually

pytestmark = pytest.mark.netns

BOTH = pytest.mark.parametrize("vip", [VIP4, VIP6], ids=["ipv4", "ipv6"])
ACK, RST, SYN = 0x10, 0x04, 0x02


class Site:
    """Two proxies with agents and servers, a director, and what tests send through them."""

    def __init__(self, net: Switch, directory: Path, stack: ExitStack, **keys: Any) -> None:
        self.client, self.proxy1, self.proxy2, self.switch = net["client"], net["proxy1"], net["proxy2"], net.core
        self.agents = [Agent(host, directory, **keys) for host in (self.proxy1, self.proxy2)]
        for agent in self.agents:
            stack.callback(agent.stop)
            agent.launch()
        for agent in self.agents:
            agent.await_notice("READY=1")
            for vip in (VIP4, VIP6):
                stack.callback(NamedServer(agent.host, vip).close)
        self.director = Director(net["director"], [self.proxy1, self.proxy2])
        stack.callback(self.director.close)
        self.cleanup = ExitStack()

    def begin(self) -> None:
        """A test of its own: counters from zero, the director leads to proxy1, then proxy2."""
        self.director.lead(self.proxy1, self.proxy2)
        for agent in self.agents:
            eventually(lambda agent=agent: agent.status()["flows_total"] == 0)  # the last test's have said goodbye
            agent.mark()

    def connect(self, vip: str) -> Client:
        client = Client(self.client, vip)
        self.cleanup.callback(client.close)
        return client

    def sysctl(self, host: Host, name: str, value: object) -> None:
        """Set it for this test."""
        self.cleanup.callback(host.sysctl, name, host.sysctl(name))
        host.sysctl(name, value)


@contextmanager
def standing(engine: str, bpffs: Path, factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A site whose agents have this engine; `factory`: pytest's tmp_path_factory."""
    with fleet() as net, ExitStack() as stack:
        directory = factory.mktemp("agents")
        yield Site(net, directory, stack, engine=engine, pin_dir=str(bpffs / directory.name))


@pytest.fixture(scope="module", params=["netfilter", "xdp", "auto"])
def standing_site(
    request: pytest.FixtureRequest, netfilter: None, bpffs: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    with standing(request.param, bpffs, tmp_path_factory) as site:
        assert site.agents[0].status()["engine"] == ("netfilter" if request.param == "netfilter" else "xdp")
        yield site


def tcp4(
    source: str,
    source_port: int,
    flags: int,
    *,
    destination: str = VIP4,
    port: int = 80,
    seq: int = 1000,
    options: bytes = b"",
    payload: bytes = b"",
) -> bytes:
    """An IPv4 TCP segment with right checksums."""
    segment = struct.pack(">HHIIBBHHH", source_port, port, seq, 2000, 0x50, flags, 1024, 0, 0) + payload
    addresses = IPv4Address(source), IPv4Address(destination)
    checksum = internet_checksum(pseudo_header(*addresses, 6, len(segment)) + segment)
    segment = segment[:16] + struct.pack(">H", checksum) + segment[18:]
    return ipv4_header(*addresses, 6, len(segment), options=options) + segment


def tcp6(source: str, source_port: int, flags: int, *, port: int = 80) -> bytes:
    segment = struct.pack(">HHIIBBHHH", source_port, port, 1000, 2000, 0x50, flags, 1024, 0, 0)
    addresses = IPv6Address(source), IPv6Address(VIP6)
    checksum = internet_checksum(pseudo_header(*addresses, 6, len(segment)) + segment)
    segment = segment[:16] + struct.pack(">H", checksum) + segment[18:]
    return struct.pack(">IHBB", 6 << 28, len(segment), 6, 64) + addresses[0].packed + addresses[1].packed + segment


@BOTH
def test_new_flow_is_accepted_by_its_first_hop_and_replies_go_straight_to_the_client(site: Site, vip: str) -> None:
    client = site.connect(vip)
    assert client.ask("hello") == "proxy1: hello"
    # The handshake's ACK and the line. (A packet by way of TUN may be answered before it is counted.)
    eventually(lambda: site.agents[0].counters().get("established", 0) >= 2)
    counters = site.agents[0].counters()
    assert counters["syn"] == 1
    assert set(counters) == {"syn", "established"}
    assert site.agents[0].status()["flows"][vip] == 1
    assert site.agents[1].counters() == {}
    client.close()
    eventually(lambda: site.agents[0].status()["flows_total"] == 0)


@BOTH
def test_flow_unknown_to_the_first_hop_bounces_and_works_at_the_second(site: Site, vip: str) -> None:
    site.director.lead(site.proxy2, site.proxy1)
    client = site.connect(vip)
    assert client.ask("before") == "proxy2: before"
    site.director.lead(site.proxy1, site.proxy2)  # a drain of proxy2
    assert [client.ask(f"line {i}") for i in range(20)] == [f"proxy2: line {i}" for i in range(20)]
    counters = site.agents[0].counters()
    assert set(counters) == {"bounce"}
    assert counters["bounce"] >= 20
    assert set(site.agents[0].status()["bounced_by_hop"]) == {"1"}
    assert site.connect(vip).ask("new") == "proxy1: new"


@pytest.mark.parametrize("mode", [1, 2], ids=["strict", "loose"])
@BOTH
def test_second_chance_works_with_reverse_path_filtering(site: Site, vip: str, mode: int) -> None:
    for host in (site.proxy1, site.proxy2):
        for name in ("all", "eth0"):
            site.sysctl(host, f"net/ipv4/conf/{name}/rp_filter", mode)
    site.director.lead(site.proxy2)
    client = site.connect(vip)
    site.director.lead(site.proxy1, site.proxy2)
    assert client.ask("still there") == "proxy2: still there"


def test_bounce_lowers_the_outer_ttl_by_exactly_one_and_corrects_a_udp_checksum(site: Site) -> None:
    arrivals = departures(site.proxy1, site.switch)
    inner = tcp4(site.client.ipv4, 4711, ACK)
    hops = [site.proxy1.ipv4, site.proxy2.ipv4]
    for ttl, with_checksum in ((64, False), (2, True), (255, True)):
        site.director.send(
            encapsulate(inner, site.director.host.ipv4, hops, ttl=ttl, udp_checksum=with_checksum, source_port=0x9ABC)
        )
        arrived = parse_tunnel(next_tunnel_packet(arrivals))  # verifies both checksums
        assert arrived.ttl == ttl - 1
        assert (str(arrived.source), str(arrived.destination)) == (site.proxy1.ipv4, site.proxy2.ipv4)
        assert (arrived.gue.next_hop, arrived.gue.hops) == (1, (IPv4Address(site.proxy2.ipv4),))
        assert (arrived.source_port, arrived.udp_checksum, arrived.inner) == (0x9ABC, with_checksum, inner)
    arrivals.close()


def test_packet_whose_ttl_has_run_out_is_dropped_instead_of_bounced(site: Site) -> None:
    replies = sniffer(site.director.host)
    replies.setblocking(False)
    hops = [site.proxy1.ipv4, site.proxy2.ipv4]
    site.director.send(encapsulate(tcp4(site.client.ipv4, 4711, ACK), site.director.host.ipv4, hops, ttl=1))
    eventually(lambda: site.agents[0].counters() == {"ttl": 1})
    with pytest.raises(BlockingIOError):  # no ICMP time exceeded
        replies.recv(65536)
    replies.close()


@pytest.mark.parametrize("family", [4, 6])
def test_last_hop_answers_for_a_flow_that_nobody_knows_with_a_reset(site: Site, family: int) -> None:
    with site.client.inside():
        listener = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0003))
        listener.bind(("eth0", 0x0003))
    listener.settimeout(10)
    if family == 4:
        inner = tcp4(site.client.ipv4, 4711, ACK)
        offset, destination = 20, IPv4Address(site.client.ipv4).packed
    else:
        inner = tcp6(site.client.ipv6, 4711, ACK)
        offset, destination = 40, IPv6Address(site.client.ipv6).packed
    site.director.send(site.director.encapsulate(inner))
    while True:
        packet = listener.recv(65536)
        if packet[offset - len(destination) : offset] == destination and packet[6 if family == 6 else 9] == 6:
            break
    assert packet[offset + 13] & RST
    eventually(lambda: site.agents[0].counters() == {"bounce": 1})
    eventually(lambda: site.agents[1].counters() == {"last_resort": 1})
    assert "glb_agent_last_resort_packets_total" in site.agents[1].get("/metrics")[1]
    listener.close()


@BOTH
def test_udp_is_accepted_by_the_first_hop(site: Site, vip: str) -> None:
    with site.client.inside():
        sender = socket.socket(socket.AF_INET6 if ":" in vip else socket.AF_INET, socket.SOCK_DGRAM)
    sender.settimeout(10)
    sender.connect((vip, 80))
    sender.send(b"datagram")
    assert sender.recv(100) == b"proxy1: datagram"
    eventually(lambda: site.agents[0].counters() == {"udp": 1})
    sender.close()


@BOTH
def test_ping_of_a_vip_is_answered(site: Site, vip: str) -> None:
    assert "1 received" in site.client.run("ping", "-c1", "-W5", vip)
    eventually(lambda: site.agents[0].counters() == {"icmp": 1})


def test_large_datagrams_whose_fragments_arrive_in_tunnel_packets_are_put_together(site: Site) -> None:
    with site.client.inside():
        sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sender.settimeout(10)
    site.cleanup.callback(sender.close)
    route = ("ip", "route", "replace", f"{VIP4}/32", "via", site.director.host.ipv4)
    site.cleanup.callback(site.client.run, *route)
    site.client.run(*route, "mtu", "1200")
    payload = bytes(range(256)) * 10
    sender.sendto(payload, (VIP4, 80))
    assert sender.recv(65536) == b"proxy1: " + payload
    counters = site.agents[0].counters()
    assert (counters["udp"], counters["fragment"]) == (1, 2)


def test_icmp_error_follows_its_flow_to_the_second_hop(site: Site) -> None:
    site.director.lead(site.proxy2)
    client = site.connect(VIP4)
    assert client.ask("hello") == "proxy2: hello"
    router, vip = IPv4Address("192.0.2.1"), IPv4Address(VIP4)
    quoted = ipv4_header(vip, IPv4Address(site.client.ipv4), 6, 1480) + struct.pack(">HHI", 80, client.port, 0)
    error = struct.pack(">BBHHH", 3, 4, 0, 0, 1300) + quoted
    error = error[:2] + struct.pack(">H", internet_checksum(error)) + error[4:]
    site.director.lead(site.proxy1, site.proxy2)
    site.director.send(site.director.encapsulate(ipv4_header(router, vip, 1, len(error)) + error))
    eventually(lambda: site.agents[1].counters().get("icmp_error") == 1)
    assert set(site.agents[0].counters()) == {"bounce"}  # the error, and perhaps the client's last ACK


def test_packets_with_ipv4_options_are_delivered(site: Site) -> None:
    """They do not end where the outer header does, so they enter by the TUN device."""
    arrivals = sniffer(site.client)
    no_operations = bytes([1, 1, 1, 1])
    site.director.send(site.director.encapsulate(tcp4(site.client.ipv4, 4712, SYN, options=no_operations)))
    while True:
        packet = arrivals.recv(65536)
        header = (packet[0] & 0x0F) * 4
        if packet[9] == 6 and packet[header + 13] == SYN | ACK:
            break
    eventually(lambda: site.agents[0].counters().get("syn") == 1)
    arrivals.close()


def test_strangers_and_foreign_destinations_are_dropped_and_counted(site: Site) -> None:
    agent = site.agents[0]
    site.cleanup.callback(agent.reload, allowed_sources=None)
    agent.reload(allowed_sources=[site.director.host.ipv4, site.proxy1.ipv4])
    syn = tcp4(site.client.ipv4, 4711, SYN)
    site.director.send(encapsulate(syn, "10.99.0.77", [site.proxy1.ipv4]))
    eventually(lambda: site.agents[0].counters() == {"not_allowed": 1})
    to_host = tcp4(site.client.ipv4, 4711, SYN, destination=site.proxy1.ipv4)
    site.director.send(site.director.encapsulate(to_host))
    eventually(lambda: site.agents[0].counters() == {"not_allowed": 1, "not_vip": 1})
    assert site.connect(VIP4).ask("hello") == "proxy1: hello"


def test_malformed_tunnel_packets_are_dropped_without_an_answer(site: Site) -> None:
    replies = sniffer(site.director.host)
    replies.setblocking(False)
    good = site.director.encapsulate(tcp4(site.client.ipv4, 4711, SYN))
    cases = {
        "gue_malformed": good[:28] + bytes([good[28] | 0x40]) + good[29:],
        "malformed": good[:40] + bytes([0x4F]) + good[41:],
        "outer_malformed": good[:24] + b"\0\4" + good[26:],
        "unknown_protocol": good[:49] + b"\x2f" + good[50:],
        "outer_fragment": good[:6] + b"\x20\0" + good[8:],
    }
    for reason, packet in cases.items():
        site.director.send(packet)
        eventually(lambda reason=reason: site.agents[0].counters().get(reason) == 1)
    assert site.agents[0].counters() == dict.fromkeys(cases, 1)
    with pytest.raises(BlockingIOError):
        replies.recv(65536)
    replies.close()


def test_hops_that_are_this_host_are_skipped(site: Site) -> None:
    arrivals = departures(site.proxy1, site.switch)
    inner = tcp4(site.client.ipv4, 4711, ACK)
    hops = [site.proxy1.ipv4, site.proxy1.ipv4, site.proxy2.ipv4]
    site.director.send(encapsulate(inner, site.director.host.ipv4, hops))
    assert parse_tunnel(next_tunnel_packet(arrivals)).gue.next_hop == 2
    site.cleanup.callback(site.proxy1.run, "ip", "addr", "del", "10.99.0.123/32", "dev", "lo")
    site.proxy1.run("ip", "addr", "add", "10.99.0.123/32", "dev", "lo")  # from now on this host's, too

    def skipped() -> bool:
        site.director.send(encapsulate(inner, site.director.host.ipv4, [site.proxy1.ipv4, "10.99.0.123"]))
        return site.agents[0].counters().get("last_resort", 0) > 0

    eventually(skipped)
    arrivals.close()
