"""What docs/operate/agent.md tells to allow, line by line, in front of firewalls and NAT that drop the rest."""

from __future__ import annotations

import re
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.netns.agents import REPOSITORY, VIP4, VIP6, Client, NamedServer
from tests.netns.test_agent_second_chance import Site, standing
from tests.netns.topology import Host

pytestmark = [pytest.mark.netns, pytest.mark.bpf]

DOCUMENT = REPOSITORY / "docs" / "operate" / "agent.md"
REFUSED_AFTER_S = 0.3  # what is to fail is given up then; what is to work has the next
ACCEPTED_WITHIN_S = 10.0
LEGACY, BY_NFT = "iptables-legacy", "iptables-nft"
DOCKER_PORT = 8080
CONTAINER = "172.17.0.2"

# A server's usual rules, that conntrack decides most of; the host is a NAT gateway for others besides.
STATEFUL = """\
*filter
:INPUT DROP
:FORWARD DROP
:OUTPUT ACCEPT
-A INPUT -i lo -j ACCEPT
-A INPUT -m conntrack --ctstate INVALID -j DROP
-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A INPUT -p tcp --dport 22 -j ACCEPT
-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A OUTPUT -m conntrack --ctstate INVALID -j DROP
COMMIT
*nat
-A POSTROUTING -o eth0 -j MASQUERADE
COMMIT
"""
STATEFUL_NFT = """\
table inet filter {
    chain input {
        type filter hook input priority filter; policy drop;
        iif lo accept
        ct state invalid drop
        ct state established,related accept
        tcp dport 22 accept
    }
    chain forward {
        type filter hook forward priority filter; policy drop;
        ct state established,related accept
    }
    chain output {
        type filter hook output priority filter; policy accept;
        ct state invalid drop
    }
    chain gateway {
        type nat hook postrouting priority srcnat;
        oifname "eth0" masquerade
    }
}
"""
# A Docker host with one published port.
DOCKER = f"""\
*filter
:INPUT ACCEPT
:FORWARD DROP
:OUTPUT ACCEPT
:DOCKER -
:DOCKER-USER -
-A FORWARD -j DOCKER-USER
-A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -o docker0 -j DOCKER
-A FORWARD -i docker0 ! -o docker0 -j ACCEPT
-A DOCKER -d {CONTAINER}/32 ! -i docker0 -o docker0 -p tcp --dport 80 -j ACCEPT
-A DOCKER-USER -j RETURN
COMMIT
*nat
:DOCKER -
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER
-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
-A DOCKER ! -i docker0 -p tcp --dport {DOCKER_PORT} -j DNAT --to-destination {CONTAINER}:80
COMMIT
"""
OPEN = "*filter\n:INPUT ACCEPT\n:FORWARD ACCEPT\n:OUTPUT ACCEPT\nCOMMIT\n*nat\nCOMMIT\n"


@dataclass(frozen=True)
class Firewall:
    """Rules that are there before ours, and the tool by which both are set."""

    tool: str  # iptables-legacy, iptables-nft or nft
    rules: str
    lets_in: bool = False  # whether flows begin, without the document's lines

    def raise_on(self, host: Host) -> None:
        if self.tool == "nft":
            self._feed(host, "nft", "-f", "-", rules=self.rules)
            return
        self._feed(host, f"{self.tool}-restore", rules=self.rules)
        if not self.lets_in:
            self._feed(host, self._ip6("-restore"), rules=self.rules)

    def lower(self, host: Host) -> None:
        if self.tool != LEGACY:
            host.run("nft", "flush", "ruleset")
            return
        host.run(LEGACY, "-t", "raw", "-F", "OUTPUT")  # the agent's are in another chain
        for restore in (f"{LEGACY}-restore", self._ip6("-restore")):
            self._feed(host, restore, rules=OPEN)

    def allow(self, host: Host, engine: str, *, but: str = "nothing") -> None:
        """Run the document's lines, without those that have this word in them."""
        for line in recipe("nftables" if self.tool == "nft" else "iptables", engine):
            if but not in line:
                line = re.sub(r"^ip6tables", self._ip6(""), re.sub(r"^iptables", self.tool, line))
                host.run("sh", "-c", line)

    def _ip6(self, rest: str) -> str:
        return self.tool.replace("iptables", "ip6tables") + rest

    def _feed(self, host: Host, *command: str, rules: str) -> None:
        argv = ["ip", "netns", "exec", host.namespace, *command]
        subprocess.run(argv, input=rules, text=True, check=True, timeout=30)


FIREWALLS = {
    "stateful-iptables-legacy": Firewall(LEGACY, STATEFUL),
    "stateful-iptables-nft": Firewall(BY_NFT, STATEFUL),
    "stateful-nftables": Firewall("nft", STATEFUL_NFT),
    "docker-iptables-legacy": Firewall(LEGACY, DOCKER, lets_in=True),
    "docker-iptables-nft": Firewall(BY_NFT, DOCKER, lets_in=True),
}


def recipe(tool: str, engine: str) -> list[str]:
    """The document's commands for a tool (iptables or nftables) and an engine."""
    blocks = dict(re.findall(r"```sh\n# ([^\n]+)\n(.*?)```", DOCUMENT.read_text(), flags=re.DOTALL))
    names = [f"{tool}, both engines", *([f"{tool}, netfilter engine"] if engine == "netfilter" else [])]
    return [line for name in names for line in blocks[name].splitlines()]


@pytest.fixture(scope="module", params=["netfilter", "xdp", "auto"])
def standing_site(
    request: pytest.FixtureRequest, netfilter: None, bpffs: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    """`auto` is xdp whose bounced packets the host's stack sends, as it does to a neighbour that it has yet to find."""
    with standing(request.param, bpffs, tmp_path_factory) as site:
        yield site


def engine_of(site: Site) -> str:
    return str(site.agents[0].keys["engine"])


def behind(site: Site, firewall: Firewall) -> None:
    """Both proxies are, until the test ends."""
    for host in (site.proxy1, site.proxy2):
        site.cleanup.callback(firewall.lower, host)
        firewall.raise_on(host)


def assert_begins(site: Site, vip: str, begins: bool) -> None:
    """A flow begins, or does not."""
    assert refused(site, vip, ACCEPTED_WITHIN_S if begins else REFUSED_AFTER_S) != begins


def refused(site: Site, vip: str, after_s: float) -> bool:
    """Whether no flow begins until then."""
    with site.client.inside():
        attempt = socket.socket(socket.AF_INET6 if ":" in vip else socket.AF_INET)
    with closing(attempt):
        attempt.settimeout(after_s)
        try:
            attempt.connect((vip, 80))
        except TimeoutError:
            return True
        return False


def drain(site: Site) -> None:
    """Flows of proxy2 go on through a drain of it, new ones begin at proxy1; pings come back."""
    site.director.lead(site.proxy2)
    old = [site.connect(vip) for vip in (VIP4, VIP6)]
    assert [client.ask("before") for client in old] == ["proxy2: before"] * 2
    site.director.lead(site.proxy1, site.proxy2)
    long = "x" * 1000
    for _ in range(10):
        assert [client.ask(long) for client in old] == [f"proxy2: {long}"] * 2
    assert [site.connect(vip).ask("new") for vip in (VIP4, VIP6)] == ["proxy1: new"] * 2
    assert [client.ask("after") for client in old] == ["proxy2: after"] * 2
    for vip in (VIP4, VIP6):
        assert "1 received" in site.client.run("ping", "-c1", "-W5", vip)
    counters = [agent.counters() for agent in site.agents]
    assert counters[0]["bounce"] >= 20
    assert not any("last_resort" in each for each in counters)


@pytest.mark.parametrize("name", FIREWALLS)
def test_documented_lines_let_flows_begin_bounce_and_be_answered(site: Site, name: str) -> None:
    firewall = FIREWALLS[name]
    behind(site, firewall)
    if not firewall.lets_in:
        assert_begins(site, VIP4, False)
        assert_begins(site, VIP6, False)
    for host in (site.proxy1, site.proxy2):
        firewall.allow(host, engine_of(site))
    drain(site)


@pytest.mark.parametrize("name", FIREWALLS)
def test_line_for_forward_is_what_lets_the_hosts_stack_send_bounced_packets(site: Site, name: str) -> None:
    firewall = FIREWALLS[name]
    behind(site, firewall)
    for host in (site.proxy1, site.proxy2):
        firewall.allow(host, engine_of(site), but="19523")
    site.director.lead(site.proxy2)
    client: Client = site.connect(VIP4)
    assert client.ask("before") == "proxy2: before"
    site.director.lead(site.proxy1, site.proxy2)
    if engine_of(site) == "xdp":  # sent by the program, past all rules
        client.settimeout(ACCEPTED_WITHIN_S)
        assert client.ask("bounced") == "proxy2: bounced"
    else:
        client.settimeout(REFUSED_AFTER_S)
        with pytest.raises(TimeoutError):
            client.ask("lost")


@pytest.mark.parametrize("name", [name for name, firewall in FIREWALLS.items() if not firewall.lets_in])
def test_line_for_replies_is_needed_with_netfilter_alone(site: Site, name: str) -> None:
    firewall = FIREWALLS[name]
    behind(site, firewall)
    for host in (site.proxy1, site.proxy2):
        firewall.allow(host, engine_of(site), but="notrack")
    assert_begins(site, VIP4, engine_of(site) != "netfilter")
    assert_begins(site, VIP6, True)


@pytest.mark.parametrize("tool", [LEGACY, BY_NFT])
def test_published_port_of_a_container_works_beside_the_vips(
    site: Site, tool: str, request: pytest.FixtureRequest
) -> None:
    inside = container(site.proxy1, request.addfinalizer)
    server = NamedServer(inside, CONTAINER)
    site.cleanup.callback(server.close)
    firewall = Firewall(tool, DOCKER, lets_in=True)
    behind(site, firewall)
    for host in (site.proxy1, site.proxy2):
        firewall.allow(host, engine_of(site))
    published = Client(site.client, site.proxy1.ipv4, DOCKER_PORT)
    site.cleanup.callback(published.close)
    assert published.ask("hello") == "container: hello"
    drain(site)
    assert published.ask("still") == "container: still"


def container(host: Host, finalize: Callable[[Callable[[], object]], None]) -> Host:
    """A network namespace on docker0 of the host, as Docker makes it."""
    inside = Host("container", f"{host.namespace}-docker", 78)
    subprocess.run(["ip", "netns", "add", inside.namespace], check=True)
    finalize(lambda: subprocess.run(["ip", "netns", "del", inside.namespace], check=True))
    host.run("ip", "link", "add", "docker0", "type", "veth", "peer", "name", "eth0", "netns", inside.namespace)
    finalize(lambda: host.run("ip", "link", "del", "docker0"))
    host.run("ip", "addr", "add", "172.17.0.1/16", "dev", "docker0")
    host.run("ip", "link", "set", "docker0", "up")
    host.sysctl("net/ipv4/conf/docker0/forwarding", 1)
    for command in ("link set lo up", "link set eth0 up", f"addr add {CONTAINER}/16 dev eth0"):
        inside.run("ip", *command.split())
    inside.run("ip", "route", "add", "default", "via", "172.17.0.1")
    return inside


@pytest.mark.parametrize(("exception", "passes"), [("", False), ('iifname != "glb-gue19523"', True)])
def test_reverse_path_rule_for_ipv6_must_let_the_tun_device_pass(site: Site, exception: str, passes: bool) -> None:
    """As firewalld sets one by itself. With xdp there is no such device, and nothing to let pass."""
    check = f"meta nfproto ipv6 {exception} fib saddr . iif oif missing drop"
    rules = f"table inet filter {{ chain rp {{ type filter hook prerouting priority filter; {check};\n}}\n}}\n"
    behind(site, Firewall("nft", rules))
    assert_begins(site, VIP6, passes or engine_of(site) != "netfilter")
    assert_begins(site, VIP4, True)
