"""What a change of a table does, row by row: rows moved, rows whose flows would be lost, each backend's share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from glb.table.config import Bind, State, Table, TableSet
from glb.table.fields import Address
from glb.table.rows import NO_BACKEND, RowBuilder
from glb.table.safety import Numbering, Past, differing, implied_past, rows_at_risk
from glb.table.shares import column_counts


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
    n_rows: int  # of the old table or the new one, whichever has more
    rows_moved: int  # another primary: new flows go elsewhere
    rows_changed: int  # any hop differs
    rows_at_risk: int  # an owner is no hop any more, or comes behind an unhealthy one: glb.table.safety
    rows_behind_unhealthy: int  # those of them for the latter reason only
    holders: tuple[tuple[Address, int], ...]  # whose flows are at risk, in how many rows
    hash_key_changed: bool  # then every packet may go to another row, and every row is at risk
    binds_added: tuple[Bind, ...]
    binds_removed: tuple[Bind, ...]
    backends: tuple[BackendChange, ...]


@dataclass(frozen=True, slots=True)
class TableSetDiff:
    tables: tuple[TableDiff, ...]  # in both, by name
    added: tuple[str, ...]
    removed: tuple[str, ...]


def diff_tables(old: Table, new: Table, *, past: Sequence[Past] = (), builder: RowBuilder | None = None) -> TableDiff:
    """Compare the rows of two versions of a table.

    past: what was in force since the table was last settled, `old` last; by default what the states of `old` imply.
    """
    builder = builder or RowBuilder()
    risk = rows_at_risk(past or implied_past(old), new, builder=builder)
    moved, changed = _compare(old, new, builder)
    old_binds, new_binds = set(old.binds), set(new.binds)
    return TableDiff(
        name=new.name,
        n_rows=max(old.n_rows, new.n_rows),
        rows_moved=moved,
        rows_changed=changed,
        rows_at_risk=risk.at_risk,
        rows_behind_unhealthy=risk.behind_unhealthy,
        holders=risk.holders,
        hash_key_changed=old.hash_key != new.hash_key,
        binds_added=tuple(bind for bind in new.binds if bind not in old_binds),
        binds_removed=tuple(bind for bind in old.binds if bind not in new_binds),
        backends=_backend_changes(old, new, builder),
    )


def diff_sets(
    old: TableSet, new: TableSet, *, past: Mapping[str, Sequence[Past]] | None = None, builder: RowBuilder | None = None
) -> TableSetDiff:
    """Compare two files, table by table; tables are the same if their names are. past: by name, as in `diff_tables`."""
    builder = builder or RowBuilder()
    before = {table.name: table for table in old.tables}
    after = {table.name: table for table in new.tables}
    return TableSetDiff(
        tables=tuple(
            diff_tables(before[name], after[name], past=(past or {}).get(name, ()), builder=builder)
            for name in after
            if name in before
        ),
        added=tuple(name for name in after if name not in before),
        removed=tuple(name for name in before if name not in after),
    )


def _compare(old: Table, new: Table, builder: RowBuilder) -> tuple[int, int]:
    """(rows with another primary, rows with any other hop)"""
    numbering = Numbering([old, new])
    before, after = (numbering.columns(table, builder).hops for table in (old, new))
    n_rows = numbering.n_rows
    absent = int.from_bytes(NO_BACKEND.to_bytes(2, "little") * n_rows, "little")
    changed = moved = differing(n_rows, before[0], after[0])
    for hop in range(1, max(len(before), len(after))):
        columns = (hops[hop] if hop < len(hops) else absent for hops in (before, after))
        changed |= differing(n_rows, *columns)
    return moved.bit_count(), changed.bit_count()


def _backend_changes(old: Table, new: Table, builder: RowBuilder) -> tuple[BackendChange, ...]:
    counted = []
    for table in (old, new):
        rows = builder.build(table)
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
