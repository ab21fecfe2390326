"""A table's diff and its binds, as glbctl prints them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from glb.ctl.output import Cell, Share, print_columns, print_line, say

if TYPE_CHECKING:
    from glb.table.config import Bind
    from glb.table.diff import TableDiff

_MAX_BINDS_PRINTED = 64


def diff_json(entry: TableDiff) -> dict[str, object]:
    """One table's diff as it is printed by -o json."""
    return {
        "name": entry.name,
        "n_rows": entry.n_rows,
        "rows_moved": entry.rows_moved,
        "rows_changed": entry.rows_changed,
        "rows_at_risk": entry.rows_at_risk,
        "rows_at_risk_unsettled": entry.rows_at_risk_unsettled,
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
    unsettled = f", {entry.rows_at_risk_unsettled} more by older flows" if entry.rows_at_risk_unsettled else ""
    print_line(
        f"{entry.name}: {entry.rows_moved} of {entry.n_rows} rows moved, {entry.rows_at_risk} at risk{unsettled}"
    )


def bind_text(bind: Bind) -> str:
    """A bind on one line: ``203.0.113.0/24 tcp 80-90``."""
    ports = str(bind.port_first) if bind.port_first == bind.port_last else f"{bind.port_first}-{bind.port_last}"
    return f"{bind.network} {'tcp' if bind.proto == 6 else 'udp'} {ports}"
