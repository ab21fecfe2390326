"""What a change of a table does, row by row: rows moved, rows whose flows would be lost, each backend's share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass

from glb.table.config import Bind, State, Table, TableSet
from glb.table.fields import Address
from glb.table.rows import NO_BACKEND, RowBuilder, Rows


@dataclass(frozen=True, slots=True)
class BackendChange:
    """One backend before and after; None where it is not in the table."""

    address: Address
    state_before: State | None
    state_after: State | None
    share_before: float  # of the rows, as primary; 0 to 1
    share_after: float


@dataclass(frozen=True, slots=True)
class TableDiff:
    """One table before and after."""

    name: str
    n_rows: int
    rows_moved: int  # another primary: new flows go elsewhere
    rows_changed: int  # any hop differs
    rows_at_risk: int  # the old primary is no hop any more: its flows would be lost
    rows_at_risk_unsettled: int  # further rows that lose a hop which, by its states, may still hold older flows
    hash_key_changed: bool  # then every packet may go to another row, and every row is at risk
    binds_added: tuple[Bind, ...]
    binds_removed: tuple[Bind, ...]
    backends: tuple[BackendChange, ...]

    @property
    def rows_losing_flows(self) -> int:
        """All rows at risk, of flows new or old."""
        return self.rows_at_risk + self.rows_at_risk_unsettled


@dataclass(frozen=True, slots=True)
class TableSetDiff:
    tables: tuple[TableDiff, ...]  # in both, by name
    added: tuple[str, ...]
    removed: tuple[str, ...]


def diff_tables(
    old: Table, new: Table, *, builder: RowBuilder | None = None, settled: Collection[Address] = ()
) -> TableDiff:
    """Compare the rows of two versions of a table.

    settled: backends whose older flows are known to have ended; they count only where they are primaries.
    """
    builder = builder or RowBuilder()
    old_rows, new_rows = builder.build(old), builder.build(new)
    moved, changed, at_risk, unsettled = _compare(old, old_rows, new, new_rows, builder, settled)
    hash_key_changed = old.hash_key != new.hash_key
    if hash_key_changed:
        at_risk, unsettled = old_rows.n_rows, 0
    old_binds, new_binds = set(old.binds), set(new.binds)
    return TableDiff(
        name=new.name,
        n_rows=old_rows.n_rows,
        rows_moved=moved,
        rows_changed=changed,
        rows_at_risk=at_risk,
        rows_at_risk_unsettled=unsettled,
        hash_key_changed=hash_key_changed,
        binds_added=tuple(bind for bind in new.binds if bind not in old_binds),
        binds_removed=tuple(bind for bind in old.binds if bind not in new_binds),
        backends=_backend_changes(old, old_rows, new, new_rows),
    )


def diff_sets(old: TableSet, new: TableSet) -> TableSetDiff:
    """Compare two files, table by table; tables are the same if their names are."""
    builder = RowBuilder()
    before = {table.name: table for table in old.tables}
    after = {table.name: table for table in new.tables}
    return TableSetDiff(
        tables=tuple(diff_tables(before[name], after[name], builder=builder) for name in after if name in before),
        added=tuple(name for name in after if name not in before),
        removed=tuple(name for name in before if name not in after),
    )


def column_counts(rows: Rows, column: int) -> Counter[int]:
    """How many rows name each backend index as their hop number `column` (0: primary)."""
    counts = Counter(rows.indexes[column :: rows.stride])
    del counts[NO_BACKEND]
    return counts


def _compare(
    old: Table, old_rows: Rows, new: Table, new_rows: Rows, builder: RowBuilder, settled: Collection[Address]
) -> tuple[int, int, int, int]:
    """(moved, changed, at risk, unsettled)"""
    numbers = {backend.address: index for index, backend in enumerate(new.backends)}
    absent = len(new.backends)  # the number of old backends that the new table does not have
    renumbered = [numbers.get(backend.address, absent) for backend in old.backends]
    settled_numbers = {numbers.get(address, absent) for address in settled}
    renumbered += [NO_BACKEND] * (NO_BACKEND + 1 - len(renumbered))

    def rows_of(indexes: list[int], stride: int) -> list[tuple[int, ...]]:
        return list(zip(*(indexes[column::stride] for column in range(stride)), strict=True))

    before = rows_of(list(map(renumbered.__getitem__, old_rows.indexes)), old_rows.stride)
    owners = rows_of(list(map(renumbered.__getitem__, builder.owners(old, old_rows))), old_rows.stride)
    after = rows_of(list(new_rows.indexes), new_rows.stride)
    moved = changed = at_risk = unsettled = 0
    for old_row, old_owners, new_row in zip(before, owners, after, strict=True):
        if old_row == new_row:
            continue
        changed += _hops(old_row) != _hops(new_row)
        moved += old_row[0] != new_row[0]
        if old_row[0] not in new_row:
            at_risk += 1
        elif any(owner not in new_row and owner not in settled_numbers for owner in _hops(old_owners[1:])):
            unsettled += 1
    return moved, changed, at_risk, unsettled


def _hops(row: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(index for index in row if index != NO_BACKEND)


def _backend_changes(old: Table, old_rows: Rows, new: Table, new_rows: Rows) -> tuple[BackendChange, ...]:
    counted = []
    for table, rows in ((old, old_rows), (new, new_rows)):
        counts = column_counts(rows, 0)
        counted.append(
            {
                b.address: (b.state, counts[index] / rows.n_rows)
                for index, b in reversed(list(enumerate(table.backends)))
            }
        )
    before, after = counted
    addresses = dict.fromkeys(backend.address for table in (old, new) for backend in table.backends)
    nowhere: tuple[State | None, float] = (None, 0.0)
    return tuple(
        BackendChange(address, state_before, state_after, share_before, share_after)
        for address in addresses
        for (state_before, share_before), (state_after, share_after) in [
            (before.get(address, nowhere), after.get(address, nowhere))
        ]
    )
