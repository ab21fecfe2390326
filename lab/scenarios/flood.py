"""Downloads and a stream of short requests over GLB, through a flood of SYNs and a drain in the middle of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from rich.table import Table

from lab import plan
from lab.client import Counts
from lab.fleet import Fleet
from lab.load import Load
from lab.program import until
from lab.screen import Screen

DOWNLOADS, NEW = "flooded", "new-in-flood"  # the load's groups
DRAINED = plan.PROXIES[1]
_DEADLINE_S = 30.0


@dataclass
class Flooded:
    """What the load client and the proxies counted."""

    downloads: Counts = field(default_factory=Counts)
    new: Counts = field(default_factory=Counts)
    syns: int = 0  # sent by the flood
    seconds: float = 0.0
    cookies: int = 0  # SYN cookies that the proxies sent meanwhile
    bounced: int = 0
    failures: list[str] = field(default_factory=list)

    @property
    def flawless(self) -> bool:
        return all(
            each.done == each.asked > 0 and not each.broken and not each.corrupt for each in (self.downloads, self.new)
        )


def run(
    fleet: Fleet, load: Load, screen: Screen, *, downloads: int, new_per_s: float, seconds: float, syns_per_s: float
) -> Flooded:
    """Flood for ``seconds``, with ``syns_per_s`` SYNs a second (0: as many as it goes), and drain a proxy meanwhile."""
    lab, found = fleet.lab, Flooded()
    vips = [str(address) for address in plan.GLB_VIP.addresses]

    def wait(condition: Callable[[], bool], what: str) -> None:
        def checked() -> bool:
            lab.check()
            load.check()
            return condition()

        until(checked, what, _DEADLINE_S)

    load.send("downloads", group=DOWNLOADS, vips=vips, count=downloads)
    wait(lambda: load.counts(DOWNLOADS).open == downloads, f"{downloads} downloads to begin")
    before = sum(fleet.cookies_sent(proxy) for proxy in plan.PROXIES)
    bounced = sum(fleet.bounced(proxy) for proxy in plan.PROXIES)
    begun = time.monotonic()
    flood = fleet.flood(syns_per_s)
    screen.say(f"{downloads} downloads are on their way, and SYNs from random addresses come in")
    load.send("steady", group=NEW, vips=vips, per_second=new_per_s)
    wait(lambda: time.monotonic() > begun + seconds / 3, "the flood to go on")
    fleet.change("drain", DRAINED)
    screen.say(f"{DRAINED.name} is drained")
    wait(lambda: time.monotonic() > begun + seconds, "the flood to go on")
    load.send("quiet")
    flood.stop()
    found.seconds = time.monotonic() - begun
    found.syns = int(flood.log.read_text().split()[-1])
    found.cookies = sum(fleet.cookies_sent(proxy) for proxy in plan.PROXIES) - before
    found.bounced = sum(fleet.bounced(proxy) for proxy in plan.PROXIES) - bounced
    load.send("release")
    wait(lambda: not load.counts(DOWNLOADS).open, "the downloads to end")
    new = load.counts(NEW)
    wait(lambda: _ended(load.counts(NEW)) == load.counts(NEW).asked >= new.asked, "the short requests to end")
    found.downloads, found.new = load.counts(DOWNLOADS), load.counts(NEW)
    found.failures = [what for _, _, what in load.failures]
    return found


def _ended(counts: Counts) -> int:
    return counts.done + counts.broken + counts.corrupt


def table(found: Flooded) -> Table:
    made = Table(title="Through the flood", title_justify="left", title_style="bold")
    made.add_column("")
    made.add_column("", justify="right")
    rows: tuple[tuple[str, object], ...] = (
        ("SYNs sent from random addresses", found.syns),
        ("  a second", round(found.syns / max(found.seconds, 0.1))),
        ("SYN cookies that the proxies answered with", found.cookies),
        ("downloads", found.downloads.asked),
        ("  complete, every byte verified", found.downloads.done),
        ("  broken or corrupt", found.downloads.broken + found.downloads.corrupt),
        ("short requests begun in the flood", found.new.asked),
        ("  broken or corrupt", found.new.broken + found.new.corrupt),
        ("packets that took their second chance", found.bounced),
    )
    for row in rows:
        made.add_row(*map(str, row))
    return made
