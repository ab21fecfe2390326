"""The MSS of SYN+ACKs as clients see it, with real TCP: what the agent lowers, what it leaves alone, for how long."""

from __future__ import annotations

import signal
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.netns.agents import VIP4, VIP6, Agent, Director, fleet
from tests.netns.topology import Host, Switch, eventually

pytestmark = [pytest.mark.netns, pytest.mark.bpf, pytest.mark.usefixtures("netfilter")]

FITTING = {VIP4: 1420, VIP6: 1400}  # MTU 1500, two hops
FULL_SIZE_BYTES = 200_000  # many segments, as large as the MSS lets them be


@pytest.fixture
def net() -> Iterator[Switch]:
    with fleet() as switch:
        yield switch


@pytest.fixture(params=["xdp", "netfilter"])
def agent(request: pytest.FixtureRequest, net: Switch, tmp_path: Path, bpffs: Path) -> Iterator[Agent]:
    agent = Agent(net["proxy1"], tmp_path, engine=request.param, pin_dir=str(bpffs / "agent-mss"), mss="auto", hops=2)
    with ExitStack() as stack:
        stack.callback(agent.detach)
        stack.callback(agent.stop)
        director = Director(net["director"], [net["proxy1"], net["proxy2"]])
        stack.callback(director.close)
        yield agent


@contextmanager
def listening(host: Host, address: str, *, mss: int | None = None) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with host.inside():
        server = socket.socket(family, socket.SOCK_STREAM)
    with server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if mss is not None:
            server.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, mss)
        server.bind((address, 80))
        server.listen()
        yield server


def stated_mss(client: Host, address: str) -> int:
    """Connect, and read the MSS option of the SYN+ACK off the wire."""
    version = 6 if ":" in address else 4
    with client.inside():
        wire = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x86DD if version == 6 else 0x0800))
        wire.bind(("eth0", 0x86DD if version == 6 else 0x0800))
        wire.settimeout(10)
        with wire, socket.create_connection((address, 80), timeout=10) as connection:
            port = connection.getsockname()[1]
            while True:
                packet = wire.recv(65536)
                at = 40 if version == 6 else (packet[0] & 0x0F) * 4
                if packet[6 if version == 6 else 9] != socket.IPPROTO_TCP:
                    continue
                _, destination, _, _, words, flags = struct.unpack_from(">HHIIBB", packet, at)
                if destination == port and flags & 0x12 == 0x12:
                    return mss_option(packet[at + 20 : at + (words >> 4) * 4])


def mss_option(options: bytes) -> int:
    at = 0
    while at < len(options) and options[at]:
        if options[at] == 2:
            return int.from_bytes(options[at + 2 : at + 4], "big")
        at += 1 if options[at] == 1 else options[at + 1]
    raise AssertionError("the SYN+ACK states no MSS")


def clamped(agent: Agent) -> dict[str, int]:
    status = agent.status()["mss"]
    return {name: status[name] for name in ("ipv4", "ipv6")}


def mss_rules(host: Host) -> list[str]:
    saved = [host.run(program).splitlines() for program in ("iptables-legacy-save", "ip6tables-legacy-save")]
    return [line for lines in saved for line in lines if "glb-mss" in line and line.startswith("-A")]


def upload(client: Host, address: str, server: socket.socket) -> int:
    """Bytes of a full-size transfer that arrive."""
    arrived: list[int] = []

    def receive() -> None:
        connection, _ = server.accept()
        with connection:
            arrived.append(sum(map(len, iter(lambda: connection.recv(65536), b""))))

    receiver = threading.Thread(target=receive)
    receiver.start()
    with client.inside(), socket.create_connection((address, 80), timeout=10) as connection:
        connection.sendall(bytes(FULL_SIZE_BYTES))
    receiver.join(20)
    return arrived[0] if arrived else 0


def test_syn_acks_of_the_vips_alone_are_lowered_and_full_size_transfers_pass(net: Switch, agent: Agent) -> None:
    agent.start()
    client = net["client"]
    for vip, mss in FITTING.items():
        with listening(agent.host, vip) as server:
            assert stated_mss(client, vip) == mss
            server.accept()[0].close()
            # One byte more in a segment, and the tunnel packet would not fit the core's 1500.
            assert upload(client, vip, server) == FULL_SIZE_BYTES
        with listening(agent.host, vip, mss=1000):
            assert stated_mss(client, vip) == 1000
    for address, mss in ((agent.host.ipv4, 1460), (agent.host.ipv6, 1440)):
        with listening(agent.host, address):
            assert stated_mss(client, address) == mss
    assert clamped(agent) == {"ipv4": 1420, "ipv6": 1400}
    assert 'glb_agent_mss_clamp_bytes{family="ipv6"} 1400.0' in agent.get("/metrics")[1]


def test_clamp_outlives_the_agent_and_goes_with_detach(net: Switch, agent: Agent) -> None:
    for program in ("iptables-legacy", "ip6tables-legacy"):
        agent.host.run(program, "-t", "mangle", "-A", "POSTROUTING", "-p", "tcp", "--dport", "99", "-j", "DROP")
    agent.start()
    rules = mss_rules(agent.host)
    assert len(rules) == 4
    for number in (signal.SIGKILL, signal.SIGTERM):
        agent.signal(number)
        agent.wait()
        assert mss_rules(agent.host) == rules
        agent.start()
        assert mss_rules(agent.host) == rules  # found again, not doubled
    agent.stop()
    agent.detach()
    assert mss_rules(agent.host) == []
    for program in ("iptables-legacy-save", "ip6tables-legacy-save"):
        saved = agent.host.run(program, "-t", "mangle")
        assert "-A POSTROUTING -p tcp -m tcp --dport 99 -j DROP" in saved
    assert [path.name for path in (agent.directory / "state").iterdir()] == ["eth0.lock"]


def test_reload_and_a_change_of_the_mtu_change_the_clamp(net: Switch, agent: Agent) -> None:
    agent.write_config(vips=[VIP4])
    agent.start()
    assert clamped(agent) == {"ipv4": 1420, "ipv6": 0}
    agent.reload(vips=[VIP4, VIP6], hops=4)
    assert clamped(agent) == {"ipv4": 1412, "ipv6": 1392}
    agent.host.run("ip", "link", "set", "eth0", "mtu", "1400")
    eventually(lambda: clamped(agent) == {"ipv4": 1312, "ipv6": 1292})
    with listening(agent.host, VIP6):
        assert stated_mss(net["client"], VIP6) == 1292
    agent.reload(mss=1300)
    assert clamped(agent) == {"ipv4": 1300, "ipv6": 1300}
    agent.host.run("iptables-legacy", "-t", "mangle", "-F")  # as a firewall's restart does
    agent.reload()
    assert len(mss_rules(agent.host)) == 4
    agent.reload(mss="off")
    assert clamped(agent) == {"ipv4": 0, "ipv6": 0}
    assert mss_rules(agent.host) == []


def test_forwarded_syn_acks_of_a_container_are_lowered(net: Switch, agent: Agent) -> None:
    """The server is behind the proxy, which only routes the VIP: proxy2 stands for the container."""
    proxy, container, client = agent.host, net["proxy2"], net["client"]
    proxy.run("ip", "route", "add", f"{VIP4}/32", "via", container.ipv4)
    container.run("ip", "addr", "add", f"{VIP4}/32", "dev", "lo")
    container.run("ip", "route", "add", f"{client.ipv4}/32", "via", proxy.ipv4)
    client.run("ip", "route", "replace", f"{VIP4}/32", "via", proxy.ipv4)
    agent.write_config(vips=[VIP4], vips_on_lo=False)
    agent.start()
    with listening(container, VIP4):
        assert stated_mss(client, VIP4) == 1420


def test_host_without_x_tables_is_told_once_and_served_without(
    net: Switch, tmp_path: Path, bpffs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XTABLES_LIBDIR", str(tmp_path))  # where iptables' targets and matches are not
    agent = Agent(net["proxy1"], tmp_path, engine="xdp", pin_dir=str(bpffs / "agent-mss"), mss="auto")
    agent.start()
    try:
        assert clamped(agent) == {"ipv4": 0, "ipv6": 0}
        assert "advmss" in agent.status()["mss"]["problem"]
        agent.reload()  # which tries again
        assert agent.log().count("NOT clamped") == 1
    finally:
        agent.stop()
        agent.detach()
