"""Properties of weights and zones, for random tables."""

from __future__ import annotations

import random

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from glb import _rendezvous
from glb.table.config import State, Table
from glb.table.rows import RowBuilder, build_rows, is_usable
from glb.table.shares import imbalance

from .table_samples import DOCUMENTED, model_row, table

_N_ROWS = 1024
_settings = settings(max_examples=150, deadline=None)

_states = st.sampled_from(["filling", "active", "active", "active", "draining", "inactive"])
_healths = st.sampled_from(["", "+", "+", "-"])
_weights = st.sampled_from([0, 1, 1, 2, 3, 50, 100])
_zones = st.sampled_from(["", "a", "a", "b", "c"])
_words = st.builds(
    lambda state, health, weight, zone: f"{state}{health}*{weight}@{zone}", _states, _healths, _weights, _zones
)


@st.composite
def _tables(draw: st.DrawFn, min_size: int = 1, max_size: int = 20) -> Table:
    words = draw(st.lists(_words, min_size=min_size, max_size=max_size))
    seed = draw(st.binary(min_size=16, max_size=16))
    return table(words, hops=draw(st.integers(2, 4)), seed=seed, n_rows=_N_ROWS)


def _reweighed(entry: Table, changes: list[tuple[int, int]]) -> Table:
    backends = list(entry.backends)
    for index, weight in changes:
        index %= len(backends)
        backends[index] = msgspec.structs.replace(backends[index], weight=weight)
    return msgspec.structs.replace(entry, backends=tuple(backends))


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1), st.integers(1, 100))
@settings(max_examples=500, deadline=None)
def test_score_equals_the_documented_code_and_never_falls(one: int, other: int, weight: int) -> None:
    scores = [_rendezvous.score(rank, weight) for rank in sorted((one, other))]
    assert scores == [DOCUMENTED["score"](rank, weight) for rank in sorted((one, other))]
    assert scores[0] <= scores[1]


@given(_tables(), st.integers(0, 2**32))
@_settings
def test_rows_equal_the_model(entry: Table, sample_seed: int) -> None:
    rows = build_rows(entry)
    for row in random.Random(sample_seed).sample(range(_N_ROWS), 60):
        assert rows.row(row) == (model_row(entry, row) if rows.hops else ())


@given(_tables(min_size=70, max_size=140), st.sampled_from(["draining+", "active-", "inactive"]), st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_rows_of_tables_that_are_mostly_out_equal_the_model(entry: Table, out: str, sample_seed: int) -> None:
    """Their hops lie deeper than any head that is kept."""
    chance = random.Random(sample_seed)
    backends = table([out] * len(entry.backends)).backends
    mixed = tuple(one if chance.random() < 0.05 else other for one, other in zip(entry.backends, backends, strict=True))
    entry = msgspec.structs.replace(entry, backends=mixed)
    rows = build_rows(entry)
    for row in chance.sample(range(_N_ROWS), 30):
        assert rows.row(row) == (model_row(entry, row) if rows.hops else ())


@given(_tables(), st.randoms(use_true_random=False))
@_settings
def test_order_of_the_list_does_not_matter(entry: Table, shuffler: random.Random) -> None:
    backends = list(entry.backends)
    shuffler.shuffle(backends)
    shuffled = msgspec.structs.replace(entry, backends=tuple(backends))
    rows, turned = build_rows(entry), build_rows(shuffled)
    for row in range(_N_ROWS):
        assert [entry.backends[i].address for i in rows.row(row)] == [backends[i].address for i in turned.row(row)]


@given(
    _tables(max_size=24),
    st.lists(st.lists(st.tuples(st.integers(0, 23), _weights), min_size=1, max_size=3), min_size=1, max_size=6),
)
@_settings
def test_remembered_orders_give_the_rows_of_new_ones(entry: Table, steps: list[list[tuple[int, int]]]) -> None:
    """However often weights change: a head that lost its end is never mistaken for a whole one."""
    builder = RowBuilder()
    builder.build(entry)
    for changes in steps:
        entry = _reweighed(entry, changes)
        assert builder.build(entry).indexes == build_rows(entry).indexes


@given(_tables(min_size=2), st.integers(0, 19), st.integers(1, 100), st.integers(1, 100))
@_settings
def test_a_change_of_weight_moves_only_rows_to_or_from_the_backend(
    entry: Table, which: int, before: int, after: int
) -> None:
    which %= len(entry.backends)
    entry = msgspec.structs.replace(
        entry, backends=tuple(b if b.weight else msgspec.structs.replace(b, weight=1) for b in entry.backends)
    )
    old, new = (build_rows(_reweighed(entry, [(which, weight)])) for weight in (before, after))
    for one, other in zip(old.indexes[:: old.stride], new.indexes[:: new.stride], strict=True):
        if one != other:
            assert (other if after > before else one) == which


@given(_tables(), st.integers(1, 100))
@_settings
def test_equal_weights_are_none(entry: Table, weight: int) -> None:
    alike = [build_rows(_reweighed(entry, [(i, each) for i in range(len(entry.backends))])) for each in (1, weight)]
    assert alike[0].indexes == alike[1].indexes


# ---- zones


@given(_tables())
@_settings
def test_zones_move_no_primary_and_cost_one_hop_at_most(entry: Table) -> None:
    plain = msgspec.structs.replace(
        entry, backends=tuple(msgspec.structs.replace(backend, zone=None) for backend in entry.backends)
    )
    rows, without = build_rows(entry), build_rows(plain)
    for row in range(_N_ROWS):
        found, expected = rows.row(row), without.row(row)
        assert found[:1] == expected[:1]
        assert len(found) == len(expected)
        assert set(expected[:-1]) <= set(found)


@given(_tables())
@_settings
def test_zones_push_no_owner_out(entry: Table) -> None:
    """Owners as far as states tell; and everybody who stood before the primary."""
    plain = msgspec.structs.replace(
        entry, backends=tuple(msgspec.structs.replace(backend, zone=None) for backend in entry.backends)
    )
    builder = RowBuilder()
    rows, without = builder.build(entry), builder.build(plain)
    order = builder.order(entry)
    for row in range(0, _N_ROWS, 7):
        listed = without.row(row)
        if not listed:
            continue
        kept, whole = set(rows.row(row)), order.row(row)[2]
        assert {i for i in listed if whole.index(i) < whole.index(listed[0])} <= kept
        assert _displaced_by_filling(plain, listed) <= kept


def _displaced_by_filling(entry: Table, listed: list[int]) -> set[int]:
    """The usable hops that a filling primary came before, up to the first that is not filling itself."""
    displaced: set[int] = set()
    newest = listed[0]
    for hop in listed[1:]:
        if entry.backends[newest].state is not State.filling:
            break
        if is_usable(entry.backends[hop]):
            displaced.add(hop)
            newest = hop
    return displaced


@given(_tables())
@_settings
def test_a_row_outlives_its_primary_zone_where_it_can(entry: Table) -> None:
    rows = build_rows(entry)
    zones = {backend.zone for backend in entry.backends if is_usable(backend)} - {None}
    settled = all(backend.state in (State.active, State.inactive) for backend in entry.backends)
    if not settled or not all(is_usable(backend) or backend.state is State.inactive for backend in entry.backends):
        return
    for row in range(_N_ROWS):
        hops = [entry.backends[index].zone for index in rows.row(row)]
        if hops and hops[0] and zones - {hops[0]}:
            assert hops[1] not in (hops[0], None)


# ---- shares


@given(_tables())
@_settings
def test_imbalance_is_the_largest_share_by_weight(entry: Table) -> None:
    rows = build_rows(entry)
    if not rows.hops:
        return
    found = imbalance(rows, entry)
    counts = [rows.indexes[:: rows.stride].count(index) for index in range(len(entry.backends))]
    assert found.share == counts[found.index] / _N_ROWS
    usable = [index for index, backend in enumerate(entry.backends) if is_usable(backend)]
    for index in usable:
        assert counts[index] / entry.backends[index].weight <= counts[found.index] / entry.backends[found.index].weight
