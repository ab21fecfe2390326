"""Which rows would lose live flows by a change (docs/protocol/safety.md).

The *owners* of a row are the backends that may hold live flows of it: its primaries since the table was last settled,
as far as they have been among its hops ever since. A change puts a row at risk if an owner is no hop of it any more, or
if an unhealthy hop is put before an owner: should that one really be dead, it swallows what is bounced to it.

All rows are computed at once: a column (everybody's hop number j) is one Python integer with 16 bits per row, a *lane*;
a set of rows, a *mask*, is an integer with the top bits of their lanes set. 65,536 rows compare in 40 us.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import msgspec

from glb.table.config import Backend, State, Table
from glb.table.fields import Address
from glb.table.rows import RowBuilder, Rows

_LANE_BITS = 16


@dataclass(frozen=True, slots=True)
class Past:
    """A configuration that was in force, or is. `ended`: backends whose flows from then and before have ended."""

    table: Table
    ended: frozenset[Address] = frozenset()


@dataclass(frozen=True, slots=True)
class Risk:
    """What a change would lose."""

    n_rows: int  # of the old table or the new one, whichever has more
    at_risk: int  # rows that would, or could, lose flows
    behind_unhealthy: int  # those of them where no owner is left out, but one comes behind an unhealthy hop
    holders: tuple[tuple[Address, int], ...]  # whose flows, in how many rows; most rows first


# ---- the past, as a list of configurations, the last one in force


def settled(past: Sequence[Past], backends: Collection[Address] | None = None) -> tuple[Past, ...]:
    """The past once displaced flows have ended: all, or those that these backends held.

    Flows of the rows in which a backend is primary now go on, whatever is said.
    """
    if backends is None:
        return (Past(past[-1].table),)
    gone = frozenset(backends)
    return (*(Past(each.table, each.ended | gone) for each in past[:-1]), past[-1])


def implied_past(table: Table) -> tuple[Past, ...]:
    """What was before, where nobody has kept it: what is draining was active, what is filling was not there.

    First all of that at once, then each by itself, then the table as it is.
    """
    before = {State.draining: State.active, State.filling: State.inactive}
    unsettled = [index for index, backend in enumerate(table.backends) if backend.state in before]

    def undone(indexes: Collection[int]) -> Table:
        backends = [
            msgspec.structs.replace(backend, state=before[backend.state]) if index in indexes else backend
            for index, backend in enumerate(table.backends)
        ]
        return msgspec.structs.replace(table, backends=tuple(backends))

    steps = [unsettled, *([index] for index in unsettled if len(unsettled) > 1)] if unsettled else []
    tables = [undone(step) for step in steps]
    return (*(Past(each) for each in tables if _takes_part(each)), Past(table))


def _takes_part(table: Table) -> bool:
    return any(backend.state is not State.inactive for backend in table.backends)


def rows_at_risk(past: Sequence[Past], new: Table, *, builder: RowBuilder | None = None) -> Risk:
    """What going from the last of `past` to `new` would lose."""
    numbering = Numbering([*(each.table for each in past), new])
    builder = builder or RowBuilder()
    owners = _owners(past, numbering, builder)
    if past[-1].table.hash_key != new.hash_key:  # every flow may go to another row
        return Risk(numbering.n_rows, numbering.n_rows, 0, owners.holders(numbering, owners.masks))
    _, loss = owners.after(numbering.columns(new, builder))
    return Risk(
        numbering.n_rows,
        (loss.left_out | loss.behind).bit_count(),
        (loss.behind & ~loss.left_out).bit_count(),
        owners.holders(numbering, loss.masks),
    )


def displaced_owners(past: Sequence[Past], *, builder: RowBuilder | None = None) -> tuple[tuple[Address, int], ...]:
    """Who may hold flows of how many rows in which it is not primary now; most rows first."""
    numbering = Numbering([each.table for each in past])
    owners = _owners(past, numbering, builder or RowBuilder())
    return owners.holders(numbering, (0, *owners.masks[1:]))


def _owners(past: Sequence[Past], numbering: Numbering, builder: RowBuilder) -> Owners:
    first, *later = past
    owners = Owners.settled(numbering.columns(first.table, builder), numbering.indexes(first.ended))
    key = first.table.hash_key
    for each in later:
        columns, ended = numbering.columns(each.table, builder), numbering.indexes(each.ended)
        if each.table.hash_key == key:
            owners = owners.after(columns, ended)[0]
        else:
            owners = Owners.settled(columns, ended)
        key = each.table.hash_key
    return owners


class Numbering:
    """One index for each backend of several versions of a table, and as many rows as the largest of them has."""

    def __init__(self, tables: Sequence[Table]) -> None:
        self.n_rows = max(table.n_rows for table in tables)
        self._backends: dict[tuple[Address, int], Backend] = {}  # by address, and place among those of equal address
        for table in tables:
            for key, backend in self._keyed(table):
                self._backends.setdefault(key, msgspec.structs.replace(backend, state=State.inactive))

    def table(self, table: Table) -> Table:
        """The same rows by these indexes: every backend of all versions, those not in this one inactive."""
        here = dict(self._keyed(table))
        backends = tuple(here.get(key, absent) for key, absent in self._backends.items())
        return msgspec.structs.replace(table, backends=backends)

    def columns(self, table: Table, builder: RowBuilder) -> Columns:
        """The rows of one version, every row as often as n_rows is larger: hash mod rows names the same ones."""
        numbered = self.table(table)
        unhealthy = [index for index, backend in enumerate(numbered.backends) if backend.healthy is False]
        return Columns.of(builder.build(numbered), self.n_rows, unhealthy)

    def indexes(self, addresses: Collection[Address]) -> list[int]:
        return [index for index, (address, _) in enumerate(self._backends) if address in addresses]

    def address(self, index: int) -> Address:
        return list(self._backends)[index][0]

    @staticmethod
    def _keyed(table: Table) -> Iterable[tuple[tuple[Address, int], Backend]]:
        seen: Counter[Address] = Counter()
        for backend in table.backends:
            yield (backend.address, seen[backend.address]), backend
            seen[backend.address] += 1


# ---- lanes

Lanes = int  # 16 bits per row
Mask = int  # the top bits of the lanes of some rows


@lru_cache(8)
def _ones(n_rows: int) -> Lanes:
    return int.from_bytes(b"\x01\x00" * n_rows, "little")


def all_rows(n_rows: int) -> Mask:
    """The mask of all rows."""
    return _ones(n_rows) << (_LANE_BITS - 1)


def lanes_of(values: array[int]) -> Lanes:
    """One 16-bit value per row -> a column. Row 0 is in the lowest bits."""
    return int.from_bytes(values.tobytes(), "little")


def differing(n_rows: int, one: Lanes, other: Lanes) -> Mask:
    """The rows in which two columns differ."""
    high = all_rows(n_rows)
    low = high - _ones(n_rows)  # all bits of a lane but the top one
    difference = one ^ other
    return ((difference & low) + low | difference) & high


@dataclass(frozen=True, slots=True)
class Columns:
    """Rows by column: the backend index of every row's hop number j, 0xffff where a row has no such hop."""

    n_rows: int
    hops: tuple[Lanes, ...]
    unhealthy: tuple[Mask, ...]  # per hop: the rows in which it is unhealthy

    @classmethod
    def of(cls, rows: Rows, n_rows: int, unhealthy: Collection[int]) -> Columns:
        """n_rows: a multiple of the rows' own; unhealthy: backend indexes."""
        columns = [rows.indexes[hop :: rows.stride] for hop in range(rows.hops)]
        hops = [lanes_of(column * (n_rows // rows.n_rows)) for column in columns]
        none = [0] * rows.hops
        masks = none if not unhealthy else [_lanes_among(lanes, n_rows, unhealthy) for lanes in hops]
        return cls(n_rows, tuple(hops), tuple(masks))


def _lanes_among(lanes: Lanes, n_rows: int, indexes: Collection[int]) -> Mask:
    """The rows whose value is one of the indexes."""
    flags = bytearray(1 << _LANE_BITS)
    for index in indexes:
        flags[index] = 1
    column = array("H", lanes.to_bytes(2 * n_rows, "little"))
    return lanes_of(array("H", map(flags.__getitem__, column))) << (_LANE_BITS - 1)


# ---- owners


@dataclass(frozen=True, slots=True)
class Loss:
    """What one change takes from the owners before it."""

    left_out: Mask  # rows with an owner that is no hop any more
    behind: Mask  # rows with an owner that an unhealthy hop is put before
    masks: tuple[Mask, ...]  # both, by the owner's place among the old hops


@dataclass(frozen=True, slots=True)
class Owners:
    """Per hop of the rows in force, the mask of the rows in which it may hold flows."""

    columns: Columns
    masks: tuple[Mask, ...]

    @classmethod
    def settled(cls, columns: Columns, ended: Collection[int] = ()) -> Owners:
        """Nobody but the primaries; of them not those whose flows have ended."""
        return cls(columns, (_new_owners(columns, ended), *(0 for _ in columns.hops[1:])))

    def after(self, new: Columns, ended: Collection[int] = ()) -> tuple[Owners, Loss]:
        """The owners once these rows are in force, and what is lost by that. `ended`: as in `settled`."""
        every, old = all_rows(new.n_rows), self.columns
        alike = [[every ^ differing(new.n_rows, one, other) for other in new.hops] for one in old.hops]
        kept = [0] * len(new.hops)
        left_out = behind = 0
        masks = []
        for place, mask in enumerate(self.masks):
            found = hidden = 0
            for now, same in enumerate(alike[place]):
                here = mask & same
                if not here:
                    continue
                found |= here
                kept[now] |= here
                for before in range(now):
                    # That it was unhealthy and before the owner already, and the flows live on, proves it alive.
                    fresh = here & new.unhealthy[before]
                    for earlier in range(place):
                        fresh &= ~(alike[earlier][before] & old.unhealthy[earlier])
                    hidden |= fresh
            left_out |= mask ^ found
            behind |= hidden
            masks.append(mask ^ found | hidden)
        kept[0] |= _new_owners(new, ended)
        return Owners(new, tuple(kept)), Loss(left_out, behind, tuple(masks))

    def holders(self, numbering: Numbering, masks: Sequence[Mask]) -> tuple[tuple[Address, int], ...]:
        """In how many rows of these masks, one per hop, is each backend that hop; most rows first."""
        counts: Counter[int] = Counter()
        for hop, mask in zip(self.columns.hops, masks, strict=True):
            if mask:
                n_bytes = 2 * self.columns.n_rows
                chosen = array("H", (mask >> (_LANE_BITS - 1)).to_bytes(n_bytes, "little"))
                values = array("H", hop.to_bytes(n_bytes, "little"))
                counts.update(value for value, flag in zip(values, chosen, strict=True) if flag)
        return tuple((numbering.address(index), rows) for index, rows in counts.most_common())


def _new_owners(columns: Columns, ended: Collection[int]) -> Mask:
    """The rows whose primary takes new flows that nobody says have ended."""
    every = all_rows(columns.n_rows)
    if not ended:
        return every
    return every & ~_lanes_among(columns.hops[0], columns.n_rows, ended)
