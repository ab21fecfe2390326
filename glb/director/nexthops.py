"""Next hops of the backends, from the kernel's routes and neighbours, kept fresh by netlink notifications."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

from pyroute2 import AsyncIPRoute
from pyroute2.netlink.exceptions import NetlinkError

from glb.director.interface import Interface
from glb.director.links import Link, read_links
from glb.director.notifications import Notifications

log = logging.getLogger(__name__)

Gateway = IPv4Address | IPv6Address  # the latter: a route for IPv4 by an IPv6 neighbour (RFC 5549)

_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
_NTF_USE = 1  # makes the kernel resolve, and confirm, the neighbour as a packet to it would
_NUD_VALID = 0x02 | 0x04 | 0x08 | 0x10 | 0x40 | 0x80  # reachable, stale, delay, probe, noarp, permanent
_REFRESH_S = 5.0  # how often neighbours are confirmed
_NUD_CONFIRMED = 0x02 | 0x40 | 0x80  # reachable, noarp, permanent: nothing to ask
_RESOLVE_S = 0.5  # how long new backends are waited for, and new gateways of old ones
_SETTLE_S = 0.01  # notifications come in bursts
# Between two readings of the routes, each of which asks for every backend's: a BGP table that is built or renewed tells
# of thousands of routes a second, for minutes. A backend's takes some 0.3 ms, so thousands of them take longer to read
# than that; a reload with new ones waits for a reading, and there is other work.
_ROUTES_S = 0.2
_ROUTES_PAUSE = 3  # times what the last reading took, where that is more


@dataclass(frozen=True, slots=True)
class NextHop:
    """Where the tunnel packets for one backend go."""

    gateway: Gateway | None  # None: no route
    link: Link | None  # the interface that they leave by; None: no route
    mac: bytes | None  # None: not resolved (yet)
    mtu_bytes: int
    fault: str | None = None


@dataclass(frozen=True, slots=True)
class _Route:
    gateway: Gateway | None = None
    ifindex: int | None = None
    mtu_bytes: int | None = None  # its own, where it has one
    fault: str | None = None


class NextHops:
    """Follows routes, links and neighbours; calls `changed(address, next_hop)` where a backend's changes."""

    def __init__(
        self, interface: Interface, gateway_mac: bytes | None, changed: Callable[[IPv4Address, NextHop], None]
    ) -> None:
        self._interface = interface
        self._gateway_mac = gateway_mac
        self._changed = changed
        self._backends: list[IPv4Address] = []
        self._routes: dict[IPv4Address, _Route] = {}
        self._links: dict[int, Link] = {}  # those that routes lead to, or have led to
        self._moving: dict[
            IPv4Address, float
        ] = {}  # until when the hop before is used: its new gateway is being resolved
        self._reading = asyncio.Lock()  # one of `follow` and `set_backends` at a time
        self._confirmed: set[tuple[int, Gateway]] = (
            set()
        )  # neighbours that answered of late, or that the operator has set
        self.known: dict[IPv4Address, NextHop] = {}

    async def set_backends(self, backends: Iterable[IPv4Address]) -> None:
        """Follow exactly these from now on; every known next hop is reported again, to what forwards from now on.

        New ones are given a moment to be resolved, so that the first packets for them are not dropped.
        """
        backends = list(backends)
        new = [address for address in backends if address not in self.known]
        if not new:  # nothing to read: not even for the kernel, whose netlink may be busy, a reload waits
            self._adopt(backends)
            return
        async with self._reading:
            self._adopt(backends)
            await self._resolve(new)

    def _adopt(self, backends: list[IPv4Address]) -> None:
        wanted = set(backends)
        self._backends = backends
        self.known = {address: hop for address, hop in self.known.items() if address in wanted}
        self.report()

    async def _resolve(self, new: list[IPv4Address]) -> None:
        async with AsyncIPRoute() as ipr:
            await self._read_routes(ipr)
            await self._read_links(ipr)
            await self._read_neighbours(ipr)
            await self._confirm(ipr)
            deadline = asyncio.get_running_loop().time() + _RESOLVE_S
            while True:
                await self._read_neighbours(ipr)
                waiting = [a for a in new if self.known[a].mac is None and self.known[a].gateway is not None]
                if not waiting or asyncio.get_running_loop().time() > deadline:
                    return
                await asyncio.sleep(_SETTLE_S)

    def report(self) -> None:
        """Tell every known next hop again."""
        for address, hop in self.known.items():
            self._changed(address, hop)

    async def follow(self) -> None:
        """Run until cancelled."""
        while True:
            try:
                await self._follow_once()
            except (OSError, NetlinkError) as error:
                log.warning("following routes and neighbours failed (%s); starting again", error)
                await asyncio.sleep(1)

    async def _follow_once(self) -> None:
        clock = asyncio.get_running_loop().time
        neighbours_changed = routes_changed = True
        routes_at = 0.0  # they are not read again before, however much there is to hear of them
        due_at = 0.0  # links are read and neighbours confirmed then, however much there is to hear of others
        with contextlib.closing(Notifications()) as notifications:
            async with AsyncIPRoute() as ipr:
                while True:
                    async with self._reading:
                        begun_at = clock()
                        reads_routes = routes_changed and begun_at >= routes_at
                        is_due = reads_routes or begun_at >= due_at
                        if reads_routes:
                            routes_changed = False
                            await self._read_routes(ipr)
                        if is_due:
                            # Nobody tells of what a driver takes from XDP programs.
                            await self._read_links(ipr)
                        if is_due or neighbours_changed:
                            await self._read_neighbours(ipr)
                        if is_due:
                            await self._confirm(ipr)
                            due_at = clock() + _REFRESH_S
                    if reads_routes:  # and with them the rest, which takes its time as well
                        routes_at = clock() + max(_ROUTES_S, _ROUTES_PAUSE * (clock() - begun_at))
                    if self._moving:
                        due_at = min(due_at, clock() + _RESOLVE_S)
                    wake_at = min(due_at, routes_at) if routes_changed else due_at
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(notifications.wait(), max(0.0, wake_at - clock()))
                        await asyncio.sleep(_SETTLE_S)
                    neighbours_changed, routes_too = notifications.take()
                    routes_changed = routes_changed or routes_too

    async def _read_routes(self, ipr: AsyncIPRoute) -> None:
        self._routes = {address: await self._route(ipr, address) for address in self._backends}

    async def _route(self, ipr: AsyncIPRoute, address: IPv4Address) -> _Route:
        if self._gateway_mac is not None:
            return _Route(address, self._interface.index)
        try:
            route = (await ipr.route("get", dst=str(address)))[0]
        except NetlinkError as error:
            return _Route(fault=f"no route to it ({error})")
        metrics = route.get_attr("RTA_METRICS")
        via = route.get_attr("RTA_VIA")
        gateway = via["addr"] if via else route.get_attr("RTA_GATEWAY")
        return _Route(
            ip_address(gateway) if gateway else address,
            route.get_attr("RTA_OIF"),
            metrics.get_attr("RTAX_MTU") if metrics else None,
        )

    async def _read_links(self, ipr: AsyncIPRoute) -> None:
        indexes = {route.ifindex for route in self._routes.values() if route.ifindex is not None}
        indexes |= {hop.link.index for hop in self.known.values() if hop.link is not None}
        self._links = await read_links(ipr, indexes, ask_xdp_of=indexes - {self._interface.index})

    async def _confirm(self, ipr: AsyncIPRoute) -> None:
        """Have the kernel resolve every gateway in use, as traffic that bypasses its stack does not."""
        if self._gateway_mac is not None:
            return
        # To "use" a permanent entry would take its permanence, and with it its MAC address, away.
        for ifindex, gateway in self._gateways() - self._confirmed:
            family = _FAMILIES[gateway.version]
            with contextlib.suppress(NetlinkError):
                await ipr.neigh("replace", dst=str(gateway), ifindex=ifindex, family=family, state=0, flags=_NTF_USE)

    def _gateways(self) -> set[tuple[int, Gateway]]:
        """The neighbours in use, by interface."""
        return {
            (route.ifindex, route.gateway)
            for route in self._routes.values()
            if route.gateway is not None and route.ifindex is not None
        }

    async def _read_neighbours(self, ipr: AsyncIPRoute) -> None:
        macs: dict[tuple[int, Gateway], bytes] = {}
        confirmed: set[tuple[int, Gateway]] = set()
        gateways = self._gateways() if self._gateway_mac is None else set()
        for ifindex, version in {(ifindex, gateway.version) for ifindex, gateway in gateways}:
            async for entry in await ipr.get_neighbours(family=_FAMILIES[version], ifindex=ifindex):
                mac, address = entry.get_attr("NDA_LLADDR"), entry.get_attr("NDA_DST")
                if mac and address and entry["ifindex"] == ifindex and entry["state"] & _NUD_VALID:
                    neighbour = (ifindex, ip_address(address))
                    macs[neighbour] = bytes.fromhex(mac.replace(":", ""))
                    if entry["state"] & _NUD_CONFIRMED:
                        confirmed.add(neighbour)
        self._confirmed = confirmed
        for address in self._backends:
            before = self.known.get(address)
            hop = self._hop(address, before, macs)
            if hop != before:
                self.known[address] = hop
                self._changed(address, hop)
                if hop.mac is None and before is not None:
                    log.warning("backend %s cannot be reached: %s", address, hop.fault)
        self._moving = {address: until for address, until in self._moving.items() if address in self._routes}

    def _hop(self, address: IPv4Address, before: NextHop | None, macs: Mapping[tuple[int, Gateway], bytes]) -> NextHop:
        route = self._routes.get(address, _Route())
        link = self._links.get(route.ifindex) if route.ifindex is not None else None
        mtu = link.mtu_bytes if link else self._interface.mtu_bytes
        mtu = min(mtu, route.mtu_bytes or mtu)
        if link is None or link.mac is None or route.gateway is None:
            self._moving.pop(address, None)
            other = f"its route leaves by {link.name}, no Ethernet interface" if link else "its interface is gone"
            return NextHop(None, link, None, mtu, route.fault or other)
        mac = self._gateway_mac or macs.get((link.index, route.gateway))
        if mac is not None:
            self._moving.pop(address, None)
            return NextHop(route.gateway, link, mac, mtu)
        if before is not None and before.mac is not None and before.link is not None:
            # One that is being probed again is better used as it was than not at all.
            if before.gateway == route.gateway and before.link.index == link.index:
                return NextHop(route.gateway, link, before.mac, mtu)
            # So is the way that a route has just left, until its new gateway has had time to answer.
            until = self._moving.setdefault(address, time.monotonic() + _RESOLVE_S)
            old = self._links.get(before.link.index)
            if old is not None and old.up and time.monotonic() < until:
                return before
        self._moving.pop(address, None)
        how = "ARP" if route.gateway.version == 4 else "neighbour discovery"
        fault = f"its gateway {route.gateway} does not answer {how} on {link.name}"
        return NextHop(route.gateway, link, None, mtu, fault)
