"""Properties of rows, for random tables."""

from __future__ import annotations

import random

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from glb.table.config import Table
from glb.table.rows import N_ROWS, Rows, build_rows

from .table_samples import backend, model_row, table

_WORDS = [state + health for state in ("filling", "active", "draining", "inactive") for health in ("", "+", "-")]
_settings = settings(max_examples=40, deadline=None)


def _addresses(entry: Table, rows: Rows) -> list[tuple[str, ...]]:
    names = [str(backend.address) for backend in entry.backends]
    return [tuple(names[index] for index in rows.row(row)) for row in range(0, N_ROWS, 61)]


@st.composite
def _tables(draw: st.DrawFn) -> Table:
    words = draw(st.lists(st.sampled_from(_WORDS), min_size=1, max_size=20))
    rule = draw(st.sampled_from(["first_usable", "glb2"]))
    hops = 2 if rule == "glb2" else draw(st.integers(2, 4))
    result = table(words, hops=hops, row_rule=rule)
    return msgspec.structs.replace(result, seed=draw(st.binary(min_size=16, max_size=16)))


@given(_tables(), st.integers(0, 2**32))
@_settings
def test_rows_equal_the_model(entry: Table, sample_seed: int) -> None:
    rows = build_rows(entry)
    for row in random.Random(sample_seed).sample(range(N_ROWS), 40):
        assert rows.row(row) == (model_row(entry, row) if rows.hops else ())


@given(_tables(), st.randoms(use_true_random=False))
@_settings
def test_order_of_the_list_does_not_matter(entry: Table, shuffler: random.Random) -> None:
    backends = list(entry.backends)
    shuffler.shuffle(backends)
    shuffled = msgspec.structs.replace(entry, backends=tuple(backends))
    assert _addresses(entry, build_rows(entry)) == _addresses(shuffled, build_rows(shuffled))


@given(
    st.integers(2, 12),
    st.integers(0, 11),
    st.sampled_from(["active+", "active-", "draining+", "draining-", "filling+", "inactive"]),
)
@_settings
def test_both_rules_agree_while_at_most_one_is_not_active_and_healthy(n_backends: int, which: int, word: str) -> None:
    words = ["active+"] * n_backends
    words[which % n_backends] = word
    assert build_rows(table(words)).indexes == build_rows(table(words, row_rule="glb2")).indexes


def test_a_filling_second_is_where_the_rules_part() -> None:
    words = ["draining+", "filling+", "active+"]
    ours, glb = build_rows(table(words)), build_rows(table(words, row_rule="glb2"))
    assert 0 not in ours.indexes[::2]
    assert 0 in glb.indexes[::2]  # GLB sends new flows to the draining one there


@given(_tables(), st.integers(0, 19))
@_settings
def test_a_displaced_owner_stays_listed(entry: Table, which: int) -> None:
    """Draining or failing one backend of a settled table keeps it as a hop of every row that it was primary of."""
    words = ["active+"] * max(2, len(entry.backends))
    which %= len(words)
    before = build_rows(table(words, hops=entry.hops))
    for word in ("draining+", "draining", "active-"):
        after = build_rows(table([*words[:which], word, *words[which + 1 :]], hops=entry.hops))
        for row in range(0, N_ROWS, 61):
            if before.row(row)[0] == which:
                assert which in after.row(row)[1:]


@given(_tables())
@_settings
def test_a_new_backend_takes_rows_and_moves_nothing_else(entry: Table) -> None:
    grown = msgspec.structs.replace(entry, backends=(*entry.backends, backend(200, "active+")), row_rule="first_usable")
    entry = msgspec.structs.replace(entry, row_rule="first_usable")
    new = len(entry.backends)
    before, after = build_rows(entry), build_rows(grown)
    usable_before = any("active" in str(b.state) or "filling" in str(b.state) for b in entry.backends)
    if not usable_before or all(
        b.healthy is False or b.state.value in ("draining", "inactive") for b in entry.backends
    ):
        assert set(after.indexes[:: after.stride]) == {new}  # the only usable one
        return
    for row in range(0, N_ROWS, 61):
        if after.row(row)[0] != new:
            assert after.row(row)[0] == before.row(row)[0]


@given(st.integers(3, 12), st.integers(0, 11))
@_settings
def test_removing_a_backend_moves_only_its_rows(n_backends: int, which: int) -> None:
    which %= n_backends
    full = table(["active+"] * n_backends)
    fewer = msgspec.structs.replace(full, backends=full.backends[:which] + full.backends[which + 1 :])
    before, after = _addresses(full, build_rows(full)), _addresses(fewer, build_rows(fewer))
    gone = str(full.backends[which].address)
    for old, new in zip(before, after, strict=True):
        assert new[0] == (old[0] if old[0] != gone else old[1])
