"""glbctl mtu-check in a small network with one link that is too small: what it finds, says, and exits with."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.netns.agents import REPOSITORY, VIP4, VIP6, Agent
from tests.netns.topology import Host, Switch

pytestmark = [pytest.mark.netns, pytest.mark.bpf, pytest.mark.usefixtures("netfilter")]

NEEDED = 1540  # a client's 1500 bytes, two hops


# What an engine has no part in.
ONE_ENGINE = pytest.mark.parametrize("site", ["xdp"], indirect=True)


class Site(NamedTuple):
    net: Switch
    agents: dict[str, Agent]
    tables: Path


class Outcome(NamedTuple):
    exit_code: int
    links: dict[tuple[str | None, str], dict[str, Any]]  # by from (None: this host), to
    said: str


@pytest.fixture(scope="module", params=["xdp", "netfilter"])
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, bpffs: Path) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("mtu")
    with Switch("director", "proxy1", "proxy2", "proxy3", mtu=2000) as net, ExitStack() as stack:
        agents = {}
        for name in ("proxy1", "proxy2", "proxy3"):
            net.core.run("ethtool", "-K", name, "gro", "on")
            agent = Agent(net[name], folder, engine=request.param, pin_dir=str(bpffs / f"mtu-{name}"))
            agents[name] = agent
            stack.callback(agent.detach)
            stack.callback(agent.stop)
            agent.launch()
        for agent in agents.values():
            agent.await_notice("READY=1")
        yield Site(net, agents, folder / "tables.json")


@pytest.fixture(autouse=True)
def equal_links(site: Site) -> None:
    for name in site.agents:
        set_mtu(site.net, name, 2000)


def set_mtu(net: Switch, name: str, mtu: int) -> None:
    """What the host's link carries; the host itself does not know of it."""
    net.core.run("ip", "link", "set", name, "mtu", str(mtu))


def check(site: Site, *options: str, hops: int = 2, vip: str = VIP4, absent: tuple[Host, ...] = ()) -> Outcome:
    """Run it on the director."""
    proxies = [agent.host.ipv4 for agent in site.agents.values()] + [host.ipv4 for host in absent]
    table = {
        "hash_key": "00" * 16,
        "seed": "11" * 16,
        "hops": hops,
        "binds": [{"ip": vip, "proto": "tcp", "port": 443}],
        "backends": [{"ip": proxy, "state": "active", "healthy": True} for proxy in proxies],
    }
    site.tables.write_text(json.dumps({"tables": [table]}))
    command = [sys.executable, "-m", "glb.ctl.cli", "mtu-check", str(site.tables), "--timeout", "0.1", *options]
    ran = site.net["director"].start(*command, "-o", "json", stdout=-1, stderr=-1, cwd=REPOSITORY)
    output, said = ran.communicate(timeout=60)
    assert output, said
    return Outcome(ran.returncode, {(link["from"], link["to"]): link for link in json.loads(output)["links"]}, said)


@pytest.mark.parametrize("vip", [VIP4, VIP6], ids=["ipv4", "ipv6"])
def test_links_that_are_large_enough_pass(site: Site, vip: str) -> None:
    if vip == VIP6:
        site.net["director"].run("ip", "-6", "route", "replace", f"{VIP6}/128", "dev", "eth0")
    one, two, three = (agent.host.ipv4 for agent in site.agents.values())
    found = check(site, vip=vip)
    assert (found.exit_code, found.said) == (0, "")
    assert list(found.links) == [(None, one), (None, two), (None, three), (one, two), (two, three), (three, one)]
    assert {(link["verdict"], link["path_mtu"], link["needed"]) for link in found.links.values()} == {
        ("ok", NEEDED, NEEDED)
    }


def test_small_link_is_found_to_the_byte_with_the_mss_that_fits(site: Site) -> None:
    one, two, three = (agent.host.ipv4 for agent in site.agents.values())
    set_mtu(site.net, "proxy2", 1533)
    found = check(site)
    assert found.exit_code == 3
    small = found.links[None, two]
    assert (small["verdict"], small["path_mtu"]) == ("too small", 1533)
    assert small["mss"] == {"ipv4": 1533 - 80, "ipv6": 1533 - 100}
    assert f"this host -> {two}: carries 1533 bytes, {NEEDED} are needed" in found.said
    assert found.links[None, one]["verdict"] == found.links[three, one]["verdict"] == "ok"
    assert found.links[one, two]["path_mtu"] == 1533  # into the same port of the switch
    # As many hops as tables have, and other clients.
    assert check(site, "--client-mtu", "1493").exit_code == 0
    assert check(site, "--client-mtu", "1493", hops=3).exit_code == 3


def test_link_between_proxies_alone_is_found(site: Site) -> None:
    """proxy1 has a route to proxy2 that is too small; everybody else's way there is not."""
    one, two, _ = (agent.host.ipv4 for agent in site.agents.values())
    proxy1 = site.agents["proxy1"].host
    proxy1.run("ip", "route", "add", f"{two}/32", "dev", "eth0", "mtu", "lock", "1521")  # what XDP heeds, too
    try:
        found = check(site)
    finally:
        proxy1.run("ip", "route", "del", f"{two}/32")
    assert found.exit_code == 3
    assert {way for way, link in found.links.items() if link["verdict"] != "ok"} == {(one, two)}
    assert found.links[one, two]["path_mtu"] == 1521


@ONE_ENGINE
def test_small_link_whose_proxy_clamps_the_mss_is_well(site: Site) -> None:
    agent = site.agents["proxy2"]
    set_mtu(site.net, "proxy2", 1500)
    url = f"--agent={agent.host.ipv4}=unix:{agent.admin_path}"
    assert check(site, url).exit_code == 3
    agent.reload(mss=1400)  # IPv6 in a tunnel with two hops
    try:
        found = check(site, url)
        assert found.links[None, agent.host.ipv4]["verdict"] == "clamped"
        assert found.exit_code == 0
    finally:
        agent.reload(mss="off")


@ONE_ENGINE
def test_proxy_that_answers_nothing_is_named_with_likely_reasons(site: Site) -> None:
    absent = Host("absent", "nowhere", 77)
    found = check(site, absent=(absent,))
    assert found.exit_code == 1
    assert found.links[None, absent.ipv4]["verdict"] == "no answer"
    assert "allowed_sources" in found.said
    three = site.agents["proxy3"].host.ipv4
    assert found.links[three, absent.ipv4]["verdict"] == "not tried"


def test_fellow_proxy_that_is_not_an_allowed_source_is_named(site: Site) -> None:
    one, two, three = (agent.host.ipv4 for agent in site.agents.values())
    director = site.net["director"].ipv4
    site.agents["proxy2"].reload(allowed_sources=[director, three])
    try:
        found = check(site)
    finally:
        site.agents["proxy2"].reload(allowed_sources=None)
    assert found.exit_code == 1
    assert {way for way, link in found.links.items() if link["verdict"] != "ok"} == {(one, two)}
    assert f"is {one} in the allowed_sources of {two}" in found.said


@ONE_ENGINE
def test_router_that_says_what_the_next_link_carries_is_named(site: Site) -> None:
    """The switch's host routes to proxy3, by a link that it knows to be small."""
    core, director, three = site.net.core, site.net["director"], site.net["proxy3"]
    core.run("ip", "addr", "add", "10.99.0.250/24", "dev", "br0")
    core.sysctl("net/ipv4/ip_forward", 1)
    core.sysctl("net/ipv4/conf/all/send_redirects", 0)
    core.sysctl("net/ipv4/conf/br0/send_redirects", 0)
    core.run("ip", "route", "add", f"{three.ipv4}/32", "dev", "br0", "mtu", "1512")
    director.run("ip", "route", "add", f"{three.ipv4}/32", "via", "10.99.0.250")
    try:
        found = check(site)
    finally:
        director.run("ip", "route", "del", f"{three.ipv4}/32")
        core.run("ip", "route", "del", f"{three.ipv4}/32")
        core.run("ip", "addr", "del", "10.99.0.250/24", "dev", "br0")
    link = found.links[None, three.ipv4]
    assert (link["verdict"], link["path_mtu"]) == ("too small", 1512)
    assert link["routers"] == [{"address": "10.99.0.250", "mtu": 1512}]
    assert found.exit_code == 3
    assert "10.99.0.250 says that the next link carries 1512 bytes" in found.said


@ONE_ENGINE
def test_own_interface_that_is_too_small_is_named(site: Site) -> None:
    director = site.net["director"]
    director.run("ip", "link", "set", "eth0", "mtu", "1500")
    try:
        found = check(site)
    finally:
        director.run("ip", "link", "set", "eth0", "mtu", "2000")
    assert found.exit_code == 3
    assert {link["path_mtu"] for way, link in found.links.items() if way[0] is None} == {1500}
    assert "larger than the MTU of this host's own interface" in found.said


@ONE_ENGINE
def test_vip_that_this_host_has_no_route_to_is_told_of_by_its_links(site: Site) -> None:
    """Answers to IPv6 packets need a source that the VIP's proxies reach."""
    site.net["director"].run("ip", "-6", "route", "flush", f"{VIP6}/128")
    one = site.agents["proxy1"].host.ipv4
    found = check(site, vip=VIP6)
    assert found.exit_code == 1
    assert found.links[None, one]["verdict"] == "no answer"
    assert f"this host -> {one}: this host did not send: no route to {VIP6}" in found.said


@ONE_ENGINE
def test_firewall_that_drops_segments_of_unknown_flows_is_among_the_reasons(site: Site) -> None:
    one, two, _ = (agent.host.ipv4 for agent in site.agents.values())
    rule = ("INPUT", "-p", "tcp", "-m", "conntrack", "--ctstate", "NEW,INVALID", "-j", "DROP")
    proxy2 = site.agents["proxy2"].host
    proxy2.run("iptables-legacy", "-I", *rule)
    try:
        found = check(site)
    finally:
        proxy2.run("iptables-legacy", "-D", *rule)
    assert {way for way, link in found.links.items() if link["verdict"] == "no answer"} == {(one, two)}
    assert f"does no firewall at {two} drop TCP segments of unknown flows" in found.said
