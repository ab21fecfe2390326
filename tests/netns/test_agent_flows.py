"""Live flows by VIP and bind, counted by the eBPF walk and by inet_diag: the same numbers, from real sockets."""

from __future__ import annotations

import itertools
import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing
from ipaddress import ip_network
from pathlib import Path

import pytest

from glb.errors import DeviceError
from proxy_agent import flows
from proxy_agent.flows import BindFlows, FlowCount, FlowCounter
from tests.netns.agents import VIP4, VIP6, Agent
from tests.netns.topology import NETNS_DIR, Host, Switch, eventually

pytestmark = [pytest.mark.netns, pytest.mark.bpf]

CHURN_TURNS = 50
VIPS = (ip_network(VIP4), ip_network(VIP6))


@pytest.fixture
def net() -> Iterator[Switch]:
    with Switch("client", "proxy1", "container") as switch:
        for host in (switch["proxy1"], switch["container"]):
            host.run("ip", "addr", "add", f"{VIP4}/32", "dev", "lo")
            host.run("ip", "addr", "add", f"{VIP6}/128", "dev", "lo")
        lead(switch, switch["proxy1"])
        yield switch


def lead(net: Switch, host: Host) -> None:
    """The client's way to the VIPs."""
    net["client"].run("ip", "route", "replace", f"{VIP4}/32", "via", host.ipv4)
    net["client"].run("ip", "-6", "route", "replace", f"{VIP6}/128", "via", host.ipv6)


class Counting:
    """A counter on the proxy: whoever asks stays in the test's own network namespace."""

    def __init__(self, host: Host, program: Path | None) -> None:
        self._host = host
        with host.inside():
            self.counter = FlowCounter(program)

    def __call__(self, *vips: str, namespaces: tuple[str, ...] = ()) -> FlowCount:
        with self._host.inside():
            return self.counter.count(tuple(map(ip_network, vips)) or VIPS, namespaces)


@pytest.fixture(params=["bpf", "inet_diag"])
def count(request: pytest.FixtureRequest, net: Switch) -> Iterator[Counting]:
    counting = Counting(net["proxy1"], Path(os.devnull) if request.param == "inet_diag" else None)
    assert (counting.counter.refusal is None) == (request.param == "bpf")
    with closing(counting.counter):
        assert counting().counted_by == request.param
        yield counting


class Server:
    """A listener on a host, and the connections that a client has made to it."""

    def __init__(self, host: Host, address: str, port: int) -> None:
        self._host = host
        with host.inside():
            self.listener = socket.create_server(
                (address, port),
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                dualstack_ipv6=address == "::",
                backlog=256,
            )
        self.port = port
        self.ours: list[socket.socket] = []
        self.theirs: list[socket.socket] = []

    def connect(self, client: Host, vip: str, times: int = 1) -> None:
        with client.inside():
            for _ in range(times):
                self.theirs.append(socket.create_connection((vip, self.port), timeout=10))
                self.ours.append(self.listener.accept()[0])

    def close(self) -> None:
        for each in (self.listener, *self.ours, *self.theirs):
            each.close()


def bind_flows(counted: FlowCount) -> dict[tuple[str, int | None], int]:
    return {(bind.address, bind.port): bind.flows for bind in counted.binds}


def test_flows_are_told_apart_by_vip_and_port_and_family(net: Switch, count: Counting) -> None:
    with ExitStack() as stack:
        everywhere = stack.enter_context(closing(Server(net["proxy1"], "::", 80)))
        bound = stack.enter_context(closing(Server(net["proxy1"], VIP4, 443)))
        elsewhere = stack.enter_context(closing(Server(net["proxy1"], net["proxy1"].ipv4, 22)))
        assert bind_flows(count()) == {(VIP4, 443): 0}  # one for every address is told of once it has flows
        everywhere.connect(net["client"], VIP4, 3)
        everywhere.connect(net["client"], VIP6, 2)
        bound.connect(net["client"], VIP4, 4)
        elsewhere.connect(net["client"], net["proxy1"].ipv4)
        counted = count()
        assert counted.by_vip == {VIP4: 7, VIP6: 2}
        assert bind_flows(counted) == {(VIP4, 80): 3, (VIP4, 443): 4, (VIP6, 80): 2}
        assert count("198.51.100.0/24").binds == (
            BindFlows("198.51.100.0/24", 80, 3),
            BindFlows("198.51.100.0/24", 443, 4),
        )
        assert count("192.0.2.0/24") == FlowCount({"192.0.2.0/24": 0}, (), counted.counted_by)


def test_flows_of_a_server_that_has_stopped_listening_still_count_at_its_port(net: Switch, count: Counting) -> None:
    with closing(Server(net["proxy1"], "0.0.0.0", 80)) as server:
        server.connect(net["client"], VIP4, 2)
        assert bind_flows(count()) == {(VIP4, 80): 2}
        server.listener.close()
        assert bind_flows(count()) == {(VIP4, 80): 2}
        server.close()
        eventually(lambda: bind_flows(count()) == {(VIP4, 80): 0})


def test_connections_that_the_host_makes_from_a_vip_are_counted_in_one(net: Switch, count: Counting) -> None:
    with closing(Server(net["client"], "0.0.0.0", 80)) as server, ExitStack() as stack:
        net["client"].run("ip", "route", "replace", f"{VIP4}/32", "via", net["proxy1"].ipv4)
        with net["proxy1"].inside():
            for _ in range(3):
                address = (net["client"].ipv4, 80)
                stack.enter_context(socket.create_connection(address, source_address=(VIP4, 0), timeout=10))
                stack.enter_context(server.listener.accept()[0])
        assert bind_flows(count()) == {(VIP4, None): 3}


def test_only_flows_to_which_something_may_be_delivered_are_live(net: Switch, count: Counting) -> None:
    with closing(Server(net["proxy1"], VIP4, 80)) as server:
        server.connect(net["client"], VIP4, 4)
        half_closed, close_wait, gone, _ = range(4)
        server.ours[half_closed].shutdown(socket.SHUT_WR)  # FIN_WAIT2, and a process that may read
        server.theirs[close_wait].shutdown(socket.SHUT_WR)
        server.ours[gone].close()  # FIN_WAIT2 of nobody
        eventually(lambda: bind_flows(count()) == {(VIP4, 80): 3})
        server.theirs[gone].close()  # TIME_WAIT
        assert bind_flows(count()) == {(VIP4, 80): 3}


def test_sockets_of_other_namespaces_count_when_listed(net: Switch, count: Counting) -> None:
    container = net["container"]
    with closing(Server(net["proxy1"], VIP4, 80)) as here:
        here.connect(net["client"], VIP4, 2)
        lead(net, container)
        with closing(Server(container, VIP4, 8080)) as there:
            there.connect(net["client"], VIP4, 3)
            assert bind_flows(count()) == {(VIP4, 80): 2}
            for name in (container.namespace, str(NETNS_DIR / container.namespace)):
                counted = count(namespaces=(name, "nowhere"))
                assert bind_flows(counted) == {(VIP4, 80): 2, (VIP4, 8080): 3}
                assert counted.problems == ("nowhere: No such file or directory",)


@pytest.fixture
def apart(net: Switch) -> Iterator[Host]:
    """A network namespace with a table of sockets of its own, made from the proxy's, and with no network but itself."""
    parent = net["proxy1"]
    parent.sysctl("net/ipv4/tcp_child_ehash_entries", 256)
    host = Host("apart", f"{parent.namespace}-apart", 79)
    with parent.inside():
        subprocess.run(["ip", "netns", "add", host.namespace], check=True)
    try:
        host.run("ip", "link", "set", "lo", "up")
        host.run("ip", "addr", "add", f"{VIP4}/32", "dev", "lo")
        assert host.sysctl("net/ipv4/tcp_ehash_entries") == "256"
        yield host
    finally:
        subprocess.run(["ip", "netns", "del", host.namespace], check=True)


def connect_within(host: Host, server: Server, times: int) -> None:
    """From an address that is no VIP."""
    with host.inside():
        for _ in range(times):
            address = (VIP4, server.port)
            server.theirs.append(socket.create_connection(address, source_address=("127.0.0.1", 0), timeout=10))
            server.ours.append(server.listener.accept()[0])


def test_sockets_of_a_namespace_with_a_table_of_its_own_count_as_well(
    net: Switch, count: Counting, apart: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(Server(net["proxy1"], VIP4, 80)) as here, closing(Server(apart, VIP4, 8080)) as there:
        here.connect(net["client"], VIP4, 2)
        connect_within(apart, there, 3)
        both = {(VIP4, 80): 2, (VIP4, 8080): 3}
        assert bind_flows(count(namespaces=(apart.namespace, net["container"].namespace))) == both
        # The other way round: the agent is where the small table is.
        inner = Counting(apart, None if count.counter.refusal is None else Path(os.devnull))
        with closing(inner.counter):
            assert bind_flows(inner(namespaces=(net["proxy1"].namespace,))) == both

        def refuse(fd: int) -> None:
            raise PermissionError(1, "not allowed")

        count()  # forgets the namespace
        monkeypatch.setattr(flows, "enter_namespace", refuse)
        (problem,) = count(namespaces=(apart.namespace,)).problems
        assert ("only if it has no table" if count.counter.refusal is None else "flows are not counted") in problem
        assert "RestrictNamespaces" in problem


def test_bind_that_nobody_needs_any_more_is_forgotten(
    net: Switch, count: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(Server(net["proxy1"], VIP4, 80)) as stays, closing(Server(net["proxy1"], "0.0.0.0", 81)) as leaves:
        for server in (stays, leaves):
            server.connect(net["client"], VIP4)
        assert bind_flows(count()) == {(VIP4, 80): 1, (VIP4, 81): 1}
        leaves.close()
        eventually(lambda: bind_flows(count()) == {(VIP4, 80): 1, (VIP4, 81): 0})
        monkeypatch.setattr(flows, "TOLD_FOR_S", 0.0)
        assert bind_flows(count()) == {(VIP4, 80): 1}


def test_walk_that_fails_is_given_up_with_a_line_in_the_log_and_for_nothing_else(
    net: Switch, caplog: pytest.LogCaptureFixture
) -> None:
    class Refusing:
        def flows(self, *arguments: object) -> None:
            raise DeviceError("the walk does not run")

        def listeners(self, *arguments: object) -> None:
            raise DeviceError("no listeners today")

    count = Counting(net["proxy1"], None)
    with closing(count.counter), closing(Server(net["proxy1"], VIP4, 80)) as server:
        server.connect(net["client"], VIP4)
        own = count.counter._own
        count.counter._own = Refusing()  # type: ignore[assignment]
        with pytest.raises(DeviceError, match="no listeners today"):
            count()
        count.counter._own = own
        assert count().counted_by == "bpf"
        assert caplog.text == ""
        count.counter._walk = Refusing()  # type: ignore[assignment]
        counted = count()
        assert (counted.counted_by, bind_flows(counted)) == ("inet_diag", {(VIP4, 80): 1})
        assert "counted by inet_diag from now on" in caplog.text


def test_flows_that_stay_are_always_counted_while_others_come_and_go(net: Switch, count: Counting) -> None:
    """The walk takes no lock: whatever moves under its feet, it misses nobody."""
    stay, rounds = 100, 60
    with closing(Server(net["proxy1"], VIP4, 80)) as server, closing(Server(net["proxy1"], VIP4, 81)) as churned:
        server.connect(net["client"], VIP4, stay)
        over, enough, turns = threading.Event(), threading.Event(), itertools.count(1)

        def churn() -> None:
            while not over.is_set():
                if next(turns) == CHURN_TURNS:
                    enough.set()
                churned.connect(net["client"], VIP4)
                for each in (churned.theirs.pop(), churned.ours.pop()):
                    each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # leaves at once
                    each.close()

        thread = threading.Thread(target=churn)
        thread.start()
        try:
            assert {bind_flows(count())[VIP4, 80] for _ in range(rounds)} == {stay}
            while not enough.is_set():
                assert thread.is_alive()
                assert bind_flows(count())[VIP4, 80] == stay
        finally:
            over.set()
            thread.join()


def test_agent_tells_flows_by_bind(net: Switch, tmp_path: Path, bpffs: Path) -> None:
    agent = Agent(net["proxy1"], tmp_path, engine="xdp", pin_dir=str(bpffs / "agent-flows"))
    agent.start()
    try:
        with closing(Server(net["proxy1"], VIP4, 80)) as server:
            server.connect(net["client"], VIP4, 2)
            status = agent.status()
            assert status["binds"] == [{"address": VIP4, "protocol": "tcp", "port": 80, "flows": 2}]
            assert (status["flows"], status["flows_total"]) == ({VIP4: 2, VIP6: 0}, 2)
            assert (status["flows_counted_by"], status["flows_problems"]) == ("bpf", [])
            assert f'glb_agent_bind_flows{{port="80",vip="{VIP4}"}} 2.0' in agent.get("/metrics")[1]
    finally:
        agent.stop()
        agent.detach()


def test_no_count_leaves_a_descriptor_open(net: Switch, count: Counting) -> None:
    count(namespaces=(net["container"].namespace,))
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        count(namespaces=(net["container"].namespace,))
    count()
    assert len(os.listdir("/proc/self/fd")) < before
