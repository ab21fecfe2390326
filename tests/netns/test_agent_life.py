"""The agent's life on a host: what it sets up, what it takes away, and what is left after any kind of end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.netns.agents import REPOSITORY, VIP4, VIP6, Agent, Client, Director, NamedServer
from tests.netns.topology import Switch, eventually

pytestmark = pytest.mark.netns

ENGINE_SYSCTLS = {
    "net/ipv4/conf/eth0/forwarding": ("0", "1"),
    "net/ipv4/conf/eth0/accept_local": ("0", "1"),
    "net/ipv4/conf/eth0/send_redirects": ("1", "0"),
    "net/ipv4/conf/all/send_redirects": ("1", "0"),
}
ARP_SYSCTLS = {"net/ipv4/conf/all/arp_ignore": ("0", "1"), "net/ipv4/conf/all/arp_announce": ("0", "2")}
RULES = [
    "-A PREROUTING -j glb-agent-eth0",
    "-A glb-agent-eth0 -i eth0 -p udp -m udp --dport 19523 -m addrtype --dst-type LOCAL -j CT --notrack",
    "-A PREROUTING -j glb-agent-eth0",
    "-A glb-agent-eth0 -i eth0 -p udp -m udp --dport 19523 -m addrtype --dst-type LOCAL -j NFQUEUE --queue-num 19523",
]


@pytest.fixture
def net(netfilter: None) -> Iterator[Switch]:
    with Switch("client", "director", "proxy1") as switch:
        yield switch


@pytest.fixture
def agent(net: Switch, tmp_path: Path) -> Iterator[Agent]:
    agent = Agent(net["proxy1"], tmp_path)
    yield agent
    agent.stop()


def sysctls(agent: Agent, names: dict[str, tuple[str, str]]) -> list[str]:
    return [agent.host.sysctl(name) for name in names]


def before(names: dict[str, tuple[str, str]]) -> list[str]:
    return [was for was, _ in names.values()]


def during(names: dict[str, tuple[str, str]]) -> list[str]:
    return [ours for _, ours in names.values()]


def vips_on_lo(agent: Agent) -> set[str]:
    words = agent.host.run("ip", "-br", "addr", "show", "dev", "lo").split()
    return {word.partition("/")[0] for word in words if "/" in word} - {"127.0.0.1", "::1"}


def test_start_sets_up_the_host_and_stop_leaves_only_the_vips(agent: Agent) -> None:
    assert sysctls(agent, ENGINE_SYSCTLS) == before(ENGINE_SYSCTLS)
    agent.start()
    assert agent.rules() == RULES
    assert sysctls(agent, ENGINE_SYSCTLS) == during(ENGINE_SYSCTLS)
    assert sysctls(agent, ARP_SYSCTLS) == during(ARP_SYSCTLS)
    assert vips_on_lo(agent) == {VIP4, VIP6}
    warden = agent.warden_pid()
    agent.signal(signal.SIGTERM)
    assert agent.wait() == 0
    assert agent.rules() == []
    assert sysctls(agent, ENGINE_SYSCTLS) == before(ENGINE_SYSCTLS)
    # A VIP that is gone would break the replies of a restart; without its ARP settings it would draw traffic.
    assert vips_on_lo(agent) == {VIP4, VIP6}
    assert sysctls(agent, ARP_SYSCTLS) == during(ARP_SYSCTLS)
    assert not Path(f"/proc/{warden}").exists()


def test_detach_restores_everything_and_says_so(agent: Agent) -> None:
    agent.start().stop()
    assert agent.detach() == "detached\n"
    assert vips_on_lo(agent) == set()
    assert sysctls(agent, ARP_SYSCTLS) == before(ARP_SYSCTLS)
    assert [path.name for path in (agent.directory / "state").iterdir()] == ["eth0.lock"]
    assert agent.detach() == "detached\n"  # again: nothing to do


def test_what_the_operator_had_set_up_survives_detach(agent: Agent) -> None:
    agent.host.run("ip", "addr", "add", f"{VIP4}/32", "dev", "lo")
    agent.host.sysctl("net/ipv4/conf/all/arp_ignore", 2)
    agent.start().stop()
    agent.host.sysctl("net/ipv4/conf/all/arp_announce", 1)  # changed by somebody after us
    agent.detach()
    assert vips_on_lo(agent) == {VIP4}
    assert agent.host.sysctl("net/ipv4/conf/all/arp_ignore") == "2"
    assert agent.host.sysctl("net/ipv4/conf/all/arp_announce") == "1"


def test_prefixes_become_local_routes(agent: Agent) -> None:
    agent.write_config(vips=["198.51.100.0/24", "2001:db8:51::/64"])
    agent.start()
    for family, prefix in (("-4", "198.51.100.0/24"), ("-6", "2001:db8:51::/64")):
        assert f"local {prefix} dev lo" in agent.host.run("ip", family, "route", "show", "table", "local")
    assert set(agent.status()["flows"]) == {"198.51.100.0/24", "2001:db8:51::/64"}
    agent.stop()
    agent.detach()
    assert "198.51.100" not in agent.host.run("ip", "route", "show", "table", "local")
    assert "2001:db8:51::" not in agent.host.run("ip", "-6", "route", "show", "table", "local")


def test_rules_go_when_the_agent_is_killed(agent: Agent) -> None:
    agent.start()
    agent.signal(signal.SIGKILL)
    agent.wait()
    eventually(lambda: agent.rules() == [])
    eventually(lambda: sysctls(agent, ENGINE_SYSCTLS) == before(ENGINE_SYSCTLS))
    agent.start()
    assert agent.rules() == RULES


def test_restart_right_after_a_kill_ends_with_the_rules_in_place(agent: Agent) -> None:
    for _ in range(3):
        agent.start()
        agent.signal(signal.SIGKILL)
        agent.wait()
    agent.start()
    assert agent.rules() == RULES
    assert sysctls(agent, ENGINE_SYSCTLS) == during(ENGINE_SYSCTLS)
    agent.stop()
    agent.detach()
    assert sysctls(agent, ENGINE_SYSCTLS) == before(ENGINE_SYSCTLS)  # not what the first agent had set


def test_next_start_repairs_what_a_killed_agent_and_supervisor_left(agent: Agent) -> None:
    agent.start()
    os.kill(agent.warden_pid(), signal.SIGSTOP)  # so that it cannot be faster
    os.kill(warden := agent.warden_pid(), signal.SIGKILL)
    agent.signal(signal.SIGKILL)
    agent.wait()
    eventually(lambda: not Path(f"/proc/{warden}/exe").exists())
    assert agent.rules() == RULES  # left over
    agent.start()
    assert agent.rules() == RULES  # found again, not doubled
    assert "left by an agent that was killed: iptables rules removed" in agent.log()
    agent.stop()
    assert agent.rules() == []
    assert sysctls(agent, ENGINE_SYSCTLS) == before(ENGINE_SYSCTLS)


def test_detach_alone_repairs_what_a_killed_agent_and_supervisor_left(agent: Agent) -> None:
    agent.start()
    os.kill(warden := agent.warden_pid(), signal.SIGKILL)
    agent.signal(signal.SIGKILL)
    agent.wait()
    eventually(lambda: not Path(f"/proc/{warden}/exe").exists())
    agent.detach()
    assert agent.rules() == []
    assert vips_on_lo(agent) == set()
    every = {**ENGINE_SYSCTLS, **ARP_SYSCTLS}
    assert sysctls(agent, every) == before(every)


def test_supervisor_that_is_killed_is_replaced(agent: Agent) -> None:
    agent.start()
    first = agent.warden_pid()
    os.kill(first, signal.SIGKILL)

    def replaced() -> bool:
        try:
            return agent.warden_pid() != first
        except IndexError:
            return False

    eventually(replaced)
    agent.signal(signal.SIGKILL)
    agent.wait()
    eventually(lambda: agent.rules() == [])


def test_other_rules_are_left_alone(agent: Agent) -> None:
    agent.host.run("iptables-legacy", "-t", "mangle", "-A", "PREROUTING", "-p", "tcp", "--dport", "99", "-j", "DROP")
    agent.start()
    agent.stop()
    saved = agent.host.run("iptables-legacy-save", "-t", "mangle")
    assert "-A PREROUTING -p tcp -m tcp --dport 99 -j DROP" in saved
    assert "glb-agent" not in saved


def test_second_agent_on_the_same_interface_is_refused(agent: Agent, tmp_path: Path) -> None:
    agent.start()
    second = subprocess.run(
        [
            *("ip", "netns", "exec", agent.host.namespace, sys.executable),
            *("-m", "proxy_agent.cli", "run", "--config", str(agent.config_path)),
        ],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert second.returncode == 1
    assert agent.process is not None
    assert f"an agent (process {agent.process.pid}) runs for eth0" in second.stderr
    assert agent.rules() == RULES


def test_failed_start_leaves_the_host_as_it_was(agent: Agent, tmp_path: Path) -> None:
    agent.write_config(admin="unix:/nonexistent/directory/admin.sock")
    with pytest.raises(AssertionError, match=r"admin"):
        agent.start()
    assert agent.wait() == 1
    assert agent.rules() == []
    assert sysctls(agent, ENGINE_SYSCTLS) == before(ENGINE_SYSCTLS)


def test_reload_changes_vips_and_a_bad_file_changes_nothing(net: Switch, agent: Agent) -> None:
    agent.write_config(vips=[VIP6])
    agent.start()
    net["client"].run("ip", "route", "add", f"{VIP4}/32", "via", net["director"].ipv4)
    director = Director(net["director"], [net["proxy1"]])
    try:
        agent.reload(vips=[VIP4])
        assert vips_on_lo(agent) == {VIP4}
        server = NamedServer(agent.host, VIP4)
        client = Client(net["client"], VIP4)
        assert client.ask("hello") == "proxy1: hello"

        agent.reload(vips=["198.51.100.300"])
        assert "$.vips[0]: '198.51.100.300' is no IP address or prefix" in agent.log()
        agent.reload(vips=[VIP4], gue_port=19524)
        assert "$.gue_port: cannot change at a reload" in agent.log()
        assert "glb_agent_reload_failures_total 2.0" in agent.get("/metrics")[1]
        assert client.ask("still here") == "proxy1: still here"
        assert agent.status()["vips"] == [VIP4]
        assert agent.rules() == RULES
        client.close()
        server.close()
    finally:
        director.close()


def test_reload_that_the_host_refuses_changes_nothing(agent: Agent) -> None:
    agent.write_config(vips=[VIP4])
    agent.start()
    agent.host.sysctl("net/ipv6/conf/lo/disable_ipv6", 1)
    agent.reload(vips=["198.51.100.7", VIP6])
    assert "reload refused, the old configuration stays in force: cannot add VIP" in agent.log()
    assert vips_on_lo(agent) == {VIP4}
    assert agent.status()["vips"] == [VIP4]
    agent.reload(vips=["198.51.100.7"])
    assert vips_on_lo(agent) == {"198.51.100.7"}


def test_flow_survives_an_agent_that_is_killed_and_started_again(net: Switch, agent: Agent) -> None:
    agent.start()
    net["client"].run("ip", "route", "add", f"{VIP4}/32", "via", net["director"].ipv4)
    director = Director(net["director"], [net["proxy1"]])
    server = NamedServer(agent.host, VIP4)
    client = Client(net["client"], VIP4)
    try:
        assert client.ask("before") == "proxy1: before"
        agent.signal(signal.SIGKILL)
        agent.wait()
        agent.start()
        assert client.ask("after") == "proxy1: after"
    finally:
        client.close()
        server.close()
        director.close()


def test_idle_agent_rests(agent: Agent) -> None:
    agent.start()
    assert agent.process is not None
    stat = Path(f"/proc/{agent.process.pid}/stat")

    def ticks() -> int:
        return sum(map(int, stat.read_text().rpartition(")")[2].split()[11:13]))  # user and system time

    def rests() -> bool:
        before = ticks()
        time.sleep(0.3)
        return ticks() - before <= 3  # of 30

    eventually(rests)
    agent.reload(allowed_sources=["10.0.0.0/8"])
    eventually(rests)


def test_admin_pages(agent: Agent) -> None:
    agent.start()
    assert agent.get("/healthz") == (200, "ok\n")
    assert agent.get("/readyz") == (200, "ready\n")
    status = agent.status()
    assert status["engine"] == "netfilter"
    assert status["vips"] == [VIP4, VIP6]
    assert status["flows"] == {VIP4: 0, VIP6: 0}
    code, metrics = agent.get("/metrics")
    assert code == 200
    for line in (
        'glb_agent_accepted_packets_total{reason="syn"} 0.0',
        'glb_agent_bounced_packets_total{hop="1"} 0.0',
        'glb_agent_dropped_packets_total{reason="not_vip"} 0.0',
        f'glb_agent_flows{{vip="{VIP4}"}} 0.0',
    ):
        assert line in metrics
    assert agent.get("/nothing")[0] == 404


def test_missing_interface_is_named(agent: Agent) -> None:
    agent.write_config(interface="eth9")
    with pytest.raises(AssertionError):
        agent.start()
    assert agent.wait() == 1


def test_flows_are_counted_for_both_families_and_dual_stack_sockets(net: Switch, agent: Agent) -> None:
    """100 flows, of which 50 come by IPv4 to a socket that listens on both families."""
    agent.start()
    host = net["proxy1"]
    with host.inside():
        listener = socket.create_server(("::", 80), family=socket.AF_INET6, dualstack_ipv6=True, backlog=128)
        sockets = [socket.create_connection((vip, 80)) for vip in (VIP4, VIP6) for _ in range(50)]
    # Both ends are on this host here, and both have the VIP as an address: one as local, one as remote.
    accepted = [listener.accept()[0] for _ in sockets]
    assert {local.getsockname()[0].removeprefix("::ffff:") for local in accepted} == {VIP4, VIP6}
    expected = {
        vip: sum(s.getsockname()[0].removeprefix("::ffff:") == vip for s in accepted + sockets) for vip in (VIP4, VIP6)
    }
    assert agent.status()["flows"] == expected
    for each in (*accepted, *sockets, listener):
        each.close()
    eventually(lambda: agent.status()["flows_total"] == 0)
