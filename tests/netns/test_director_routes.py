"""The next hop that a director takes from a route: by an IPv6 gateway, and while thousands of other routes change."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.netns.directors import VIP, numbered_load, send_udp
from tests.netns.test_director_egress import PROXY, TwoNetworks
from tests.netns.test_director_egress import director as director  # the fixture
from tests.netns.topology import Host, eventually, repeating

pytestmark = [pytest.mark.netns, pytest.mark.bpf]
N_ROUTES = 20_000
N_BACKENDS = 250
FLOODED_WITHIN_S = 60.0  # each step takes a second at most, where nothing else runs
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


@contextmanager
def changing_routes(host: Host) -> Iterator[list[int]]:
    """Thousands of routes that lead to no backend are added and removed while the block lasts; how often all were."""
    routes = [f"10.{128 + n // 256}.{n % 256}.0/24 dev eth0" for n in range(N_ROUTES)]

    def change(_: int) -> None:
        for verb in ("add", "del"):
            lines = "".join(f"route {verb} {route}\n" for route in routes)
            subprocess.run(["ip", "-n", host.namespace, "-batch", "-"], input=lines, text=True, check=True)

    with repeating(change) as rounds:
        yield rounds


@pytest.mark.parametrize("director", ["xdp"], indirect=True)
def test_thousands_of_other_routes_hide_no_change_of_a_backends(director: TwoNetworks) -> None:
    director.connect()
    backends = [f"10.97.0.{n}" for n in range(1, 1 + N_BACKENDS)]
    director.write_table("proxy1", backends=[{"ip": ip, "state": "active", "healthy": True} for ip in backends])
    host, net = director.host, director.net
    host.run("ip", "route", "add", "10.97.0.0/24", "via", net["proxy1"].ipv4)
    listener = director.listen("proxy1", "eth1")
    director.start()

    def all_moved() -> bool:
        (table,) = director.status()["tables"]
        return {backend["interface"] for backend in table["backends"]} == {"eth1"}

    with numbered_load(net["client"]), changing_routes(host) as rounds:
        eventually(lambda: rounds[0] >= 1, within_s=FLOODED_WITHIN_S)
        host.run("ip", "route", "replace", "10.97.0.0/24", "via", "10.98.0.2", "dev", "eth1")
        eventually(lambda: not listener.empty(), within_s=FLOODED_WITHIN_S)
        eventually(all_moved, within_s=FLOODED_WITHIN_S)
        followed_in = rounds[0]
        eventually(lambda: rounds[0] > followed_in, within_s=FLOODED_WITHIN_S)  # they were still changing
    assert director.metric("glb_director_drops_total") == 0
