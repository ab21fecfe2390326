"""Next hops of the backends, from the kernel's routes and neighbours, kept fresh by netlink notifications."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address

from pyroute2 import AsyncIPRoute
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.rtnl import RTMGRP_IPV4_ROUTE, RTMGRP_LINK, RTMGRP_NEIGH

from glb.director.interface import Interface

log = logging.getLogger(__name__)

_AF_INET = 2
_NTF_USE = 1  # makes the kernel resolve, and confirm, the neighbour as a packet to it would
_NUD_VALID = 0x02 | 0x04 | 0x08 | 0x10 | 0x40 | 0x80  # reachable, stale, delay, probe, noarp, permanent
_REFRESH_S = 5.0  # how often neighbours are confirmed
_NUD_CONFIRMED = 0x02 | 0x40 | 0x80  # reachable, noarp, permanent: nothing to ask
_RESOLVE_S = 0.5  # how long new backends are waited for
_SETTLE_S = 0.01  # notifications come in bursts


@dataclass(frozen=True, slots=True)
class NextHop:
    """Where the tunnel packets for one backend go."""

    gateway: IPv4Address | None  # None: no route by this interface
    mac: bytes | None  # None: not resolved (yet)
    mtu_bytes: int
    fault: str | None = None


class NextHops:
    """Follows routes and neighbours; calls `changed(address, next_hop)` for every backend whose next hop changes."""

    def __init__(
        self, interface: Interface, gateway_mac: bytes | None, changed: Callable[[IPv4Address, NextHop], None]
    ) -> None:
        self._interface = interface
        self._gateway_mac = gateway_mac
        self._changed = changed
        self._backends: list[IPv4Address] = []
        self._routes: dict[IPv4Address, tuple[IPv4Address | None, int, str | None]] = {}
        self._reading = asyncio.Lock()  # one of `follow` and `set_backends` at a time
        self._confirmed: set[IPv4Address] = set()  # neighbours that answered of late, or that the operator has set
        self.known: dict[IPv4Address, NextHop] = {}

    async def set_backends(self, backends: Iterable[IPv4Address]) -> None:
        """Follow exactly these from now on; every known next hop is reported again, to what forwards from now on.

        New ones are given a moment to be resolved, so that the first packets for them are not dropped.
        """
        backends = list(backends)
        new = [address for address in backends if address not in self.known]
        async with self._reading:
            await self._set_backends(backends, new)

    async def _set_backends(self, backends: list[IPv4Address], new: list[IPv4Address]) -> None:
        self._backends = backends
        self.known = {address: hop for address, hop in self.known.items() if address in set(backends)}
        for address, hop in self.known.items():
            self._changed(address, hop)
        if not new:
            return
        async with AsyncIPRoute() as ipr:
            await self._read_routes(ipr)
            await self._read_neighbours(ipr)
            await self._confirm(ipr)
            deadline = asyncio.get_running_loop().time() + _RESOLVE_S
            while True:
                await self._read_neighbours(ipr)
                waiting = [a for a in new if self.known[a].mac is None and self.known[a].gateway is not None]
                if not waiting or asyncio.get_running_loop().time() > deadline:
                    return
                await asyncio.sleep(_SETTLE_S)

    async def follow(self) -> None:
        """Run until cancelled."""
        while True:
            try:
                await self._follow_once()
            except (OSError, NetlinkError) as error:
                log.warning("following routes and neighbours failed (%s); starting again", error)
                await asyncio.sleep(1)

    async def _follow_once(self) -> None:
        dirty = asyncio.Event()
        routes_changed = True
        async with AsyncIPRoute() as monitor, AsyncIPRoute() as ipr:
            await monitor.bind(groups=RTMGRP_LINK | RTMGRP_NEIGH | RTMGRP_IPV4_ROUTE)

            async def listen() -> None:
                nonlocal routes_changed
                while True:
                    async for message in _received(monitor):
                        if "NEIGH" not in str(message.get("event")):
                            routes_changed = True
                        dirty.set()

            listener = asyncio.create_task(listen())
            try:
                while True:
                    async with self._reading:
                        if routes_changed:
                            routes_changed = False
                            await self._read_routes(ipr)
                            await self._read_neighbours(ipr)
                            await self._confirm(ipr)
                        else:
                            await self._read_neighbours(ipr)
                    try:
                        await asyncio.wait_for(dirty.wait(), _REFRESH_S)
                        await asyncio.sleep(_SETTLE_S)
                        dirty.clear()
                    except TimeoutError:
                        await self._confirm(ipr)
                    if listener.done():
                        listener.result()
            finally:
                listener.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await listener

    async def _read_routes(self, ipr: AsyncIPRoute) -> None:
        link = [link async for link in await ipr.get_links(index=self._interface.index)]
        mtu = link[0].get_attr("IFLA_MTU") if link else self._interface.mtu_bytes
        routes = {}
        for address in self._backends:
            routes[address] = await self._route(ipr, address, mtu)
        self._routes = routes

    async def _route(
        self, ipr: AsyncIPRoute, address: IPv4Address, mtu: int
    ) -> tuple[IPv4Address | None, int, str | None]:
        if self._gateway_mac is not None:
            return address, mtu, None
        try:
            route = (await ipr.route("get", dst=str(address)))[0]
        except NetlinkError as error:
            return None, mtu, f"no route to it ({error})"
        if route.get_attr("RTA_OIF") != self._interface.index:
            return None, mtu, f"its route leaves by another interface than {self._interface.name}"
        metrics = route.get_attr("RTA_METRICS")
        path_mtu = metrics.get_attr("RTAX_MTU") if metrics else None
        gateway = route.get_attr("RTA_GATEWAY")
        return IPv4Address(gateway) if gateway else address, min(mtu, path_mtu or mtu), None

    async def _confirm(self, ipr: AsyncIPRoute) -> None:
        """Have the kernel resolve every gateway in use, as traffic that bypasses its stack does not."""
        if self._gateway_mac is not None:
            return
        gateways = {gateway for gateway, _, _ in self._routes.values() if gateway is not None}
        # To "use" a permanent entry would take its permanence, and with it its MAC address, away.
        for gateway in gateways - self._confirmed:
            with contextlib.suppress(NetlinkError):
                await ipr.neigh(
                    "replace",
                    dst=str(gateway),
                    ifindex=self._interface.index,
                    family=_AF_INET,
                    state=0,
                    flags=_NTF_USE,
                )

    async def _read_neighbours(self, ipr: AsyncIPRoute) -> None:
        macs: dict[IPv4Address, bytes] = {}
        confirmed: set[IPv4Address] = set()
        if self._gateway_mac is None:
            async for entry in await ipr.get_neighbours(family=_AF_INET, ifindex=self._interface.index):
                mac, address = entry.get_attr("NDA_LLADDR"), entry.get_attr("NDA_DST")
                if mac and address and entry["ifindex"] == self._interface.index and entry["state"] & _NUD_VALID:
                    macs[IPv4Address(address)] = bytes.fromhex(mac.replace(":", ""))
                    if entry["state"] & _NUD_CONFIRMED:
                        confirmed.add(IPv4Address(address))
        self._confirmed = confirmed
        for address in self._backends:
            gateway, mtu, fault = self._routes.get(address, (None, self._interface.mtu_bytes, None))
            mac = self._gateway_mac or (macs.get(gateway) if gateway is not None else None)
            before = self.known.get(address)
            if mac is None and fault is None:
                fault = f"its gateway {gateway} does not answer ARP"
                # One that is being probed again is better used as it was than not at all.
                if before is not None and before.gateway == gateway:
                    mac = before.mac
            hop = NextHop(gateway, mac, mtu, fault if mac is None else None)
            if hop != before:
                self.known[address] = hop
                self._changed(address, hop)
                if hop.mac is None and before is not None:
                    log.warning("backend %s cannot be reached: %s", address, hop.fault)


async def _received(monitor: AsyncIPRoute) -> AsyncIterator[dict[str, object]]:
    async for message in monitor.get():
        yield message
