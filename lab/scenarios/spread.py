"""Many short requests from as many client addresses, and how they spread over the proxies."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass

from rich.text import Text

from lab import plan
from lab.fleet import Fleet
from lab.load import Load
from lab.program import until
from lab.screen import Screen

GROUP = "spread"
_AT_ONCE = 64
_DEADLINE_S = 60.0


@dataclass(frozen=True)
class Spread:
    """What came of it."""

    asked: int
    done: int
    broken: int  # corrupt ones included
    per_proxy: Counter[str]
    expected: dict[str, float]  # share of each proxy, from the table's rows
    seconds: float

    @property
    def shares(self) -> dict[str, float]:
        return {proxy: count / max(self.done, 1) for proxy, count in self.per_proxy.items()}

    @property
    def farthest(self) -> float:
        """The largest difference between a share and the expected one, in parts of one."""
        return max(abs(self.shares.get(proxy, 0.0) - share) for proxy, share in self.expected.items())


def run(fleet: Fleet, load: Load, screen: Screen, count: int = 3000) -> Spread:
    """Make ``count`` requests, half of them by IPv6, each from an address of its own."""
    expected = fleet.shares()
    begun = time.monotonic()
    vips = [str(address) for address in plan.GLB_VIP.addresses]
    load.send("requests", group=GROUP, vips=vips, count=count, at_once=_AT_ONCE)

    def finished() -> bool:
        fleet.lab.check()
        load.check()
        counts = load.counts(GROUP)
        return counts.done + counts.broken + counts.corrupt == count

    with screen.following(lambda: Text(f"          {load.counts(GROUP).done} of {count} answered")):
        until(finished, f"{count} short requests to end", _DEADLINE_S)
    counts = load.counts(GROUP)
    seconds = time.monotonic() - begun
    return Spread(count, counts.done, counts.broken + counts.corrupt, load.proxies(GROUP), expected, seconds)
