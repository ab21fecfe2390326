"""What the demo found, as two tables and one line."""

from __future__ import annotations

from rich.table import Table

from lab.scenarios import changes
from lab.scenarios.changes import Outcome
from lab.scenarios.spread import Spread


def is_good(spread: Spread, outcome: Outcome) -> bool:
    """Nothing broke over GLB."""
    return outcome.flawless and spread.done == spread.asked


def per_change(outcome: Outcome) -> Table:
    table = Table(title="Downloads broken by each change", title_justify="left", title_style="bold")
    table.add_column("change")
    table.add_column("GLB", justify="right")
    table.add_column("plain ECMP", justify="right")
    for title, by_glb, by_ecmp in outcome.per_change:
        table.add_row(title, str(by_glb), "no director" if by_ecmp is None else str(by_ecmp))
    return table


def in_all(spread: Spread, outcome: Outcome) -> Table:
    table = Table(title="In all", title_justify="left", title_style="bold")
    table.add_column("")
    table.add_column("GLB", justify="right")
    table.add_column("plain ECMP", justify="right")
    glb, ecmp, new = outcome.glb, outcome.ecmp, outcome.new
    drained, added = changes.DRAINED.name, changes.ADDED.name
    rows: tuple[tuple[object, ...], ...] = (
        ("downloads begun", glb.asked, ecmp.asked),
        ("  complete, every byte verified", glb.done, ecmp.done),
        ("  broken", glb.broken, ecmp.broken),
        ("  corrupt", glb.corrupt, ecmp.corrupt),
        ("short requests before the changes", spread.asked, ""),
        ("short requests during the changes", new.asked, ""),
        ("  broken or corrupt", spread.broken + new.broken + new.corrupt, ""),
        (f"new flows while {drained} was drained", sum(outcome.new_while_drained.values()), ""),
        (f"  of them on {drained}", outcome.new_on_drained, ""),
        (f"downloads on {drained} when it was drained", outcome.downloads_on_drained, ""),
        ("packets that took their second chance", outcome.bounced, ""),
        ("  and then a third", outcome.bounced_again, ""),
        (f"new flows on {added} once added", outcome.new_on_added, ""),
    )
    for row in rows:
        table.add_row(*map(str, row))
    return table


def verdict(spread: Spread, outcome: Outcome, seconds: float) -> str:
    """One line, PASSED or FAILED."""
    lost = outcome.glb.broken + outcome.glb.corrupt
    short = spread.asked + outcome.new.asked
    short_lost = spread.broken + outcome.new.broken + outcome.new.corrupt
    return (
        f"{'PASSED' if is_good(spread, outcome) else 'FAILED'} in {seconds:.0f} s: in {len(outcome.per_change)} changes"
        f" GLB broke {lost} of {outcome.glb.asked} downloads and {short_lost} of {short} short requests; plain ECMP"
        f" broke {outcome.ecmp.broken + outcome.ecmp.corrupt} of {outcome.ecmp.asked} downloads."
    )
