"""What a change does, as glbctl prints it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from glb.ctl.output import Cell, Share, print_columns, print_line, say

if TYPE_CHECKING:
    from glb.table.diff import TableDiff, TableSetDiff

_MAX_BINDS_PRINTED = 64


def set_diff_json(diff: TableSetDiff) -> dict[str, object]:
    """The diff of two files as it is printed by -o json."""
    return {
        "rows_moved": sum(entry.rows_moved for entry in diff.tables),
        "rows_at_risk": sum(entry.rows_at_risk for entry in diff.tables),
        "tables": [diff_json(entry) for entry in diff.tables],
        "added": list(diff.added),
        "removed": list(diff.removed),
    }


def print_set_diff(diff: TableSetDiff) -> None:
    """The diff of two files for people."""
    for name in diff.added:
        print_line(f"{name}: added")
    for name in diff.removed:
        print_line(f"{name}: removed; flows to its binds are lost")
    for entry in diff.tables:
        print_diff(entry)


def diff_json(entry: TableDiff) -> dict[str, object]:
    """One table's diff as it is printed by -o json."""
    from glb.table.change import bind_text

    return {
        "name": entry.name,
        "n_rows": entry.n_rows,
        "rows_moved": entry.rows_moved,
        "rows_changed": entry.rows_changed,
        "rows_at_risk": entry.rows_at_risk,
        "rows_behind_unhealthy": entry.rows_behind_unhealthy,
        "holders": [{"address": str(address), "rows": rows} for address, rows in entry.holders],
        "hash_key_changed": entry.hash_key_changed,
        "binds_added": [bind_text(bind) for bind in entry.binds_added],
        "binds_removed": [bind_text(bind) for bind in entry.binds_removed],
        "backends": [
            {
                "address": str(backend.address),
                "state_before": backend.state_before.value if backend.state_before else None,
                "state_after": backend.state_after.value if backend.state_after else None,
                "share_before": backend.share_before,
                "share_after": backend.share_after,
            }
            for backend in entry.backends
        ],
    }


def print_diff(entry: TableDiff) -> None:
    """One table's diff for people: a line, and the backends whose share or state changes."""
    from glb.table.change import bind_text

    if entry.hash_key_changed:
        say(f"{entry.name}: the hash key changes, so every flow may go to another row")
    for verb, binds in (("added", entry.binds_added), ("removed", entry.binds_removed)):
        for bind in binds[:_MAX_BINDS_PRINTED]:
            print_line(f"{entry.name}: bind {verb}: {bind_text(bind)}")
    rows: list[list[Cell]] = [
        [
            str(backend.address),
            backend.state_before.value if backend.state_before else "-",
            backend.state_after.value if backend.state_after else "-",
            Share(backend.share_before),
            Share(backend.share_after),
            f"{backend.share_after - backend.share_before:+.2%}",
        ]
        for backend in entry.backends
    ]
    if entry.rows_changed or entry.rows_moved or any(row[1] != row[2] for row in rows):
        print_columns(entry.name, ["backend", "before", "after", "share before", "share after", "change"], rows)
    if entry.holders:
        holders: list[list[Cell]] = [[str(address), n, Share(n / entry.n_rows)] for address, n in entry.holders]
        print_columns("flows at risk", ["held by", "rows", "of all"], holders)
    print_line(f"{entry.name}: {moved_text(entry)}")


def moved_text(entry: TableDiff) -> str:
    """``21765 of 65536 rows moved, 0 at risk``"""
    behind = f" ({entry.rows_behind_unhealthy} behind unhealthy hops)" if entry.rows_behind_unhealthy else ""
    return f"{entry.rows_moved} of {entry.n_rows} rows moved, {entry.rows_at_risk} at risk{behind}"
