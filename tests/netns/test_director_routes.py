"""The next hop that a director takes from a route by an IPv6 gateway."""

from __future__ import annotations

import json

import pytest
from test_director import VIP, send_udp
from test_director_egress import PROXY, TwoNetworks
from test_director_egress import director as director  # the fixture
from topology import Host, eventually

pytestmark = [pytest.mark.netns, pytest.mark.bpf]
MOVED_MAC = "02:98:00:00:0a:0a"


def link_local(host: Host, interface: str) -> str:
    (shown,) = json.loads(host.run("ip", "-j", "-6", "addr", "show", "dev", interface, "scope", "link"))
    return str(shown["addr_info"][0]["local"])


def mac(host: Host, interface: str) -> str:
    return str(json.loads(host.run("ip", "-j", "link", "show", interface))[0]["address"])


def test_a_route_by_an_ipv6_gateway_leads_to_that_neighbour_and_follows_it(director: TwoNetworks) -> None:
    director.connect()
    net, proxy = director.net, director.net["proxy1"]
    gateway = link_local(proxy, "eth1")
    director.host.run("ip", "route", "replace", PROXY, "via", "inet6", gateway, "dev", "eth1")
    listener = director.listen("proxy1", "eth1")
    director.start()
    send_udp(net["client"], VIP, 80)
    frame, tunnel = listener.next()
    assert (frame.dst, str(tunnel.destination)) == (mac(proxy, "eth1"), PROXY)
    assert director.leaves_by("eth1")
    neighbour = ("ip", "-6", "neigh", "replace", gateway, "lladdr", MOVED_MAC, "dev", "eth1", "nud", "permanent")
    director.host.run(*neighbour)

    def moved() -> bool:
        send_udp(net["client"], VIP, 80)
        return bool(listener.next()[0].dst == MOVED_MAC)

    eventually(moved)
    director.route("eth0")
    eventually(lambda: director.leaves_by("eth0"))


@pytest.mark.parametrize("director", ["cython"], indirect=True)
def test_an_ipv6_gateway_that_does_not_answer_is_a_fault_that_names_it(director: TwoNetworks) -> None:
    director.connect()
    director.host.run("ip", "route", "replace", PROXY, "via", "inet6", "fe80::dead", "dev", "eth1")
    director.start()
    assert director.backend()["fault"] == "its gateway fe80::dead does not answer neighbour discovery on eth1"
