"""Long downloads and a stream of short requests while the fleet changes under them; the same downloads over plain ECMP.

Both are put through the same changes at the same moments. The order of the changes is one that docs/protocol/table.md
calls safe at three hops: a drain undone by its fill, then an addition, leave at most two changes unsettled. It needs
all three: some downloads begin while the proxy is drained, so others take them in its rows; at the end, where the added
proxy comes first in such a row and the filled one second, only the third hop knows them.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from lab import content, plan
from lab.client import Counts
from lab.fleet import Fleet
from lab.load import Load
from lab.program import until
from lab.screen import Screen
from lab.site import Lab

GLB, ECMP, NEW = "glb", "ecmp", "new"  # the load's groups: downloads of either kind, short requests over GLB
DRAINED, KILLED, ADDED = plan.PROXIES[1], plan.DIRECTORS[0], plan.SPARE_PROXY
_DEADLINE_S = 30.0


@dataclass(frozen=True)
class Change:
    """One change of the fleet: what is done to GLB, and what stands for it in plain ECMP."""

    title: str
    glb: Callable[[], None]
    ecmp_proxies: tuple[plan.Host, ...] | None = None  # None: plain ECMP has nothing that corresponds


@dataclass
class Outcome:
    """What the load client counted."""

    glb: Counts = field(default_factory=Counts)
    ecmp: Counts = field(default_factory=Counts)
    new: Counts = field(default_factory=Counts)
    per_change: list[tuple[str, int, int | None]] = field(default_factory=list)  # title, broken by GLB, by plain ECMP
    downloads_on_drained: int = 0  # downloads that the drained proxy was serving when it was drained
    new_while_drained: Counter[str] = field(default_factory=Counter)  # short requests begun while it was, by proxy
    syns_on_drained: int = 0  # what its agent counted meanwhile
    new_on_added: int = 0
    bounced: int = 0  # packets that got their second chance
    bounced_again: int = 0  # those of them that took a third
    failures: list[str] = field(default_factory=list)  # of GLB

    @property
    def new_on_drained(self) -> int:
        """Either witness is enough: the clients that it answered, and its agent's count of SYNs."""
        return max(self.new_while_drained[DRAINED.name], self.syns_on_drained)

    @property
    def flawless(self) -> bool:
        """Nothing broke over GLB, and the drained proxy was left alone."""
        lost = self.glb.broken + self.glb.corrupt + self.new.broken + self.new.corrupt + self.new_on_drained
        return not lost and self.glb.done == self.glb.asked > 0 and self.new.done == self.new.asked > 0


class Story:
    """Runs the changes. ``late``: downloads begun during the drain; ``dwell_s``: for how long each change is felt."""

    def __init__(
        self, fleet: Fleet, load: Load, screen: Screen, *, downloads: int, late: int, new_per_s: float, dwell_s: float
    ) -> None:
        self.lab: Lab = fleet.lab
        self.fleet, self.load, self.screen = fleet, load, screen
        self.downloads, self.late, self.new_per_s, self.dwell_s = downloads, late, new_per_s, dwell_s
        self.outcome = Outcome()
        self._drained_s = 0.0
        self._syns_before = 0

    def run(self) -> Outcome:
        with self.screen.following(self._view):
            self._begin()
            for change in self._changes():
                self._make(change)
            self._end()
        return self.outcome

    def _changes(self) -> list[Change]:
        first = plan.FIRST_PROXIES
        without = tuple(proxy for proxy in first if proxy != DRAINED)
        return [
            Change(f"drain {DRAINED.name} (ECMP: withdraw its route)", self._drain, without),
            Change(f"kill -9 {KILLED.name}", lambda: self.fleet.kill(KILLED)),
            Change(f"{KILLED.name} comes back", lambda: self.fleet.revive(KILLED)),
            Change(f"fill {DRAINED.name} (ECMP: its route comes back)", self._fill, first),
            Change(f"add {ADDED.name} (table with hops: {self.fleet.hops})", self._add, (*first, ADDED)),
        ]

    def _begin(self) -> None:
        self._begin_downloads(self.downloads)
        self.load.send(
            "steady", group=NEW, vips=[str(each) for each in plan.GLB_VIP.addresses], per_second=self.new_per_s
        )
        self._await_begun(self.downloads)
        self.screen.say(f"{self.downloads} downloads over GLB and {self.downloads} over plain ECMP are on their way")
        self._dwell()

    def _make(self, change: Change) -> None:
        broken = self._broken(GLB), self._broken(ECMP)
        if change.ecmp_proxies is not None:
            self.lab.set_ecmp(change.ecmp_proxies)
        self.screen.say(change.title)
        change.glb()
        self._dwell()
        by_glb, by_ecmp = self._broken(GLB) - broken[0], self._broken(ECMP) - broken[1]
        self.outcome.per_change.append((change.title, by_glb, None if change.ecmp_proxies is None else by_ecmp))

    def _drain(self) -> None:
        self.outcome.downloads_on_drained = self.load.proxies(GLB)[DRAINED.name]
        self.fleet.change("drain", DRAINED)
        # All directors forward by the new table: no new flow may reach the proxy from here on.
        self._drained_s = time.monotonic()
        self._syns_before = self.fleet.syns(DRAINED)

        self._begin_downloads(self.late)
        self._await_begun(self.downloads + self.late)
        self.screen.say(f"    {self.late} more downloads of each kind have begun")

    def _fill(self) -> None:
        self.outcome.new_while_drained = self.load.proxies(NEW, self._drained_s, time.monotonic())
        self.outcome.syns_on_drained = self.fleet.syns(DRAINED) - self._syns_before
        self.fleet.change("fill", DRAINED)
        self.fleet.change("activate", DRAINED)

    def _add(self) -> None:
        self.fleet.add(ADDED)

    def _end(self) -> None:
        self.load.send("quiet")
        self.load.send("release")
        new = self._counts(NEW)
        self._until(lambda: not self._counts(GLB).open and not self._counts(ECMP).open, "the downloads to end")
        self._until(lambda: self._ended(NEW) == self._counts(NEW).asked >= new.asked, "the short requests to end")
        out = self.outcome
        out.glb, out.ecmp, out.new = (self._counts(group) for group in (GLB, ECMP, NEW))
        out.new_on_added = self.load.proxies(NEW)[ADDED.name]
        out.bounced = sum(self.fleet.bounced(proxy) for proxy in plan.PROXIES)
        out.bounced_again = sum(self.fleet.bounced(proxy, hop=2) for proxy in plan.PROXIES)
        out.failures = [what for group, _, what in self.load.failures if group != ECMP]
        self.screen.say("the downloads were read to their end")

    def _begin_downloads(self, count: int) -> None:
        for group, vip in ((GLB, plan.GLB_VIP), (ECMP, plan.ECMP_VIP)):
            self.load.send("downloads", group=group, vips=[str(address) for address in vip.addresses], count=count)

    def _await_begun(self, count: int) -> None:
        self._until(
            lambda: all(self._begun(group) == count for group in (GLB, ECMP)), f"2 x {count} downloads to begin"
        )

    def _dwell(self) -> None:
        ends_s = time.monotonic() + self.dwell_s
        self._until(lambda: time.monotonic() >= ends_s, "time to pass")
        glb, ecmp, new = (self._counts(group) for group in (GLB, ECMP, NEW))
        self.screen.say(
            f"    GLB: {glb.open} open, {self._broken(GLB)} broken; plain ECMP: {ecmp.open} open, {self._broken(ECMP)}"
            f" broken; short requests over GLB: {new.done} answered, {self._broken(NEW)} broken"
        )

    def _until(self, condition: Callable[[], bool], what: str) -> None:
        def checked() -> bool:
            self.lab.check()
            self.load.check()
            return condition()

        until(checked, what, _DEADLINE_S)

    def _counts(self, group: str) -> Counts:
        return self.load.counts(group)

    def _broken(self, group: str) -> int:
        counts = self._counts(group)
        return counts.broken + counts.corrupt

    def _ended(self, group: str) -> int:
        return self._counts(group).done + self._broken(group)

    def _begun(self, group: str) -> int:
        return self._counts(group).open + self._ended(group)

    def _view(self) -> RenderableType:
        grid = Table.grid(padding=(0, 2))
        for title, group in (("GLB", GLB), ("plain ECMP", ECMP)):
            counts = self._counts(group)
            broken = self._broken(group)
            bar = ProgressBar(
                total=(self.downloads + self.late) * content.DOWNLOAD_BYTES, completed=counts.received, width=40
            )
            grid.add_row(
                f"          {title}",
                bar,
                f"{counts.open} downloads open, {counts.done} complete",
                Text(f"{broken} broken", style="bold red" if broken else "green"),
            )
        new, broken = self._counts(NEW), self._broken(NEW)
        short = Text(f"          short requests over GLB: {new.done} answered, ")
        short.append(f"{broken} broken", style="bold red" if broken else "green")
        return Group(grid, short)
