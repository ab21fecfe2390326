"""The lab's namespaces, links, addresses and routes, made with pyroute2 after ``lab.plan``."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute, netns

from lab import plan
from lab.errors import LabError

NETNS_DIR = Path("/run/netns")

Run = Callable[[str, list[str]], object]  # run a command on a host, raising LabError if it fails

# Set before the links are made, so that `default` reaches them. Duplicate address detection would hold IPv6 up for 1 s.
_EVERY_HOST: dict[str, int | str] = {
    "net.ipv6.conf.all.accept_dad": 0,
    "net.ipv6.conf.default.accept_dad": 0,
    "net.ipv6.conf.all.accept_ra": 0,
    "net.ipv6.conf.default.accept_ra": 0,
}
_BY_ROLE: dict[str, dict[str, int | str]] = {
    "router": {
        "net.ipv4.ip_forward": 1,
        "net.ipv6.conf.all.forwarding": 1,
        # ECMP by addresses and ports, so that the flows of one client spread over the directors.
        "net.ipv4.fib_multipath_hash_policy": 1,
        "net.ipv6.fib_multipath_hash_policy": 1,
        # Replies come from the proxies (DSR), not from where the route to their source address points.
        "net.ipv4.conf.all.rp_filter": 0,
        "net.ipv4.conf.default.rp_filter": 0,
        "net.ipv4.conf.all.send_redirects": 0,
        "net.ipv4.conf.default.send_redirects": 0,
    },
    "client": {
        "net.ipv4.ip_local_port_range": "10240 65535",
        "net.ipv6.ip_nonlocal_bind": 1,  # IPv6 binds only to configured addresses otherwise, local route or not
    },
}


@contextmanager
def routes_of(namespace: str) -> Iterator[Any]:
    """pyroute2's ``IPRoute``, speaking to the namespace of that name."""
    netns.pushns(namespace)
    try:
        ipr = IPRoute()
        index = ipr.link_lookup(ifname="lo")[0]  # opens its socket now, inside the namespace
    finally:
        netns.popns()
    with ipr:
        ipr.link("set", index=index, state="up")
        yield ipr


def create(namespaces: Iterable[str]) -> None:
    for namespace in namespaces:
        try:
            netns.create(namespace)
        except OSError as error:
            raise LabError(
                f"cannot make the network namespace {namespace}: {os.strerror(error.errno or 0)} "
                "(root with CAP_SYS_ADMIN is needed, and a kernel with network namespaces)"
            ) from error


def connect(name_of: Callable[[str], str], run: Run) -> None:
    """Link every host to the router and give it its addresses and routes. ``name_of``: host -> namespace."""
    for name in plan.HOST_NAMES:
        role = plan.ROUTER if name == plan.ROUTER else plan.host_named(name).role
        settings = _EVERY_HOST | _BY_ROLE.get(role, {})
        run(name, ["sysctl", "-q", "-w", *(f"{key}={value}" for key, value in settings.items())])
    with routes_of(name_of(plan.ROUTER)) as router:
        for host in plan.HOSTS:
            _connect_host(router, host, name_of(host.name))
    for host in plan.DIRECTORS:
        # A local stack leaves TCP checksums to the card; over veth the director would tunnel them unfinished. With GRO
        # off frames that an XDP program at the other end redirects here count as sent and never arrive.
        run(plan.ROUTER, ["ethtool", "-K", host.router_end, "tx", "off", "gro", "on"])
    for host in plan.PROXIES:
        # The same for what an agent's XDP program bounces.
        run(plan.ROUTER, ["ethtool", "-K", host.router_end, "gro", "on"])


def _connect_host(router: Any, host: plan.Host, namespace: str) -> None:
    with routes_of(namespace) as ipr:
        fd = os.open(NETNS_DIR / namespace, os.O_RDONLY)
        try:
            router.link(
                "add",
                ifname=host.router_end,
                kind="veth",
                mtu=host.mtu_bytes,
                peer={"ifname": "eth0", "net_ns_fd": fd, "mtu": host.mtu_bytes},
            )
        finally:
            os.close(fd)
        near, far = router.link_lookup(ifname=host.router_end)[0], ipr.link_lookup(ifname="eth0")[0]
        for end, index, v4, v6 in ((router, near, host.gateway4, host.gateway6), (ipr, far, host.v4, host.v6)):
            end.addr("add", index=index, address=str(v4), prefixlen=host.net4.prefixlen)
            end.addr("add", index=index, address=str(v6), prefixlen=host.net6.prefixlen)
            end.link("set", index=index, state="up")
        if host.role != "director":
            # The kernel leaves an IPv6 next hop that is still being resolved out of ECMP: flows begun meanwhile would
            # move once it is. (The directors' BGP keeps theirs resolved, and a director must find the router itself.)
            mac = ipr.get_links(far)[0].get_attr("IFLA_ADDRESS")
            for address in (host.v4, host.v6):
                router.neigh("add", dst=str(address), lladdr=mac, ifindex=near, state="permanent")
        ipr.route("add", dst="default", gateway=str(host.gateway4))
        ipr.route("add", dst="default", gateway=str(host.gateway6))
        if host.role == "client":
            lo = ipr.link_lookup(ifname="lo")[0]
            for prefix, gateway in ((plan.CLIENTS_V4, host.v4), (plan.CLIENTS_V6, host.v6)):
                ipr.route("add", dst=str(prefix), type="local", oif=lo, table=255, scope=254)
                router.route("add", dst=str(prefix), gateway=str(gateway))


def add_loopback_vip(namespace: str, vip: plan.Vip) -> None:
    """Let the host answer at the VIP's addresses (the agent does this itself for the VIPs in its own configuration)."""
    with routes_of(namespace) as ipr:
        lo = ipr.link_lookup(ifname="lo")[0]
        for address in vip.addresses:
            ipr.addr("add", index=lo, address=str(address), prefixlen=address.max_prefixlen)


def set_ecmp(router_namespace: str, vip: plan.Vip, proxies: Iterable[plan.Host]) -> None:
    """Route the VIP over these proxies by plain ECMP, in place of the routes before; flows may move by that."""
    proxies = tuple(proxies)
    with routes_of(router_namespace) as ipr:
        for address in vip.addresses:
            _replace_multipath(ipr, address, proxies)


def _replace_multipath(ipr: Any, address: IPv4Address | IPv6Address, proxies: tuple[plan.Host, ...]) -> None:
    gateways = [str(proxy.v4 if address.version == 4 else proxy.v6) for proxy in proxies]
    dst = f"{address}/{address.max_prefixlen}"
    ipr.route("replace", dst=dst, multipath=[{"gateway": gateway} for gateway in gateways])
