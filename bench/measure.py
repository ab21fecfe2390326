"""Ours beside a baseline: taken in turns, so that both see the machine's good and bad moments, and made a figure of.

The ratio of a figure is the median of the ratios of single alternations: a machine that gets slower half-way through
changes both sides of most of them. Absolute values say more about the machine than about us.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from bench.talk import Talk

Sample = Callable[[], float]

OURS = "ours"
BASELINE = "baseline"


@dataclass(frozen=True)
class Cores:
    """Which core does what. With one core only, both are the same, and live figures mean little."""

    load: int  # makes packets
    work: int  # runs what is measured


@dataclass(frozen=True)
class Session:
    """One run of the benchmarks."""

    quick: bool  # few alternations and little work: shows that it runs, not how fast
    cores: Cores
    talk: Talk

    def times(self, alternations: int) -> int:
        return 2 if self.quick else alternations

    def alternate(self, label: str, samples: Mapping[str, Sample], times: int) -> dict[str, list[float]]:
        """Take every sample `times` times, in turns, in an order that changes: name -> values."""
        taken: dict[str, list[float]] = {name: [] for name in samples}
        names = list(samples)
        with self.talk.steps(label, times * len(names)) as step:
            for turn in range(times):
                # ABBA: what drifts steadily favours neither.
                for name in names if turn % 2 == 0 else reversed(names):
                    taken[name].append(samples[name]())
                    step()
        return taken


def available_cores() -> Cores:
    """The first and the last core that this process may use: interrupts tend to prefer the first."""
    cores = sorted(os.sched_getaffinity(0))
    return Cores(cores[0], cores[-1])


@contextmanager
def pinned(core: int) -> Iterator[None]:
    """Run on one core only, as long as the block lasts."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def spread(values: Sequence[float]) -> dict[str, float]:
    return {
        "min": significant(min(values)),
        "median": significant(statistics.median(values)),
        "max": significant(max(values)),
    }


def figure(
    name: str,
    taken: Mapping[str, Sequence[float]],
    *,
    unit: str,
    better: Literal["lower", "higher"],
    method: str,
    baseline: str,
    not_included: str,
    frame_bytes: Sequence[int] = (),
    **more: Any,
) -> dict[str, Any]:
    """One line of output, from what `Session.alternate` took of `ours` and `baseline`.

    name: benchmark/case; frame_bytes: sizes of the frames before encapsulation, without FCS; more: whatever else a
    reader needs to repeat it, such as the offered load.
    """
    ours, others = taken[OURS], taken[BASELINE]
    ratios = [mine / other for mine, other in zip(ours, others, strict=True)]
    return {
        "figure": name,
        "value": significant(statistics.median(ours)),
        "unit": unit,
        "better": better,
        "baseline": significant(statistics.median(others)),
        "ratio": significant(statistics.median(ratios)),
        "alternations": len(ours),
        "spread": {"value": spread(ours), "baseline": spread(others), "ratio": spread(ratios)},
        "frame_bytes": list(frame_bytes),
        "method": method,
        "baseline_is": baseline,
        "not_included": not_included,
        **more,
    }


def net_figure(name: str, taken: Mapping[str, Sequence[float]], **more: Any) -> dict[str, Any]:
    """As `figure`, where ours contains the baseline: `value` is its best sample less the baseline's best.

    Never the best of differences: one slow sample of the baseline would decide it.
    """
    line = figure(name, taken, unit="ns/frame", better="lower", **more)
    best = min(taken[BASELINE])
    return line | {"value": significant(min(taken[OURS]) - best), "baseline": significant(best)}


def significant(value: float) -> float:
    """Four significant digits: more would be noise."""
    return float(f"{value:.4g}")
