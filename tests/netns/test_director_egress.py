"""Tunnel packets that leave by another interface than their packets came in by: on the wire, in both datapaths."""

from __future__ import annotations

import errno
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Raw

from tests.netns.directors import (
    IP_MTU,
    IP_MTU_DISCOVER,
    PACKET_AUXDATA,
    PMTUDISC_DO,
    SO_RCVBUFFORCE,
    SOL_PACKET,
    VIP,
    VIP6,
    Director,
    numbered_load,
    passing_program,
    port_of,
    send_udp,
)
from tests.netns.topology import Switch, eventually

pytestmark = [pytest.mark.netns, pytest.mark.bpf]

PROXY = "10.97.0.1"  # of proxy1; reached by either network
SECOND_MAC = "02:98:00:00:00:01"
TP_STATUS_VLAN_VALID = 1 << 4
OVERHEAD = 36


class TwoNetworks(Director):
    """The director and proxy1 have a second network between them, 10.98.0.0/24 on eth1."""

    def connect(self, mtu: int = 1500, *, gro: bool = True, mac: str = SECOND_MAC) -> None:
        proxy = self.net["proxy1"]
        link = ("link", "add", "eth1", "mtu", str(mtu), "type", "veth", "peer", "name", "eth1", "mtu", str(mtu))
        self.host.run("ip", *link, "netns", proxy.namespace)
        self.host.run("ip", "link", "set", "eth1", "address", mac)
        for host, n in ((self.host, 1), (proxy, 2)):
            host.run("ip", "addr", "add", f"10.98.0.{n}/24", "dev", "eth1")
            host.run("ip", "link", "set", "eth1", "up")
        if gro:
            self.take_xdp("on")

    def take_xdp(self, gro: str) -> None:
        """Whether what XDP sends by eth1 arrives: the kernel says it of the director's end."""
        self.net["proxy1"].run("ethtool", "-K", "eth1", "gro", gro)

    def route(self, interface: str, *more: str) -> None:
        gateway = {"eth0": self.net["proxy1"].ipv4, "eth1": "10.98.0.2"}[interface]
        self.host.run("ip", "route", "replace", PROXY, "via", gateway, "dev", interface, *more)

    def backend(self) -> dict[str, str]:
        (backend,) = self.status()["tables"][0]["backends"]
        return dict(backend)

    def leaves_by(self, interface: str) -> bool:
        backend = self.backend()
        return backend["interface"] == interface and backend["fault"] is None


@pytest.fixture(params=["cython", "xdp"])
def director(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[TwoNetworks]:
    with Switch("client", "director", "proxy1") as net, passing_program(net, "director"):
        client = net["client"]
        client.run("ip", "route", "add", f"{VIP}/32", "via", net["director"].ipv4)
        client.run("ip", "-6", "route", "add", f"{VIP6}/128", "via", net["director"].ipv6)
        director = TwoNetworks(net, tmp_path, request.param)
        director.write_table("proxy1", backends=[{"ip": PROXY, "state": "active", "healthy": True}])
        yield director
        director.end()


def accelerated(director: Director) -> float:
    return director.metric("glb_director_accelerated_packets_total")


@pytest.mark.parametrize("redirected", [True, False])
def test_packets_leave_by_the_interface_of_the_route(director: TwoNetworks, redirected: bool) -> None:
    director.connect(gro=redirected)
    director.route("eth1")
    listener = director.listen("proxy1", "eth1")
    director.start()
    for vip in (VIP, VIP6):
        send_udp(director.net["client"], vip, 80)
        frame, tunnel = listener.next()
        assert frame.src == SECOND_MAC
        assert frame.dst in director.net["proxy1"].run("ip", "link", "show", "eth1")
        assert str(tunnel.source) == director.host.ipv4, "as before: the interface that packets come in by"
        assert str(tunnel.destination) == PROXY and tunnel.inner.endswith(b"x" * 20)
    in_kernel = redirected and director.status()["engine"] == "accelerated"
    assert accelerated(director) == (2 if in_kernel else 0)
    assert director.metric("glb_director_packets_total") == 2
    assert director.backend()["interface"] == "eth1"
    assert director.metric("glb_director_drops_total") == director.metric("glb_director_lost_total") == 0


@pytest.mark.parametrize("director", ["xdp"], indirect=True)
def test_a_driver_that_stops_taking_frames_from_xdp_is_served_from_user_space(director: TwoNetworks) -> None:
    director.connect()
    director.route("eth1")
    listener = director.listen("proxy1", "eth1")
    director.start()
    director.take_xdp("off")
    director.host.run("ip", "link", "set", "eth1", "txqueuelen", "999")  # any event makes the director look again
    said = "packets that leave by eth1 are sent from user space"
    eventually(lambda: said in director.log.read_text())
    before = accelerated(director)
    send_udp(director.net["client"], VIP, 80)
    listener.next()
    assert accelerated(director) == before


def test_the_source_address_that_is_configured_is_used_on_every_interface(director: TwoNetworks) -> None:
    director.configure('outbound_src_mac = "02:00:00:00:0b:0b"\n')
    director.connect()
    director.route("eth1")
    listener = director.listen("proxy1", "eth1")
    director.start()
    send_udp(director.net["client"], VIP, 80)
    assert listener.next()[0].src == "02:00:00:00:0b:0b"


@pytest.mark.parametrize("by", ["link", "route"])
def test_what_fits_is_what_fits_the_other_interface_or_its_route(director: TwoNetworks, by: str) -> None:
    director.connect(mtu=1400 if by == "link" else 1500)
    director.route("eth1", *(("mtu", "1400") if by == "route" else ()))
    listener = director.listen("proxy1", "eth1")
    director.start()
    with director.net["client"].inside(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, PMTUDISC_DO)
        sender.connect((VIP, 80))
        sender.send(bytes(1400 - OVERHEAD - 28 + 1))
        eventually(lambda: sender.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.EMSGSIZE)
        assert sender.getsockopt(socket.IPPROTO_IP, IP_MTU) == 1400 - OVERHEAD
        sender.send(b"m" * (1400 - OVERHEAD - 28))
    assert listener.next()[1].inner.endswith(b"m" * 100)
    assert director.metric('glb_director_drops_total{reason="too_big",table="web"}') == 1


@pytest.mark.parametrize("tags", [1, 2])
def test_tags_stay_on_the_interface_that_they_came_in_by(director: TwoNetworks, tags: int) -> None:
    director.connect()
    director.route("eth1")
    listener = director.listen("proxy1", "eth1")
    listener.socket.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
    director.start()
    net = director.net
    packet = IP(src=net["client"].ipv4, dst=VIP) / UDP(dport=80) / Raw(b"x" * 20)
    frame = Ether(src=net["client"].mac, dst=net["director"].mac)
    for vlan in range(tags):
        frame /= Dot1Q(vlan=100 + vlan)

    def received() -> tuple[bytes, bytes] | None:
        try:
            data, ancillary, _, _ = listener.socket.recvmsg(65535, 64)
        except BlockingIOError:
            return None
        return (data, ancillary[0][2]) if data[23] == socket.IPPROTO_UDP else None

    with port_of(net, "director") as port:
        port.send(bytes(frame / packet))
        data, auxiliary = eventually(received)
    assert not int.from_bytes(auxiliary[:4], sys.byteorder) & TP_STATUS_VLAN_VALID
    assert data[12:14] == b"\x08\x00" and Ether(data).src == SECOND_MAC
    assert data[14 + OVERHEAD :] == bytes(packet)


def test_nothing_is_lost_while_routes_move_between_interfaces_under_load(director: TwoNetworks) -> None:
    """The second gateway is not resolved beforehand, and forgotten before every move."""
    director.connect()
    director.route("eth0")
    listeners = [director.listen("proxy1", interface) for interface in ("eth0", "eth1")]
    for listener in listeners:
        listener.socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 26)
    director.start()
    with numbered_load(director.net["client"]) as sent:
        for move in range(8):
            interface = ("eth1", "eth0")[move % 2]
            if interface == "eth1":
                director.host.run("ip", "neigh", "flush", "dev", "eth1")
            director.route(interface)
            eventually(lambda interface=interface: director.leaves_by(interface))
    arrived: list[set[bytes]] = [set(), set()]

    def all_arrived() -> bool:
        for listener, found in zip(listeners, arrived, strict=True):
            while (packet := listener._poll()) is not None:
                found.add(packet[1].inner[28:32])
        return len(arrived[0] | arrived[1]) == sent[0]

    eventually(all_arrived)
    assert all(arrived) and sent[0] > 100
    assert director.metric("glb_director_drops_total") == director.metric("glb_director_lost_total") == 0


def test_an_interface_that_vanishes_is_a_fault_and_one_that_comes_back_is_used(director: TwoNetworks) -> None:
    director.connect()
    director.route("eth1")
    listener = director.listen("proxy1", "eth1")
    director.start()
    send_udp(director.net["client"], VIP, 80)
    listener.next()
    director.host.run("ip", "link", "del", "eth1")
    eventually(lambda: "no route" in (director.backend()["fault"] or ""))
    assert director.backend()["interface"] is None
    send_udp(director.net["client"], VIP, 80)
    eventually(lambda: director.metric('glb_director_drops_total{reason="no_next_hop",table="web"}') == 1)
    director.host.run("ip", "link", "add", "name", "other", "type", "bridge")  # takes a number, so eth1 gets another
    director.connect(mac="02:98:00:00:00:02")
    director.route("eth1")
    eventually(lambda: director.leaves_by("eth1"))
    listener = director.listen("proxy1", "eth1")
    send_udp(director.net["client"], VIP, 80)
    assert listener.next()[0].src == "02:98:00:00:00:02"


def test_an_interface_that_gets_another_address_sends_by_that(director: TwoNetworks) -> None:
    director.connect()
    director.route("eth1")
    listener = director.listen("proxy1", "eth1")
    director.start()
    director.host.run("ip", "link", "set", "eth1", "address", "02:98:00:00:00:03")

    def moved() -> bool:
        send_udp(director.net["client"], VIP, 80)
        return bool(listener.next()[0].src == "02:98:00:00:00:03")

    eventually(moved)


@pytest.mark.parametrize("director", ["xdp"], indirect=True)
def test_in_generic_mode_every_interface_takes_what_is_redirected(director: TwoNetworks) -> None:
    """A bridge has no native XDP; eth1 takes no frames from native programs."""
    host, address = director.host, f"{director.host.ipv4}/24"
    host.run("ip", "link", "add", "br0", "type", "bridge")
    host.run("ip", "link", "set", "br0", "address", host.mac)
    host.run("ip", "link", "set", "eth0", "master", "br0")
    host.run("ip", "addr", "del", address, "dev", "eth0")
    host.run("ip", "addr", "add", address, "dev", "br0")
    host.run("ip", "link", "set", "br0", "up")
    director.config.write_text(director.config.read_text().replace('"eth0"', '"br0"'))
    director.connect(gro=False)
    director.route("eth1")
    listener = director.listen("proxy1", "eth1")
    director.start()
    assert director.status()["xdp_mode"] == "generic"
    send_udp(director.net["client"], VIP, 80)
    frame, tunnel = listener.next()
    assert frame.src == SECOND_MAC and str(tunnel.source) == host.ipv4
    assert accelerated(director) == 1


@pytest.mark.parametrize("director", ["cython"], indirect=True)
def test_a_route_to_what_is_no_ethernet_interface_is_a_fault_that_names_it(director: TwoNetworks) -> None:
    director.host.run("ip", "addr", "add", f"{PROXY}/32", "dev", "lo")
    director.start()
    assert "its route leaves by lo, no Ethernet interface" in director.backend()["fault"]


@pytest.mark.parametrize("director", ["xdp"], indirect=True)
def test_with_a_gateway_configured_routes_are_not_followed(director: TwoNetworks) -> None:
    director.configure(f'outbound_gateway_mac = "{director.net["proxy1"].mac}"\n')
    director.connect()
    director.route("eth1")
    listener = director.listen("proxy1")
    director.start()
    send_udp(director.net["client"], VIP, 80)
    assert listener.next()[0].dst == director.net["proxy1"].mac
    assert director.backend()["interface"] == "eth0"
