"""The lab as data: its hosts, links, addresses and virtual IPs. Pure; everything else in ``lab`` follows it.

Every host hangs on the router by a link of its own, ``eth0`` on the host's end and ``to-HOST`` on the router's. On each
link the router is number 1 and the host number 2. Addresses are those set aside for documentation (RFC 5737, RFC 3849),
for benchmarks (RFC 2544: the many clients) and, in the data centre, 10/8.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

CORE_MTU_BYTES = 9000
CLIENT_MTU_BYTES = 1500

ROUTER = "router"
ROUTER_AS = 65000
DIRECTOR_AS = 65001

# Whole prefixes are local to the client, so that it can speak from as many addresses as a test wants.
CLIENTS_V4 = IPv4Network("198.18.0.0/16")
CLIENTS_V6 = IPv6Network("2001:db8:c::/64")

# Where a flood claims to come from: the router drops what is sent there.
FLOOD_V4 = IPv4Network("198.19.0.0/16")
FLOOD_V6 = IPv6Network("2001:db8:d::/64")

ANNOUNCED_V4 = IPv4Network("203.0.113.0/24")
ANNOUNCED_V6 = IPv6Network("2001:db8:f::/64")
HTTP_PORT = 80
GUE_PORT = 19523
DIRECTOR_ADMIN_PORT = 9523
AGENT_ADMIN_PORT = 9524


@dataclass(frozen=True)
class Vip:
    """A service reached at one IPv4 and one IPv6 address."""

    v4: IPv4Address
    v6: IPv6Address

    @property
    def addresses(self) -> tuple[IPv4Address, IPv6Address]:
        return (self.v4, self.v6)


GLB_VIP = Vip(ANNOUNCED_V4[10], ANNOUNCED_V6[0x10])  # through the directors
ECMP_VIP = Vip(ANNOUNCED_V4[20], ANNOUNCED_V6[0x20])  # the router's own ECMP straight to the proxies, for contrast


@dataclass(frozen=True)
class Host:
    """A network namespace with one link to the router."""

    name: str
    role: str  # client | ops | director | proxy
    net4: IPv4Network  # of the link
    net6: IPv6Network
    mtu_bytes: int = CORE_MTU_BYTES

    @property
    def v4(self) -> IPv4Address:
        return self.net4[2]

    @property
    def v6(self) -> IPv6Address:
        return self.net6[2]

    @property
    def gateway4(self) -> IPv4Address:
        return self.net4[1]

    @property
    def gateway6(self) -> IPv6Address:
        return self.net6[1]

    @property
    def router_end(self) -> str:
        return f"to-{self.name}"


def _host(name: str, role: str, net4: str, net6: str, mtu_bytes: int = CORE_MTU_BYTES) -> Host:
    return Host(name, role, IPv4Network(net4), IPv6Network(net6), mtu_bytes)


CLIENT = _host("client", "client", "192.0.2.0/24", "2001:db8:ff::/64", CLIENT_MTU_BYTES)
OPS = _host("ops", "ops", "10.3.0.0/24", "2001:db8:3::/64")
DIRECTORS = tuple(_host(f"director{n}", "director", f"10.1.{n}.0/24", f"2001:db8:1:{n}::/64") for n in (1, 2))
# The last proxy is the spare one: up and serving, but not in the table until it is added.
PROXIES = tuple(_host(f"proxy{n}", "proxy", f"10.2.{n}.0/24", f"2001:db8:2:{n}::/64") for n in (1, 2, 3, 4))
FIRST_PROXIES, SPARE_PROXY = PROXIES[:-1], PROXIES[-1]

HOSTS = (CLIENT, OPS, *DIRECTORS, *PROXIES)
HOST_NAMES = (ROUTER, *(host.name for host in HOSTS))


def host_named(name: str) -> Host:
    """The host of that name; ``KeyError`` if there is none (the router is not a ``Host``: it has many links)."""
    return {host.name: host for host in HOSTS}[name]
