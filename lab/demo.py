"""The demo: the lab, a spread, the changes under load, and what broke."""

from __future__ import annotations

from lab import plan, report
from lab.fleet import Fleet
from lab.load import Load
from lab.scenarios import flood, spread
from lab.scenarios.changes import Story
from lab.screen import Screen
from lab.site import Lab

REQUESTS = 3000
DOWNLOADS, LATE_DOWNLOADS = 200, 50
NEW_PER_S = 50.0
DWELL_S = 5.0
FLOOD_S = 10.0
_SHOWN_FAILURES = 5


def run(screen: Screen) -> bool:
    """True if nothing broke over GLB. Every wait has a deadline: LabError when one passes or a program ends."""
    screen.say("building the lab: client, router, 2 directors, 4 proxies, ops; each a network namespace")
    with Lab() as lab:
        fleet = Fleet(lab)
        fleet.start()
        vips = " and ".join(map(str, plan.GLB_VIP.addresses))
        screen.say(f"{lab.prefix}-*: BGP is up, both directors announce {vips}")
        with Load(lab) as load:
            screen.headline(f"(a) {REQUESTS} short requests over GLB, half by IPv6, each from an address of its own")
            found = spread.run(fleet, load, screen, REQUESTS)
            screen.say(f"{found.done} answered, {found.broken} broken, {found.seconds:.1f} s")
            screen.bars(found.shares, found.expected)

            screen.headline(
                f"(b) {DOWNLOADS} downloads over GLB and (c) {DOWNLOADS} over plain ECMP, while the fleet changes"
            )
            story = Story(
                fleet,
                load,
                screen,
                downloads=DOWNLOADS,
                late=LATE_DOWNLOADS,
                new_per_s=NEW_PER_S,
                dwell_s=DWELL_S,
            )
            outcome = story.run()
        screen.table(report.per_change(outcome))
        screen.table(report.in_all(found, outcome))
        good = report.is_good(found, outcome)
        screen.headline(report.verdict(found, outcome, screen.elapsed_s), style="green" if good else "red")
        if not good:
            _explain(screen, lab, outcome.failures)
    return good


def run_flood(screen: Screen, syns_per_s: float) -> bool:
    """True if nothing broke over GLB through a flood of SYNs; ``syns_per_s`` 0: as many as it goes."""
    with Lab() as lab:
        fleet = Fleet(lab)
        fleet.start()
        screen.say(f"{lab.prefix}-*: the lab stands")
        with Load(lab) as load:
            found = flood.run(
                fleet,
                load,
                screen,
                downloads=DOWNLOADS,
                new_per_s=NEW_PER_S / 2,
                seconds=FLOOD_S,
                syns_per_s=syns_per_s,
            )
        screen.table(flood.table(found))
        good = found.flawless
        screen.headline("PASSED" if good else "FAILED", style="green" if good else "red")
        if not good:
            _explain(screen, lab, found.failures)
    return good


def _explain(screen: Screen, lab: Lab, failures: list[str]) -> None:
    lab.keep_logs()
    for what in failures[:_SHOWN_FAILURES]:
        screen.note(what)
    screen.note(f"the logs and configurations of every host stay in {lab.home} until the next lab")
