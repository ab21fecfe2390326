"""The demo: the lab, a spread, the changes under load, and a table of what broke. True if nothing did over GLB."""

from __future__ import annotations

from rich.table import Table

from lab import plan
from lab.fleet import Fleet
from lab.load import Load
from lab.scenarios import changes, spread
from lab.scenarios.changes import Outcome, Story
from lab.scenarios.spread import Spread
from lab.screen import Screen
from lab.site import Lab

REQUESTS = 3000
DOWNLOADS = 200
NEW_PER_S = 50.0
DWELL_S = 5.0
_SHOWN_FAILURES = 5


def run(screen: Screen) -> bool:
    """Two minutes at the very most: every wait has a deadline."""
    screen.say("building the lab: client, router, 2 directors, 4 proxies, ops; each a network namespace")
    with Lab() as lab:
        fleet = Fleet(lab)
        fleet.start()
        screen.say(
            f"{lab.prefix}-*: BGP is up, both directors announce {' and '.join(map(str, plan.GLB_VIP.addresses))}"
        )
        with Load(lab) as load:
            screen.headline(f"(a) {REQUESTS} short requests over GLB, half by IPv6, each from an address of its own")
            spread_found = spread.run(fleet, load, screen, REQUESTS)
            screen.say(f"{spread_found.done} answered, {spread_found.broken} broken, {spread_found.seconds:.1f} s")
            screen.bars(spread_found.shares, spread_found.expected)

            screen.headline(
                f"(b) {DOWNLOADS} downloads over GLB and (c) {DOWNLOADS} over plain ECMP, while the fleet changes"
            )
            story = Story(fleet, load, screen, downloads=DOWNLOADS, new_per_s=NEW_PER_S, dwell_s=DWELL_S)
            outcome = story.run()
        good = outcome.flawless and not spread_found.broken
        if not good:
            lab.keep_logs()
        _report(screen, spread_found, outcome)
        _verdict(screen, lab, spread_found, outcome, good)
    return good


def _report(screen: Screen, spread_found: Spread, outcome: Outcome) -> None:
    steps = Table(title="Downloads broken by each change", title_justify="left", title_style="bold")
    steps.add_column("change")
    steps.add_column("GLB", justify="right")
    steps.add_column("plain ECMP", justify="right")
    for title, by_glb, by_ecmp in outcome.per_change:
        steps.add_row(title, str(by_glb), "no director" if by_ecmp is None else str(by_ecmp))
    screen.table(steps)

    table = Table(title="In all", title_justify="left", title_style="bold")
    table.add_column("")
    table.add_column("GLB", justify="right")
    table.add_column("plain ECMP", justify="right")
    glb, ecmp, new = outcome.glb, outcome.ecmp, outcome.new
    drained = sum(outcome.new_while_drained.values())
    rows: tuple[tuple[object, ...], ...] = (
        ("downloads begun", glb.asked, ecmp.asked),
        ("  complete, every byte verified", glb.done, ecmp.done),
        ("  broken", glb.broken, ecmp.broken),
        ("  corrupt", glb.corrupt, ecmp.corrupt),
        ("short requests before the changes", spread_found.asked, ""),
        ("short requests during the changes", new.asked, ""),
        ("  broken or corrupt", spread_found.broken + new.broken + new.corrupt, ""),
        (f"new flows while {changes.DRAINED.name} was drained", drained, ""),
        (f"  of them on {changes.DRAINED.name}", outcome.new_on_drained, ""),
        (f"downloads on {changes.DRAINED.name} when it was drained", outcome.downloads_on_drained, ""),
        ("packets that took their second chance", outcome.bounced, ""),
        (f"new flows on {changes.ADDED.name} once added", outcome.new_on_added, ""),
    )
    for row in rows:
        table.add_row(*map(str, row))
    screen.table(table)


def _verdict(screen: Screen, lab: Lab, spread_found: Spread, outcome: Outcome, good: bool) -> None:
    screen.console.print()
    n_changes = len(outcome.per_change)
    lost = outcome.glb.broken + outcome.glb.corrupt
    screen.console.print(
        f"{'PASSED' if good else 'FAILED'} in {screen.elapsed_s:.0f} s: in {n_changes} changes GLB broke {lost} of"
        f" {outcome.glb.asked} downloads, plain ECMP {outcome.ecmp.broken + outcome.ecmp.corrupt} of"
        f" {outcome.ecmp.asked}.",
        style="bold green" if good else "bold red",
        highlight=False,
        soft_wrap=True,
    )
    if good:
        return
    for what in outcome.failures[:_SHOWN_FAILURES]:
        screen.console.print(f"  {what}", highlight=False)
    screen.console.print(f"The logs and configurations of every host stay in {lab.home} until the next lab.")
