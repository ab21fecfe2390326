"""The links that tunnel packets take, and the probes that go over them. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv4Address
from typing import TypeVar

from glb.ctl.path_mtu import Search
from glb.table.config import Bind, State, Table, TableSet
from glb.table.fields import Address
from glb.wire import probe
from glb.wire.gue import PROTO_TCP, encapsulate
from glb.wire.mtu import fitting_mss, overhead_bytes

_Key = TypeVar("_Key")


@dataclass(slots=True, eq=False)
class Link:
    """From this host to a proxy or, with `via`, on from one proxy to the next, for tunnel packets with so many hops."""

    to: IPv4Address
    via: IPv4Address | None
    hops: int
    needed: int  # bytes of the tunnel packet around a client's largest packet
    vip: Address
    port: int  # of the VIP, host order
    search: Search
    routers: dict[str, int] = field(default_factory=dict)  # that said "too big" -> the MTU they stated
    refusal: str | None = None  # why this host did not send

    @property
    def first(self) -> IPv4Address:
        """The proxy that packets are sent to."""
        return self.to if self.via is None else self.via

    @property
    def path_mtu(self) -> int | None:
        return self.search.path_mtu

    def packet(self, outer: IPv4Address, inner: Address, key: int, size: int, gue_port: int) -> bytes:
        """A tunnel packet of `size` bytes that `to` answers, from this host's addresses `outer` and `inner`."""
        length = size - overhead_bytes(self.hops)
        if self.via is None:
            hops = [self.to] * self.hops
            return encapsulate(probe.echo(inner, self.vip, key, length), outer, hops, port=gue_port)
        # An agent skips its own address among the hops, so `to` is the last one however often it is named.
        hops = [self.via, *[self.to] * (self.hops - 1)]
        return encapsulate(probe.stray(inner, self.vip, self.port, key, length), outer, hops, port=gue_port)

    def mss(self) -> dict[int, int] | None:
        """By address family (4, 6) the MSS whose segments fit; None of a link that carries nothing."""
        if self.path_mtu is None:
            return None
        return {family: fitting_mss(self.path_mtu, self.hops, family) for family in (4, 6)}


def links_of(tables: TableSet, client_mtu: int, hops: int | None = None, *, every_pair: bool = False) -> list[Link]:
    """From this host to each proxy; then between proxies: in a ring, so that each sends and receives once, or all.

    `hops`: in one tunnel packet, instead of what the tables say. A link of several tables is taken once, for the
    largest packets.
    """
    direct: dict[IPv4Address, Link] = {}
    onward: dict[tuple[IPv4Address, IPv4Address], Link] = {}
    for table in tables.tables:
        proxies = [
            backend.address
            for backend in table.backends
            if backend.state is not State.inactive and isinstance(backend.address, IPv4Address)
        ]
        places = hops or min(table.hops, len(proxies))
        for proxy in proxies:
            _keep_larger(direct, proxy, _link(table, proxy, None, places, client_mtu))
        if places == 1 or all(bind.proto != PROTO_TCP for bind in table.binds):
            continue  # nothing bounces
        ring = list(zip(proxies, [*proxies[1:], *proxies[:1]], strict=True))
        for via, to in [(a, b) for a in proxies for b in proxies] if every_pair else ring:
            if via != to:
                _keep_larger(onward, (via, to), _link(table, to, via, places, client_mtu))
    return [*direct.values(), *onward.values()]


def _keep_larger(found: dict[_Key, Link], key: _Key, link: Link) -> None:
    if key not in found or link.needed > found[key].needed:
        found[key] = link


def _link(table: Table, to: IPv4Address, via: IPv4Address | None, hops: int, client_mtu: int) -> Link:
    bind = min(table.binds, key=lambda bind: (bind.proto != PROTO_TCP, bind.network.version))
    needed = client_mtu + overhead_bytes(hops)
    least = probe.LEAST_INNER_BYTES + overhead_bytes(hops)
    return Link(to, via, hops, needed, _vip(bind), max(bind.port_first, 1), Search(least, needed))


def _vip(bind: Bind) -> Address:
    """An address of the bind; of a prefix not its first, which some hosts take for a broadcast."""
    return bind.network[1] if bind.network.num_addresses > 2 else bind.network[0]
