"""Binds of all tables -> the prefixes and port segments that a datapath looks up (bpf/glb_layout.h).

Which bind wins (docs/protocol/binds.md): the longest prefix, then the narrowest port range, then the first in the file.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from typing import Protocol

NO_TABLE = 0xFFFF
PROTO_TCP = 6
PROTO_UDP = 17
IPV4_MAPPED = 0xFFFF << 32  # ::ffff:0:0
IPV4_BITS = 96


class BindLike(Protocol):
    """What is read of a bind (glb.table.config.Bind)."""

    @property
    def network(self) -> IPv4Network | IPv6Network: ...
    @property
    def proto(self) -> int: ...
    @property
    def port_first(self) -> int: ...
    @property
    def port_last(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Segment:
    """Ports of one protocol that lead to one table."""

    proto: int  # 6 or 17
    port_first: int  # host order, inclusive
    port_last: int
    table: int  # index


@dataclass(frozen=True, slots=True)
class Prefix:
    """One bound prefix with everything in force for its addresses, inherited segments included."""

    address: int  # 128 bits; IPv4 is ::ffff:a.b.c.d
    length: int  # bits of 128
    segments: tuple[Segment, ...]  # ascending by (proto, port), disjoint
    echo_table: int
    fragment_tables: tuple[int, int]  # later fragments of TCP, UDP; NO_TABLE where ports would be needed to decide


@dataclass(frozen=True, slots=True, order=True)
class _Ranked:
    """A bind with its precedence; smaller wins."""

    shorter_prefix: int  # minus the prefix length
    width: int
    position: int
    first: int
    last: int
    table: int


def compile_binds(binds_of_tables: Sequence[Iterable[BindLike]]) -> list[Prefix]:
    """The prefixes of all tables' binds, in order of address and length.

    `binds_of_tables[i]` are the binds of table i. Overlaps are resolved by precedence; refusing equal binds is the
    work of glb.table.config.
    """
    own: dict[tuple[int, int], dict[int, list[_Ranked]]] = {}
    position = 0
    for table, binds in enumerate(binds_of_tables):
        for bind in binds:
            address, length = mapped(bind.network)
            width = bind.port_last - bind.port_first
            ranked = _Ranked(-length, width, position, bind.port_first, bind.port_last, table)
            own.setdefault((address, length), {}).setdefault(bind.proto, []).append(ranked)
            position += 1
    lengths = sorted({length for _, length in own})
    return [_prefix(address, length, own, lengths) for address, length in sorted(own)]


def mapped(network: IPv4Network | IPv6Network) -> tuple[int, int]:
    """(address, length) of a network in the one 128-bit space that both families share."""
    if network.version == 4:
        return IPV4_MAPPED | int(network.network_address), IPV4_BITS + network.prefixlen
    return int(network.network_address), network.prefixlen


def _prefix(
    address: int, length: int, own: dict[tuple[int, int], dict[int, list[_Ranked]]], lengths: list[int]
) -> Prefix:
    in_force: dict[int, list[_Ranked]] = {PROTO_TCP: [], PROTO_UDP: []}
    for shorter in lengths:
        if shorter > length:
            break
        # An IPv6 prefix shorter than /96 may cover ::ffff:0:0/96; that is not the IPv4 internet.
        if shorter < IPV4_BITS and address >> 32 == 0xFFFF and length >= IPV4_BITS:
            continue
        mask = ((1 << 128) - 1) ^ ((1 << (128 - shorter)) - 1)
        for proto, ranked in own.get((address & mask, shorter), {}).items():
            in_force[proto] += ranked
    segments: list[Segment] = []
    for proto, ranked in sorted(in_force.items()):
        segments += _overlay(proto, ranked)
    of_proto = [{s.table for s in segments if s.proto == proto} for proto in (PROTO_TCP, PROTO_UDP)]
    best = min(bind for ranked in own[address, length].values() for bind in ranked)
    return Prefix(
        address,
        length,
        tuple(segments),
        best.table,
        (_only(of_proto[0]), _only(of_proto[1])),
    )


def _only(tables: set[int]) -> int:
    return next(iter(tables)) if len(tables) == 1 else NO_TABLE


def _overlay(proto: int, ranked: list[_Ranked]) -> list[Segment]:
    """Disjoint segments of the winning binds: a sweep over the ports where some bind starts or ends."""
    starts = sorted(ranked, key=lambda bind: bind.first)
    edges = sorted({bind.first for bind in ranked} | {bind.last + 1 for bind in ranked})
    segments: list[Segment] = []
    live: list[_Ranked] = []
    taken = 0
    for i, edge in enumerate(edges[:-1]):
        while taken < len(starts) and starts[taken].first <= edge:
            heapq.heappush(live, starts[taken])
            taken += 1
        while live and live[0].last < edge:
            heapq.heappop(live)
        if not live:
            continue
        table, last = live[0].table, edges[i + 1] - 1
        previous = segments[-1] if segments else None
        if previous and previous.table == table and previous.port_last == edge - 1:
            segments[-1] = Segment(proto, previous.port_first, last, table)
        else:
            segments.append(Segment(proto, edge, last, table))
    return segments
