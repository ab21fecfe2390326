"""Every sequence of events in small fleets: what glb.table.safety predicts is what a simulated fleet loses.

A sequence is one row of the table under test. Sequences that lead to the same fleet, the same owners and the same
possible worlds go on as one: all are covered, few are run twice. docs/protocol/safety.md states what is found here.
"""

from __future__ import annotations

import itertools
import random
import re
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from glb.table.rows import N_ROWS, RowBuilder
from glb.table.safety import Columns, Owners, lanes_of

from .fleet_model import (
    ABSENT,
    ACTIVE,
    EVENTS,
    Event,
    World,
    events_of,
    first_world,
    hops_of,
    is_down,
    possible_worlds,
    step,
)
from .table_samples import model_order, table

_DEPTH = 5
_SIZES = [(n_proxies, n_hops) for n_proxies in (4, 5, 6) for n_hops in (2, 3, 4)]
_SEQUENCES = {4: 525_740, 5: 2_131_280, 6: 6_727_866}  # of 1 to 5 events, by number of proxies
_NO_HOP = 0xFFFF
_DOCUMENT = Path(__file__).parents[2] / "docs" / "protocol" / "safety.md"


@dataclass(frozen=True, slots=True)
class _Node:
    """Where a sequence of events has led, as far as anything that comes later depends on it."""

    fleet: str
    owners: tuple[bool, ...]  # by hop, as the code under test says
    alive: World  # if every failure was a false alarm
    others: frozenset[World]  # if any was none


@dataclass(frozen=True, slots=True)
class _Edge:
    node: _Node
    event: Event
    fleet: str  # after it
    sequences: int  # that come here


@dataclass(frozen=True, slots=True)
class _Step:
    """One edge, as predicted and as simulated."""

    edge: _Edge
    left_out: bool  # predicted: an owner is no hop any more
    behind: bool  # predicted: an owner comes behind an unhealthy hop
    lost_alive: bool  # simulated, if every failure was a false alarm
    lost: bool  # simulated, in any possible world


def _steps(n_proxies: int, n_hops: int) -> Iterator[_Step]:
    layer: Counter[_Node] = Counter()
    for fleet in _starts(n_proxies):
        owners = (True, *[False] * (n_hops - 1))
        layer[_Node(fleet, owners, first_world(fleet, n_hops), frozenset())] += 1
    for _ in range(_DEPTH):
        edges = [
            _Edge(node, event, fleet, count) for node, count in layer.items() for event, fleet in events_of(node.fleet)
        ]
        n_rows = len(edges)
        masks = tuple(_mask([edge.node.owners[hop] for edge in edges]) for hop in range(n_hops))
        before = Owners(_columns([edge.node.fleet for edge in edges], n_hops), masks)
        after, loss = before.after(_columns([edge.fleet for edge in edges], n_hops))
        left_out, behind = _flags(loss.left_out, n_rows), _flags(loss.behind, n_rows)
        owners_after = zip(*(_flags(mask, n_rows) for mask in after.masks), strict=True)
        layer = Counter()
        for edge, owners, *predicted in zip(edges, owners_after, left_out, behind, strict=True):
            node, hops = edge.node, hops_of(edge.fleet, n_hops)
            alive, lost_alive = step(node.alive, edge.event, False, hops)
            others, lost = possible_worlds(node.alive, node.others, edge.event, hops)
            yield _Step(edge, *predicted, lost_alive, lost or lost_alive)
            layer[_Node(edge.fleet, owners, alive, others)] += edge.sequences


def _columns(fleets: list[str], n_hops: int) -> Columns:
    rows = [hops_of(fleet, n_hops) for fleet in fleets]
    hops, unhealthy = [], []
    for hop in range(n_hops):
        hops.append(lanes_of(array("H", [row[hop] if hop < len(row) else _NO_HOP for row in rows])))
        down = [hop < len(row) and is_down(fleet[row[hop]]) for row, fleet in zip(rows, fleets, strict=True)]
        unhealthy.append(_mask(down))
    return Columns(len(fleets), tuple(hops), tuple(unhealthy))


def _mask(flags: list[bool]) -> int:
    return lanes_of(array("H", [0x8000 if flag else 0 for flag in flags]))


def _flags(mask: int, n_rows: int) -> list[bool]:
    return [value != 0 for value in array("H", mask.to_bytes(2 * n_rows, "little"))]


def _starts(n_proxies: int) -> Iterator[str]:
    """All there; or all but one, which can then be added at any place of the order."""
    yield ACTIVE * n_proxies
    for spare in range(n_proxies):
        yield ACTIVE * spare + ABSENT + ACTIVE * (n_proxies - spare - 1)


@pytest.mark.parametrize(("n_proxies", "n_hops"), _SIZES)
def test_predicted_risk_is_what_is_lost(n_proxies: int, n_hops: int) -> None:
    sequences = losing = 0
    for found in _steps(n_proxies, n_hops):
        sequences += found.edge.sequences
        losing += found.lost
        # Nothing dies: exactly the owners that are left out lose their flows.
        assert found.left_out == found.lost_alive, found
        # Somebody may have died: nothing is lost that was not predicted, in any world.
        assert found.left_out or found.behind or not found.lost, found
        # What is predicted of a change that an operator makes is lost in some world.
        assert found.lost or not (found.left_out or found.behind) or found.edge.event.name == "fail", found
    assert sequences == _SEQUENCES[n_proxies]
    assert losing > 100


def test_documentation_states_the_number_of_sequences() -> None:
    total = sum(_SEQUENCES[n_proxies] for n_proxies, _ in _SIZES)
    assert f"{total:,} sequences" in re.sub(r"\s+", " ", _DOCUMENT.read_text())


# ---- how many changes are safe


@dataclass(frozen=True, slots=True)
class _Run:
    """One sequence of changes from a settled fleet."""

    start: str
    fleets: tuple[str, ...]  # after each
    events: tuple[Event, ...]
    lost_alive: bool  # by the last change, if every failure was a false alarm
    lost: bool  # in any possible world

    @property
    def names(self) -> list[str]:
        return [event.name for event in self.events]


def _runs(n_proxies: int, n_hops: int, depth: int, *, room: int | None = None) -> Iterator[_Run]:
    """All sequences; with `room`, only those that never need more of it (below) and remove nobody."""

    def more(
        start: str, fleets: tuple[str, ...], events: tuple[Event, ...], alive: World, others: frozenset[World]
    ) -> Iterator[_Run]:
        for event, fleet in events_of(fleets[-1]):
            hops = hops_of(fleet, n_hops)
            next_alive, lost_alive = step(alive, event, False, hops)
            next_others, lost = possible_worlds(alive, others, event, hops)
            run = _Run(start, (*fleets, fleet), (*events, event), lost_alive, lost or lost_alive)
            if room is not None and ("remove" in run.names or _room_needed(run) > room):
                continue
            yield run
            if len(run.events) < depth:
                yield from more(start, run.fleets, run.events, next_alive, next_others)

    for start in _starts(n_proxies):
        yield from more(start, (start,), (), first_world(start, n_hops), frozenset())


def _room_needed(run: _Run) -> int:
    """The most that were unusable at any one time, and every addition."""
    unusable = (sum(kind not in (ACTIVE, ABSENT) for kind in fleet) for fleet in run.fleets)
    return max(unusable) + run.names.count("add")


@pytest.mark.parametrize(("n_proxies", "n_hops"), _SIZES)
def test_fewer_changes_than_hops_lose_nothing_but_by_the_documented_exceptions(n_proxies: int, n_hops: int) -> None:
    """The exceptions: a proxy is removed with its flows; a proxy that really is dead swallows what it should bounce."""
    exceptions: Counter[str] = Counter()
    for run in _runs(n_proxies, n_hops, n_hops - 1):
        if run.lost_alive:
            assert "remove" in run.names, run
            exceptions["removed"] += 1
        elif run.lost:
            assert "fail" in run.names, run
            exceptions["dead"] += 1
    assert exceptions["removed"] > 0
    assert (exceptions["dead"] > 0) == (n_hops > 2)


@pytest.mark.parametrize(("n_proxies", "n_hops"), _SIZES)
def test_what_is_away_at_once_and_what_was_added_must_fit_the_hops(n_proxies: int, n_hops: int) -> None:
    """However many changes there were: rolling drains need one hop more, not one more each."""
    longest = 0
    for run in _runs(n_proxies, n_hops, 6 if n_hops == 2 else 4, room=n_hops - 1):
        assert not run.lost_alive, run
        longest = max(longest, len(run.events))
    assert longest > n_hops - 1


def test_one_more_than_fits_loses_flows() -> None:
    """DESIGN's example: drain and fill a, add d in front."""
    spare_first = ABSENT + ACTIVE * 3
    story = [Event("drain", 1), Event("fill", 1), Event("add", 0)]
    lost = {n_hops: [run.lost_alive for run in _runs(4, n_hops, 3) if run.start == spare_first and
                     list(run.events) == story] for n_hops in (2, 3)}  # fmt: skip
    assert lost == {2: [True], 3: [False]}


# ---- the model's rows are the real ones

_WORDS = {ABSENT: "inactive", "A": "active+", "D": "draining+", "a": "active-", "d": "draining-"}


def test_events_lead_to_all_kinds_of_proxies() -> None:
    assert set(EVENTS) == set(_WORDS)
    assert {then for events in EVENTS.values() for then in events.values()} == set(_WORDS)


@pytest.mark.parametrize("n_proxies", [4, 5, 6])
def test_rows_of_the_model_are_the_rows_of_real_tables(n_proxies: int) -> None:
    """Of every permutation one real row; all fleets of 4 proxies, a seeded sample of the larger ones."""
    builder = RowBuilder()
    everybody = table(["active+"] * n_proxies)
    row_of: dict[tuple[int, ...], int] = {}
    for row in range(N_ROWS):
        row_of.setdefault(tuple(model_order(everybody, row)), row)
        if len(row_of) == len(list(itertools.permutations(range(n_proxies)))):
            break
    fleets = ["".join(kinds) for kinds in itertools.product(_WORDS, repeat=n_proxies) if set(kinds) != {ABSENT}]
    if n_proxies > 4:
        fleets = random.Random(3).sample(fleets, 60)
    for fleet, n_hops in itertools.product(fleets, (2, 3, 4)):
        rows = builder.build(table([_WORDS[kind] for kind in fleet], hops=n_hops))
        for order, row in row_of.items():
            expected = hops_of("".join(fleet[proxy] for proxy in order), n_hops)
            assert rows.row(row) == tuple(order[place] for place in expected), (fleet, order)
