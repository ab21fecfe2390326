"""The xdp engine's life: what goes on without the agent, how the next one takes over, what detach leaves."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from glb import _bpf
from glb.errors import DeviceError
from proxy_agent import xdp
from proxy_agent.config import MAX_VIPS
from proxy_agent.engine import Guard
from tests.netns.agents import VIP4, VIP6, Agent, Client, Director, NamedServer, fleet
from tests.netns.directors import numbered_load
from tests.netns.test_agent_life import (
    ARP_SYSCTLS,
    ENGINE_SYSCTLS,
    RULES,
    before,
    during,
    sysctls,
    vips_on_lo,
)
from tests.netns.test_agent_second_chance import tcp4
from tests.netns.topology import Host, Switch, eventually

pytestmark = [pytest.mark.netns, pytest.mark.bpf]

SO_RCVBUFFORCE = 33


@pytest.fixture
def pins(bpffs: Path) -> Path:
    return bpffs / "agent-life"


@pytest.fixture
def net() -> Iterator[Switch]:
    with fleet() as switch:
        yield switch


@pytest.fixture
def agent(net: Switch, tmp_path: Path, pins: Path) -> Iterator[Agent]:
    agent = Agent(net["proxy1"], tmp_path, engine="xdp", pin_dir=str(pins))
    yield agent
    agent.stop()
    agent.detach()


def program(host: Host) -> int:
    """Id of the XDP program on the host's eth0; 0: none."""
    with host.inside():
        return int(_bpf.attached_xdp(socket.if_nametoindex("eth0"))[0])


def end(agent: Agent, number: int) -> None:
    agent.signal(number)
    agent.wait()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_program_judges_on_while_no_agent_runs_and_is_taken_over(net: Switch, agent: Agent, number: int) -> None:
    agent.start()
    director = Director(net["director"], [net["proxy1"], net["proxy2"]])
    server = NamedServer(agent.host, VIP4)
    client = Client(net["client"], VIP4)
    try:
        assert client.ask("before") == "proxy1: before"
        first = program(agent.host)
        end(agent, number)
        assert program(agent.host) == first
        assert sysctls(agent, {**ENGINE_SYSCTLS, **ARP_SYSCTLS}) == during({**ENGINE_SYSCTLS, **ARP_SYSCTLS})
        assert client.ask("without an agent") == "proxy1: without an agent"
        new = Client(net["client"], VIP4)
        assert new.ask("new") == "proxy1: new"
        new.close()
        agent.start()
        assert program(agent.host) not in (0, first)
        assert "took over the program of an earlier agent" in agent.log()
        assert client.ask("after") == "proxy1: after"
        assert agent.counters().get("established", 0) >= 1
    finally:
        client.close()
        server.close()
        director.close()


def test_detach_leaves_nothing(agent: Agent, pins: Path) -> None:
    agent.start()
    assert len(list(pins.iterdir())) == 1
    agent.stop()
    assert program(agent.host)
    assert agent.detach() == "detached\n"
    eventually(lambda: program(agent.host) == 0)
    assert list(pins.iterdir()) == []
    every = {**ENGINE_SYSCTLS, **ARP_SYSCTLS}
    assert sysctls(agent, every) == before(every)
    assert vips_on_lo(agent) == set()
    assert [path.name for path in (agent.directory / "state").iterdir()] == ["eth0.lock"]
    assert agent.detach() == "detached\n"  # again: nothing to do


def test_without_a_pin_everything_but_the_vips_goes_with_the_agent(agent: Agent) -> None:
    agent.write_config(pin_dir="")
    agent.start()
    assert "will not outlive this process" in agent.log()
    agent.stop()
    eventually(lambda: program(agent.host) == 0)
    assert sysctls(agent, ENGINE_SYSCTLS) == before(ENGINE_SYSCTLS)
    assert vips_on_lo(agent) == {VIP4, VIP6}


def test_failed_start_leaves_the_host_as_it_was(agent: Agent, pins: Path) -> None:
    agent.write_config(admin="unix:/nonexistent/directory/admin.sock")
    with pytest.raises(AssertionError, match=r"admin"):
        agent.start()
    assert agent.wait() == 1
    eventually(lambda: program(agent.host) == 0)
    assert list(pins.iterdir()) == []
    assert sysctls(agent, ENGINE_SYSCTLS) == before(ENGINE_SYSCTLS)


def test_failed_start_of_an_upgrade_leaves_a_program_that_judges(net: Switch, agent: Agent) -> None:
    agent.start()
    director = Director(net["director"], [net["proxy1"]])
    server = NamedServer(agent.host, VIP4)
    try:
        agent.stop()
        agent.write_config(admin="unix:/nonexistent/directory/admin.sock")
        with pytest.raises(AssertionError):
            agent.start()
        agent.wait()
        assert sysctls(agent, ENGINE_SYSCTLS) == during(ENGINE_SYSCTLS)
        client = Client(net["client"], VIP4)
        assert client.ask("hello") == "proxy1: hello"
        client.close()
    finally:
        server.close()
        director.close()


def test_engine_changes_from_xdp_to_netfilter_and_back(net: Switch, agent: Agent, pins: Path) -> None:
    director = Director(net["director"], [net["proxy1"]])
    agent.start()
    server = NamedServer(agent.host, VIP4)
    client = Client(net["client"], VIP4)
    try:
        for engine in ("netfilter", "xdp"):
            for number in (signal.SIGKILL, signal.SIGTERM):
                end(agent, number)
                agent.write_config(engine=engine)
                agent.start()
                assert agent.status()["engine"] == engine
                assert (agent.rules() == RULES) == (engine == "netfilter")
                eventually(lambda engine=engine: (program(agent.host) == 0) == (engine == "netfilter"))
                assert sysctls(agent, ENGINE_SYSCTLS) == during(ENGINE_SYSCTLS)
                assert client.ask(engine) == f"proxy1: {engine}"
    finally:
        client.close()
        server.close()
        director.close()


def test_somebody_elses_program_is_left_alone(agent: Agent) -> None:
    with agent.host.inside():
        other = _bpf.BpfObject(Path(_bpf.__file__).parent / "bpf_objects" / "director.bpf.o")
        link = _bpf.attach_xdp(other.program("glb_director"), socket.if_nametoindex("eth0"))
    theirs = program(agent.host)
    try:
        with pytest.raises(AssertionError):
            agent.start()
        assert agent.wait() == 1
        assert f"eth0 has another XDP program already, in native mode: glb_director (id {theirs})" in agent.log()
        assert program(agent.host) == theirs
        agent.write_config(engine="auto")
        agent.start()
        assert agent.status()["engine"] == "netfilter"
        assert "engine = auto: netfilter, since xdp does not work here" in agent.log()
        assert program(agent.host) == theirs
        agent.stop()
    finally:
        os.close(link)
        other.close()


def test_reload_changes_vips_and_sources(net: Switch, agent: Agent) -> None:
    agent.write_config(vips=[VIP6])
    agent.start()
    director = Director(net["director"], [net["proxy1"]])
    try:
        agent.reload(vips=[VIP4], allowed_sources=[net["director"].ipv4])
        assert vips_on_lo(agent) == {VIP4}
        server = NamedServer(agent.host, VIP4)
        client = Client(net["client"], VIP4)
        assert client.ask("hello") == "proxy1: hello"
        agent.reload(vips=["198.51.100.300"])
        assert "$.vips[0]: '198.51.100.300' is no IP address or prefix" in agent.log()
        assert client.ask("still here") == "proxy1: still here"
        agent.reload(vips=[VIP4], allowed_sources=["10.0.0.0/30"])
        agent.mark()
        director.send(director.encapsulate(b"\x45" + bytes(19)))
        eventually(lambda: agent.counters().get("not_allowed") == 1)
        agent.reload(allowed_sources=None)
        assert client.ask("again") == "proxy1: again"
        client.close()
        server.close()
    finally:
        director.close()


def test_bounce_to_a_neighbour_that_is_not_known_yet_goes_by_the_hosts_stack(net: Switch, agent: Agent) -> None:
    second = Agent(net["proxy2"], agent.directory.parent, engine="xdp", pin_dir=agent.keys["pin_dir"]).start()
    director = Director(net["director"], [net["proxy2"]])
    server = NamedServer(second.host, VIP4)
    agent.start()
    try:
        client = Client(net["client"], VIP4)
        agent.host.run("ip", "neigh", "del", second.host.ipv4, "dev", "eth0")
        director.lead(net["proxy1"], net["proxy2"])
        assert client.ask("hello") == "proxy2: hello"
        by_host = [
            line for line in agent.get("/metrics")[1].splitlines() if line.startswith("glb_agent_bounced_by_host")
        ]
        assert float(by_host[-1].split()[-1] if "created" not in by_host[-1] else by_host[0].split()[-1]) >= 1
        client.close()
    finally:
        server.close()
        director.close()
        second.stop()
        second.detach()


def test_no_packet_is_lost_while_the_agent_is_killed_and_restarted_under_traffic(net: Switch, agent: Agent) -> None:
    """UDP to a VIP through the tunnel: TCP would send again what was lost."""
    agent.start()
    director = Director(net["director"], [net["proxy1"]])
    with agent.host.inside():
        receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        receiver.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 26)
        receiver.bind((VIP4, 81))
        receiver.settimeout(5)
    with numbered_load(net["client"], VIP4, 81) as sent:
        for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL):
            end(agent, number)
            agent.start()
            agent.reload(vips=[VIP4, VIP6, "203.0.113.7"])
    try:
        assert sent[0] > 500
        arrived = {receiver.recv(100) for _ in range(sent[0])}
        assert len(arrived) == sent[0]
    finally:
        receiver.close()
        director.close()


def test_jumbo_frames_of_several_buffers_are_accepted_and_bounced(tmp_path: Path, bpffs: Path) -> None:
    """At this MTU the kernel attaches only programs that know of such frames, and hands them over in pages."""
    with fleet(mtu=9000) as net, ExitStack() as stack:
        agents = [
            Agent(net[name], tmp_path, engine="xdp", pin_dir=str(bpffs / "jumbo")) for name in ("proxy1", "proxy2")
        ]
        for agent in agents:
            agent.start()
            stack.callback(agent.detach)
            stack.callback(agent.stop)
        stack.callback(NamedServer(net["proxy2"], VIP4).close)
        director = Director(net["director"], [net["proxy2"]])
        stack.callback(director.close)
        client = Client(net["client"], VIP4)
        stack.callback(client.close)
        director.lead(net["proxy1"], net["proxy2"])
        for length in (1400, 3500, 5000, 8800):
            assert client.ask("x" * length) == "proxy2: " + "x" * length
        assert agents[0].counters()["bounce"] >= 4
        assert "dropped" not in agents[1].log()


def container(host: Host) -> Host:
    """A network namespace behind the host that has VIP4; it goes with the host's namespace, but for its name."""
    inside = Host("container", f"{host.namespace}-container", 77)
    subprocess.run(["ip", "netns", "add", inside.namespace], check=True)
    host.run("ip", "link", "add", "c0", "type", "veth", "peer", "name", "eth0", "netns", inside.namespace)
    host.run("ip", "addr", "add", "10.98.0.1/24", "dev", "c0")
    host.run("ip", "link", "set", "c0", "up")
    host.sysctl("net/ipv4/conf/c0/forwarding", 1)
    for command in (
        "link set lo up",
        "link set eth0 up",
        "addr add 10.98.0.2/24 dev eth0",
        f"addr add {VIP4}/32 dev lo",
    ):
        inside.run("ip", *command.split())
    inside.run("ip", "route", "add", "default", "via", "10.98.0.1")
    inside.run("ethtool", "-K", "eth0", "tx", "off")
    host.run("ip", "route", "add", f"{VIP4}/32", "via", "10.98.0.2")
    return inside


def test_sockets_of_a_container_are_found_where_it_is_listed(net: Switch, agent: Agent) -> None:
    inside = container(agent.host)
    server = NamedServer(inside, VIP4)
    director = Director(net["director"], [net["proxy1"], net["proxy2"]])
    agent.write_config(vips_on_lo=False, socket_namespaces=["not-there", inside.namespace])
    agent.start()
    try:
        assert "socket_namespaces: there is no not-there (yet)" in agent.log()
        client = Client(net["client"], VIP4)
        assert client.ask("hello") == "container: hello"
        assert set(agent.counters()) == {"syn", "established"}
        assert vips_on_lo(agent) == set()
        agent.reload(socket_namespaces=[])
        agent.mark()
        director.send(director.encapsulate(tcp4(net["client"].ipv4, client.port, 0x10)))
        eventually(lambda: agent.counters() == {"bounce": 1})
        agent.reload(socket_namespaces=[f"/run/netns/{inside.namespace}"])
        assert client.ask("again") == "container: again"
        client.close()
    finally:
        server.close()
        director.close()
        subprocess.run(["ip", "netns", "del", inside.namespace], check=True)


def test_second_agent_and_detach_are_refused_while_one_runs(agent: Agent) -> None:
    agent.start()
    with pytest.raises(AssertionError, match="runs for eth0"):
        agent.host.run(sys.executable, "-m", "proxy_agent.cli", "detach", "--config", str(agent.config_path))
    assert program(agent.host)


def test_guard_that_the_maps_have_no_room_for_leaves_nothing_and_one_of_full_size_replaces_another() -> None:
    me = ("10.0.0.1",)
    first = int(ip_address("10.0.0.0"))
    prefixes = [ip_network((first + 256 * i, 24)) for i in range(2 * MAX_VIPS + 1)]
    program = xdp.Program(xdp.options(19523, 0, by_redirect=False))

    def accepted() -> list[bool]:
        vips = program._object.map("glb_vips4")
        return [_bpf.lookup_map(vips, xdp.prefix_key(prefix), 1) is not None for prefix in prefixes]

    with closing(program):
        for n_first in (0, MAX_VIPS):
            program.adopt(Guard(tuple(prefixes[n_first : n_first + MAX_VIPS]), None, me))
            before = accepted()
            assert sum(before) == MAX_VIPS
            with pytest.raises(DeviceError, match="updating a map"):
                program.adopt(Guard(tuple(prefixes), None, me))
            assert accepted() == before
