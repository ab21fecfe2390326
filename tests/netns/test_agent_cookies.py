"""SYN cookies with real clients: judged by the kernel in both engines, by remembered SYNs where eBPF is not allowed."""

from __future__ import annotations

import itertools
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from proxy_agent import syncookie
from tests.netns import situations
from tests.netns.agents import VIP4, fleet
from tests.netns.test_agent_second_chance import ACK, BOTH, SYN, Site, tcp4
from tests.netns.test_agent_verdicts import known_differences
from tests.netns.topology import Switch, eventually

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
import agent_packets as p

pytestmark = [pytest.mark.netns, pytest.mark.bpf]

# What bpf(2) wants of a process; the netfilter engine needs none of it.
WITHOUT_EBPF = ("setpriv", "--bounding-set=-bpf,-sys_admin,-perfmon")
# name -> (engine, who judges cookies there)
ENGINES = {"xdp": ("xdp", "kernel"), "netfilter": ("netfilter", "kernel"), "without-ebpf": ("netfilter", "memory")}


@pytest.fixture(scope="module", params=ENGINES)
def standing_site(
    request: pytest.FixtureRequest, netfilter: None, bpffs: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    engine, judge = ENGINES[request.param]
    prefix = WITHOUT_EBPF if judge == "memory" else ()
    with fleet() as net, ExitStack() as stack:
        directory = tmp_path_factory.mktemp("agents")
        site = Site(net, directory, stack, prefix=prefix, engine=engine, pin_dir=str(bpffs / "cookies"))
        status = site.agents[0].status()
        assert (status["engine"], status["syn_cookie_judge"]) == (engine, judge)
        yield site


@pytest.fixture
def site(standing_site: Site) -> Iterator[Site]:
    standing_site.begin()
    with standing_site.cleanup:
        yield standing_site


def judge_of(site: Site) -> str:
    return str(site.agents[0].status()["syn_cookie_judge"])


def test_judge_of_cookies_is_told_in_the_log_in_the_metrics_and_only_once(site: Site) -> None:
    agent = site.agents[0]
    judge = judge_of(site)
    assert f'glb_agent_syn_cookies_judged_total{{judge="{judge}"}}' in agent.get("/metrics")[1]
    warnings = [line for line in agent.log().splitlines() if "judged by the SYNs that the agent remembers" in line]
    assert len(warnings) == (judge == "memory")
    assert all("EPERM" in line for line in warnings)


@BOTH
def test_flows_that_begin_with_a_syn_cookie_work_and_are_counted(site: Site, vip: str) -> None:
    site.sysctl(site.proxy1, "net/ipv4/tcp_syncookies", 2)  # a cookie for every SYN
    for i in range(10):
        client = site.connect(vip)
        assert client.ask(f"hello {i}") == f"proxy1: hello {i}"
        client.close()
    counters = site.agents[0].counters()
    assert counters["syn_cookie"] >= 10
    assert set(counters) <= {"syn", "syn_cookie", "established"}
    eventually(lambda: site.agents[0].status()["syn_cookies_in_use"])
    assert site.agents[0].status()["syn_cookies_judged"] >= 10


def test_flow_of_the_second_hop_still_bounces_while_cookies_are_in_use(site: Site) -> None:
    site.director.lead(site.proxy2)
    client = site.connect(VIP4)
    site.director.lead(site.proxy1, site.proxy2)
    site.sysctl(site.proxy1, "net/ipv4/tcp_syncookies", 2)
    assert site.connect(VIP4).ask("new") == "proxy1: new"
    assert client.ask("old") == "proxy2: old"
    eventually(lambda: site.agents[0].status()["syn_cookies_in_use"])


def test_no_flow_breaks_while_a_flood_of_syns_makes_the_kernel_send_cookies(site: Site) -> None:
    for host in (site.proxy1, site.proxy2):  # towards the flood's sources, or the kernel would not even answer
        route = ("10.77.0.0/16", "via", site.client.ipv4)
        host.run("ip", "route", "add", *route)
        site.cleanup.callback(host.run, "ip", "route", "del", *route)
    site.director.lead(site.proxy2)
    old = [site.connect(VIP4) for _ in range(5)]
    site.director.lead(site.proxy1, site.proxy2)
    over = threading.Event()

    def flood() -> None:
        sources = itertools.cycle(f"10.77.{i // 256}.{i % 256}" for i in range(65536))
        while not over.is_set():
            site.director.send(site.director.encapsulate(tcp4(next(sources), 4711, SYN)))

    thread = threading.Thread(target=flood)
    thread.start()
    try:
        eventually(lambda: site.agents[0].status()["syn_cookies_in_use"])
        for i in range(20):
            assert site.connect(VIP4).ask(f"new {i}") == f"proxy1: new {i}"
            assert [client.ask(f"old {i}") for client in old] == [f"proxy2: old {i}"] * 5
    finally:
        over.set()
        thread.join()
    counters = site.agents[0].counters()
    assert counters["syn_cookie"] >= 15  # now and then the SYN queue has room for one that is not the flood's
    assert counters["bounce"] >= 100
    assert "last_resort" not in counters


def test_ack_with_a_forged_number_is_known_to_the_kernel_and_not_to_the_memory(site: Site) -> None:
    """A SYN came this way and cookies are in use, but the ACK's number is not the cookie's."""
    site.sysctl(site.proxy1, "net/ipv4/tcp_syncookies", 2)
    assert site.connect(VIP4).ask("hello") == "proxy1: hello"
    eventually(lambda: site.agents[0].status()["syn_cookies_in_use"])
    site.agents[0].mark()
    nobody = "10.77.0.1"  # who would answer a SYN+ACK with a RST, if he were there
    site.director.send(site.director.encapsulate(tcp4(nobody, 4747, SYN)))
    site.director.send(site.director.encapsulate(tcp4(nobody, 4747, ACK, seq=1001)))
    known = known_differences("without-ebpf")["cookie-with-a-forged-number"]
    expected = known["xdp" if judge_of(site) == "kernel" else "netfilter"]
    eventually(lambda: site.agents[0].counters().get(expected) == 1)


def test_listener_that_is_bound_to_an_interface_counts_for_packets_that_come_in_there() -> None:
    """A test run of the program is told the interface; by itself it would be the loopback's."""
    port, source_port = 86, 5999
    with Switch("proxy") as net, ExitStack() as stack:
        host = net["proxy"]
        sockets = situations.Sockets(host, stack)
        host.sysctl("net/ipv4/tcp_syncookies", 2)
        with host.inside():
            listener = stack.enter_context(closing(socket.socket()))
            listener.setsockopt(socket.SOL_SOCKET, situations.SO_BINDTODEVICE, situations.DEVICE.encode())
            listener.bind(("", port))
            listener.listen()
            numbers = sockets.client.open(4, port, source_port)
            ack = p.from_client(4, p.ACK, seq=numbers.seq, ack=numbers.ack, port=port, source_port=source_port)
            question = ack[:20] + bytes(20) + ack[20:40]
            valid = {}
            for device in (situations.DEVICE, "eth0", "lo"):
                with closing(syncookie.Program(socket.if_nametoindex(device))) as program:
                    valid[device] = program.is_valid(question)
    assert valid == {situations.DEVICE: True, "eth0": False, "lo": False}
