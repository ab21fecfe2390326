"""Why a packet goes where it goes: what is hashed, the row, its candidates in order, and why each hop stands there.

Hash and row: docs/protocol/table.md, "From a packet to a row"; the hops: there, "Row rules".
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass

from glb import _rendezvous
from glb.table.config import Backend, Bind, State, Table, TableSet
from glb.table.fields import Address, shown
from glb.table.rows import RowBuilder, is_usable, placed_weights

HASH_FIELDS = ("src_addr", "dst_addr", "src_port", "dst_port")  # in the order in which they are hashed
DEFAULT_HASH_FIELDS = ("src_addr",)

_TCP, _UDP = 6, 17
_SOURCE_PORT_BASE = 0x8000
_INNER_PROTOCOLS = {4: 4, 6: 41}  # IP version -> the GUE header's protocol byte


@dataclass(frozen=True, slots=True)
class Flow:
    """A packet, as far as a director looks at it. Both ports are 0 for an ICMP echo request."""

    source: Address
    destination: Address
    proto: int  # 6, 17, or 1 / 58 for an echo request
    source_port: int = 0  # host order
    destination_port: int = 0  # host order


@dataclass(frozen=True, slots=True)
class Hop:
    address: Address
    reason: str


@dataclass(frozen=True, slots=True)
class Candidate:
    """A backend's place in the rendezvous order of the row."""

    address: Address
    state: State
    healthy: bool | None
    rank: int  # the 8 hash bytes as a big-endian number; without weights, the smallest is first
    weight: int
    zone: str | None
    score: int | None  # with weights, the smallest is first; None: all weights are equal


@dataclass(frozen=True, slots=True)
class Choice:
    """One hash, and the row that it selects."""

    fields: tuple[str, ...]
    hash_input: bytes
    hash: int  # 64 bits
    row: int
    candidates: tuple[Candidate, ...]
    hops: tuple[Hop, ...]


@dataclass(frozen=True, slots=True)
class Explanation:
    table: Table
    bind: Bind
    choice: Choice
    alternative: Choice | None  # by alt_hash_fields
    hops: tuple[Hop, ...]  # all hops of the tunnel packet, the outer destination first
    source_port: int | None  # of the outer UDP header; None for echo requests (it depends on each packet)
    gue_header: bytes


def explain_flow(
    tables: TableSet,
    flow: Flow,
    *,
    hash_fields: Sequence[str] = DEFAULT_HASH_FIELDS,
    alt_hash_fields: Sequence[str] = (),
    builder: RowBuilder | None = None,
) -> Explanation | None:
    """Follow one packet through the tables; None if no bind is for it (it goes to the host's own stack).

    builder: keep one for many packets, and the tables are ordered once.
    """
    found = find_bind(tables, flow)
    if found is None:
        return None
    table, bind = found
    builder = builder or RowBuilder()
    choice = _choose(table, flow, hash_fields, builder)
    alternative = _choose(table, flow, alt_hash_fields, builder) if alt_hash_fields else None
    hops = list(choice.hops)
    for hop in alternative.hops if alternative else ():
        if table.row_rule == "glb2" or hop.address not in [listed.address for listed in hops]:
            hops.append(hop)
    return Explanation(
        table,
        bind,
        choice,
        alternative,
        tuple(hops),
        _SOURCE_PORT_BASE | ((choice.hash ^ flow.source_port) & 0x7FFF) if flow.proto in (_TCP, _UDP) else None,
        _gue_header(flow.destination.version, hops[1:]),
    )


def find_bind(tables: TableSet, flow: Flow) -> tuple[Table, Bind] | None:
    """The bind that wins: the longest prefix, then the narrower port range. An echo request matches by address only."""
    matching = [
        (-bind.network.prefixlen, bind.port_last - bind.port_first, position, table, bind)
        for position, (table, bind) in enumerate((table, bind) for table in tables.tables for bind in table.binds)
        if _matches(bind, flow)
    ]
    return min(matching, key=lambda match: match[:3])[3:] if matching else None


def _matches(bind: Bind, flow: Flow) -> bool:
    if flow.destination.version != bind.network.version or flow.destination not in bind.network:
        return False
    if flow.proto not in (_TCP, _UDP):
        return True
    return flow.proto == bind.proto and bind.port_first <= flow.destination_port <= bind.port_last


def hash_input(flow: Flow, hash_fields: Sequence[str]) -> bytes:
    """The bytes that are hashed: the chosen fields in the fixed order, as they are on the wire."""
    wire = {
        "src_addr": flow.source.packed,
        "dst_addr": flow.destination.packed,
        "src_port": flow.source_port.to_bytes(2, "big"),
        "dst_port": flow.destination_port.to_bytes(2, "big"),
    }
    return b"".join(wire[name] for name in HASH_FIELDS if name in hash_fields)


def _choose(table: Table, flow: Flow, hash_fields: Sequence[str], builder: RowBuilder) -> Choice:
    message = hash_input(flow, hash_fields)
    value = _rendezvous.siphash24(table.hash_key, message)
    row = value % table.n_rows
    rendezvous = builder.order(table)
    _, ranks, order = rendezvous.row(row)
    scores = map(_rendezvous.score, ranks, placed_weights(table)) if rendezvous.weighted else [None] * len(ranks)
    candidates = [
        Candidate(backend.address, backend.state, backend.healthy, rank, backend.weight, backend.zone, score)
        for backend, rank, score in zip(table.backends, ranks, scores, strict=True)
    ]
    indexes = builder.build(table).row(row)
    present = [index for index in order if table.backends[index].state is not State.inactive]
    return Choice(
        tuple(name for name in HASH_FIELDS if name in hash_fields),
        message,
        value,
        row,
        tuple(candidates[index] for index in order),
        tuple(Hop(table.backends[index].address, _reason(table, present, indexes[0], index)) for index in indexes),
    )


def _reason(table: Table, present: list[int], primary: int, index: int) -> str:
    """Why the row rule put this backend into the row. `present`: the order without inactive backends."""
    backend = table.backends[index]
    place = f"number {present.index(index) + 1} of the order"
    if table.row_rule == "glb2":
        return _glb2_reason(table, present, primary, index, place)
    if index == primary:
        if not any(is_usable(other) for other in table.backends):
            return "primary: no backend is usable, so the plain order is kept (fail open)"
        return f"primary: the first usable, {place}"
    if present.index(index) < present.index(primary):
        if backend.healthy is not False:
            return f"{place}, {_condition(backend)}: still holds older flows of this row"
        return f"{place}, {_condition(backend)}: a second chance, should that be a false alarm"
    if index == _first_elsewhere(table, present, primary):
        return f"{place}, the first usable outside the primary's zone {shown(table.backends[primary].zone)}"
    return f"{place}, after the primary"


def _first_elsewhere(table: Table, present: list[int], primary: int) -> int | None:
    """The backend that the primary's zone makes the second hop, if there is one."""
    zone = table.backends[primary].zone
    usable = (index for index in present if is_usable(table.backends[index]) and is_usable(table.backends[primary]))
    return next(
        (index for index in usable if zone is not None and table.backends[index].zone not in (zone, None)), None
    )


def _glb2_reason(table: Table, present: list[int], primary: int, index: int, place: str) -> str:
    first = table.backends[present[0]]
    swapped = primary != present[0]
    if index == primary:
        if swapped:
            return f"primary: {place}, exchanged with {first.address}, which is {_condition(first)}"
        return f"primary: {place}"
    return f"{place}, exchanged with the primary" if swapped else place


def _condition(backend: Backend) -> str:
    """State and health in words."""
    health = {True: "healthy", False: "unhealthy", None: "not health-checked"}[backend.healthy]
    if backend.weight == 0 and backend.state is not State.draining:
        return f"{backend.state.value} with weight 0 and {health}"
    return f"{backend.state.value} and {health}"


def _gue_header(inner_version: int, hops: Sequence[Hop]) -> bytes:
    """GUE header with the remaining hops as private data (docs/protocol/gue.md)."""
    packed = [hop.address.packed for hop in hops if isinstance(hop.address, ipaddress.IPv4Address)]
    base = bytes([1 + len(packed), _INNER_PROTOCOLS[inner_version], 0, 0])
    return base + bytes([0, 0, 0, len(packed)]) + b"".join(packed)
