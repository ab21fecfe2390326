"""Weights: shares in proportion, the same on every machine, and a change that moves nothing else."""

from __future__ import annotations

import math
import random
import re
from array import array
from collections import Counter
from statistics import NormalDist

import msgspec
import pytest

from glb import _rendezvous
from glb.table.config import Table
from glb.table.rows import N_ROWS, RowBuilder, Rows, build_rows, placed_weights

from .table_samples import DOCUMENTED, PAGE, model_order, model_row, table

_SAMPLED_ROWS = range(0, N_ROWS, 601)


def _weighted(*weights: int, hops: int = 2, n_rows: int = N_ROWS) -> Table:
    return table([f"active+*{weight}" for weight in weights], hops=hops, n_rows=n_rows)


def _with_weight(given: Table, index: int, weight: int) -> Table:
    backends = list(given.backends)
    backends[index] = msgspec.structs.replace(backends[index], weight=weight)
    return msgspec.structs.replace(given, backends=tuple(backends))


def _primaries(rows: Rows) -> array[int]:
    return rows.indexes[:: rows.stride]


# ---- the score


@pytest.mark.parametrize(
    ("rank", "weight", "score"),
    re.findall(r"^\| `([0-9a-f]{16})` \| (\d+) \| `([0-9a-f]{16})` \|$", PAGE.read_text(), re.M),
)
def test_score_equals_the_documented_vector(rank: str, weight: str, score: str) -> None:
    assert f"{_rendezvous.score(int(rank, 16), int(weight)):016x}" == score
    assert f"{DOCUMENTED['score'](int(rank, 16), int(weight)):016x}" == score


def test_there_are_documented_vectors() -> None:
    assert len(re.findall(r"^\| `[0-9a-f]{16}` \|", PAGE.read_text(), re.M)) == 12


def _edges() -> list[int]:
    """Ranks where a straight piece of the logarithm begins or ends, on both sides."""
    found = set()
    for whole in range(64):
        for step in (0, 1, 2, 511, 512, 1022, 1023):
            rest = (1 << 63 | step << 53) >> (63 - whole)
            found |= {(2**64 - 1 - rest + near) % 2**64 for near in (-2, -1, 0, 1, 2)}
    return sorted(found)


def test_score_equals_the_documented_code_at_every_edge() -> None:
    for rank in _edges():
        for weight in (1, 3, 100):
            assert _rendezvous.score(rank, weight) == DOCUMENTED["score"](rank, weight)


def test_score_never_falls_with_the_rank() -> None:
    scores = [_rendezvous.score(rank, 1) for rank in _edges()]
    assert scores == sorted(scores)


def test_score_is_the_logarithm() -> None:
    chance = random.Random(3)
    for _ in range(20_000):
        rank = chance.getrandbits(chance.randint(1, 63))
        exact = -math.log1p(-(rank / 2**64)) / math.log(2) * 2**57
        assert exact * (1 - 1e-12) <= _rendezvous.score(rank, 1) <= exact * 1.00025 + 2


# ---- rows


@pytest.mark.parametrize("weight", [1, 2, 7, 100])
def test_equal_weights_give_exactly_the_rows_without(weight: int) -> None:
    plain = build_rows(table(["active+"] * 12, hops=3))
    assert build_rows(_weighted(*[weight] * 12, hops=3)).indexes == plain.indexes


def test_backends_of_equal_weight_keep_the_order_of_their_hashes() -> None:
    """Also where another backend's weight forbids the short cut that equal weights take."""
    mixed, plain = build_rows(_weighted(*[3] * 9, 100)), build_rows(_weighted(*[1] * 9))
    others = 0
    for row in range(N_ROWS):
        if 9 not in mixed.row(row):
            others += 1
            assert mixed.row(row) == plain.row(row)
    assert others > 1000


@pytest.mark.parametrize(
    "weights",
    [
        pytest.param((1, 2), id="two"),
        pytest.param((1, 2, 3, 4, 5), id="five"),
        pytest.param((1, 100), id="extremes"),
        pytest.param((100, 100, 100, 1, 1, 1, 50), id="groups"),
        pytest.param(tuple(range(1, 101)), id="every-weight"),
    ],
)
def test_shares_are_in_proportion(weights: tuple[int, ...]) -> None:
    """Chi-square below the value that fair rows exceed once in 10,000 cases; a weight wrong by a few % is far above."""
    rows = build_rows(_weighted(*weights, n_rows=2**18))
    assert _chi_square(rows, weights) < _chi_square_bound(len(weights) - 1, 1e-4)


def test_the_chi_square_sees_a_weight_that_is_wrong() -> None:
    rows = build_rows(_weighted(10, 10, 10, 11, n_rows=2**18))
    assert _chi_square(rows, (10, 10, 10, 10)) > 4 * _chi_square_bound(3, 1e-4)


def _chi_square(rows: Rows, weights: tuple[int, ...]) -> float:
    counts = Counter(_primaries(rows))
    total = sum(weights)
    due = [rows.n_rows * weight / total for weight in weights]
    return sum((counts[index] - each) ** 2 / each for index, each in enumerate(due))


def _chi_square_bound(freedom: int, chance: float) -> float:
    """The quantile by Wilson and Hilferty (1931)."""
    return freedom * (1 - 2 / (9 * freedom) + NormalDist().inv_cdf(1 - chance) * (2 / (9 * freedom)) ** 0.5) ** 3


def test_second_hops_follow_the_weights_too() -> None:
    """With the heavy one as primary, the light ones share the second place evenly."""
    rows = build_rows(_weighted(100, 1, 1, n_rows=2**18))
    seconds = Counter(rows.row(row)[1] for row in range(rows.n_rows) if rows.row(row)[0] == 0)
    assert seconds[1] / seconds[2] == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize(("index", "weight"), [(0, 1), (0, 9), (4, 100), (4, 7), (7, 20)])
def test_a_change_of_one_weight_moves_only_rows_to_or_from_it(index: int, weight: int) -> None:
    before = _weighted(2, 3, 5, 8, 8, 5, 3, 2, 50)
    after = _with_weight(before, index, weight)
    heavier = weight > before.backends[index].weight
    moved = 0
    for old, new in zip(_primaries(build_rows(before)), _primaries(build_rows(after)), strict=True):
        if old != new:
            moved += 1
            assert (new if heavier else old) == index
    assert moved > 0
    for row in _SAMPLED_ROWS:
        assert [i for i in model_order(before, row) if i != index] == [i for i in model_order(after, row) if i != index]


# ---- weight 0


@pytest.mark.parametrize("others", [1, 10])
def test_weight_0_among_equals_is_exactly_draining(others: int) -> None:
    words = [f"active+*{others}"] * 6
    for state in ("active+", "active", "filling+"):
        off = build_rows(table([f"{state}*0", *words], hops=3))
        drained = build_rows(table([f"draining+*{others}", *words], hops=3))
        assert off.indexes == drained.indexes
        assert 0 not in _primaries(off)


def test_weight_0_unhealthy_is_exactly_draining_unhealthy() -> None:
    words = ["active+"] * 6
    assert build_rows(table(["active-*0", *words])).indexes == build_rows(table(["draining-", *words])).indexes


@pytest.mark.parametrize("weight", [1, 4, 9])
def test_set_to_0_it_stays_a_hop_of_every_row_that_it_had(weight: int) -> None:
    before = _weighted(weight, 9, 2, 5, 1, 3)
    after = build_rows(_with_weight(before, 0, 0))
    for row, old in enumerate(_primaries(build_rows(before))):
        if old == 0:
            assert after.row(row)[1] == 0


def test_weight_0_stands_where_the_largest_weight_would() -> None:
    given = table(["active+*0", "active+*3", "inactive*8", "draining*0"])
    assert placed_weights(given) == bytes([8, 3, 8, 8])
    assert placed_weights(table(["active+*0"] * 2)) == bytes([1, 1])


def test_weight_0_does_not_keep_the_table_from_failing_open() -> None:
    given = table(["active-*3", "active+*0", "active-*5"])
    rows = build_rows(given)
    assert set(_primaries(rows)) == {0, 1, 2}
    assert all(rows.row(row) == model_row(given, row) for row in _SAMPLED_ROWS)


def test_by_the_rule_glb2_weights_do_not_count() -> None:
    weighted = msgspec.structs.replace(_weighted(1, 2, 0), row_rule="glb2")
    assert build_rows(weighted).indexes == build_rows(table(["active+"] * 3, row_rule="glb2")).indexes


# ---- what is remembered


def test_a_change_of_one_weight_does_not_order_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    builder = RowBuilder()
    given = _weighted(*[10] * 20)
    before = builder.build(given)
    monkeypatch.setattr(_rendezvous, "Order", None)  # calling it would be a TypeError
    for weight in (9, 1, 100, 0, 10):
        changed = _with_weight(given, 7, weight)
        rows = builder.build(changed)
        assert all(rows.row(row) == model_row(changed, row) for row in _SAMPLED_ROWS)
        assert (rows.indexes == before.indexes) == (weight == 10)


def test_weights_that_all_differ_are_ordered_anew() -> None:
    builder = RowBuilder()
    builder.build(_weighted(*range(1, 21)))
    changed = _weighted(*range(20, 0, -1))
    assert builder.build(changed).indexes == build_rows(changed).indexes
    order = _rendezvous.Order(bytes(16), [bytes([i] * 4) for i in range(9)], 256, 8)
    assert order.reweighed([1] * 7 + [2, 3], at_most=1) is None


def test_heads_that_became_short_are_made_whole_when_needed() -> None:
    """A backend that leaves a head leaves a gap at its end; rows that need more than is left are ordered anew."""
    light, heavy = [1] * 12, [100, *[1] * 11]
    addresses = [bytes([10, 0, 0, i]) for i in range(12)]
    order = _rendezvous.Order(bytes(16), addresses, 1024, 8, weights=heavy).reweighed(light)
    assert order is not None
    whole = _rendezvous.Order(bytes(16), addresses, 1024, 8)
    short = sum(order.heads[8 * row + 7] == 0xFFFF for row in range(1024))
    assert short > 300
    kinds = bytes([_rendezvous.KIND_SKIPPED] * 6 + [_rendezvous.KIND_USABLE] * 6)
    assert order.derive(kinds, 4, 4, False) == whole.derive(kinds, 4, 4, False)
    assert sum(order.heads[8 * row + 7] == 0xFFFF for row in range(1024)) < short
    for mine, theirs in zip(order.heads, whole.heads, strict=True):
        assert mine in (theirs, 0xFFFF)
