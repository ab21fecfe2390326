"""The row rules, by example and against the model in table_samples.py."""

from __future__ import annotations

from array import array

import msgspec
import pytest

from glb import _rendezvous
from glb.table.config import State, Table, TableSet
from glb.table.rows import N_ROWS, NO_BACKEND, RowBuilder, build_rows

from .table_samples import backend, model_order, model_row, table

_SAMPLED_ROWS = range(0, N_ROWS, 257)


def _row_with_order(words: list[str], order: tuple[int, ...]) -> int:
    """A row whose order, were all backends active, begins so."""
    all_active = table(["active+"] * len(words))
    return next(row for row in range(N_ROWS) if tuple(model_order(all_active, row)[: len(order)]) == order)


@pytest.mark.parametrize(
    ("words", "hops", "expected"),
    [
        pytest.param("active+ active+ active+", 2, (0, 1), id="all-usable-keeps-the-order"),
        pytest.param("draining+ active+ active+", 2, (1, 0), id="draining-owner-is-second"),
        pytest.param("active- active+ active+", 2, (1, 0), id="unhealthy-owner-is-second"),
        pytest.param("draining+ draining+ active+", 2, (2, 0), id="two-draining-new-flows-to-the-third"),
        pytest.param("active- active- active+", 2, (2, 0), id="two-unhealthy-new-flows-to-the-third"),
        pytest.param("active- draining+ active+", 2, (2, 1), id="draining-before-unhealthy"),
        pytest.param("active- draining+ active+", 3, (2, 1, 0), id="draining-before-unhealthy-three-hops"),
        pytest.param("draining- draining+ active+", 3, (2, 1, 0), id="draining-unhealthy-counts-as-unhealthy"),
        pytest.param("draining active- active+", 3, (2, 0, 1), id="draining-not-checked-counts-as-living"),
        pytest.param("active active- active", 2, (0, 1), id="not-checked-is-usable"),
        pytest.param("filling+ draining+ active+", 2, (0, 1), id="filling-is-usable"),
        pytest.param("draining+ filling+ active+", 2, (1, 0), id="filling-is-promoted"),
        pytest.param("inactive active+ active+", 2, (1, 2), id="inactive-is-left-out"),
        pytest.param("active- active- active-", 3, (0, 1, 2), id="none-usable-fails-open"),
        pytest.param("draining+ active- draining+", 3, (0, 1, 2), id="none-usable-mixed-fails-open"),
        pytest.param("inactive active- draining-", 3, (1, 2), id="none-usable-without-inactive"),
        pytest.param("inactive inactive active+", 2, (2,), id="one-backend-one-hop"),
    ],
)
def test_first_usable(words: str, hops: int, expected: tuple[int, ...]) -> None:
    row = _row_with_order(words.split(), (0, 1, 2))
    assert build_rows(table(words.split(), hops=hops)).row(row) == expected


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        pytest.param("draining+ active+ active+", (1, 0), id="draining-is-exchanged-for-active"),
        pytest.param("draining+ active- active+", (1, 0), id="health-of-the-secondary-is-not-looked-at"),
        pytest.param("draining+ filling+ active+", (0, 1), id="filling-is-not-promoted"),
        pytest.param("active- draining+ active+", (0, 1), id="draining-is-not-promoted"),
        pytest.param("active active+ active+", (1, 0), id="absent-health-is-unhealthy"),
        pytest.param("filling+ active+ active+", (0, 1), id="filling-is-a-good-primary"),
    ],
)
def test_glb2(words: str, expected: tuple[int, ...]) -> None:
    row = _row_with_order(words.split(), (0, 1, 2))
    assert build_rows(table(words.split(), row_rule="glb2")).row(row) == expected


def test_no_new_flow_to_a_dead_or_draining_backend_while_another_is_usable() -> None:
    for words in (["active-"] * 2, ["draining+"] * 2, ["active-"] * 5, ["draining+", "active-"]):
        rows = build_rows(table(words + ["active+"] * (10 - len(words))))
        assert set(rows.indexes[:: rows.stride]) == set(range(len(words), 10))


def test_rows_that_need_more_than_the_cached_candidates_are_exact() -> None:
    given = table(["draining+", "active-"] * 8 + ["active+"], hops=4)  # 16 of 17 cannot be primary
    rows = build_rows(given)
    assert set(rows.indexes[:: rows.stride]) == {16}
    for row in _SAMPLED_ROWS:
        assert rows.row(row) == model_row(given, row)


def test_glb2_rows_behind_many_inactive_backends_are_exact() -> None:
    given = table(["inactive"] * 14 + ["draining+", "active+"], row_rule="glb2")
    rows = build_rows(given)
    assert {rows.row(row) for row in range(N_ROWS)} == {(15, 14)}


@pytest.mark.parametrize(
    ("n_backends", "hops", "expected"),
    [(1, 2, (1, 2)), (2, 2, (2, 2)), (2, 4, (2, 2)), (3, 4, (3, 4)), (9, 3, (3, 4)), (9, 4, (4, 4))],
)
def test_hops_and_stride(n_backends: int, hops: int, expected: tuple[int, int]) -> None:
    rows = build_rows(table(["active+"] * n_backends, hops=hops))
    assert (rows.hops, rows.stride) == expected
    assert len(rows.indexes) == N_ROWS * rows.stride
    unused = rows.indexes[rows.hops :: rows.stride] if rows.hops < rows.stride else [NO_BACKEND]
    assert set(unused) == {NO_BACKEND}
    assert len(rows.row(0)) == rows.hops


def test_row_outside_the_table_is_an_index_error() -> None:
    rows = build_rows(table(["active+"] * 2))
    for number in (-1, N_ROWS):
        with pytest.raises(IndexError):
            rows.row(number)


def test_equal_addresses_keep_the_order_of_the_list() -> None:
    given = table(["active+"] * 3)
    twice = msgspec.structs.replace(given, backends=(given.backends[0], *given.backends))
    rows = build_rows(twice)
    assert all(rows.row(row)[:2] == (0, 1) for row in range(N_ROWS) if rows.row(row)[0] in (0, 1))


# ---- the cache


def test_a_change_of_state_or_health_hashes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    builder = RowBuilder()
    before = builder.build(table(["active+"] * 5))
    monkeypatch.setattr(_rendezvous, "Order", None)  # calling it would be a TypeError
    for words in (["draining+"] + ["active+"] * 4, ["active-"] + ["active+"] * 4, ["inactive"] + ["active+"] * 4):
        changed = table(words)
        rows = builder.build(changed)
        assert rows.indexes != before.indexes
        assert all(rows.row(row) == model_row(changed, row) for row in _SAMPLED_ROWS)
    assert builder.build(table(["active+"] * 5)).indexes == before.indexes


def test_another_seed_or_address_is_ordered_anew() -> None:
    builder = RowBuilder()
    given = table(["active+"] * 5)
    builder.build(given)
    for changed in (
        msgspec.structs.replace(given, seed=bytes(16)),
        msgspec.structs.replace(given, backends=(*given.backends[:4], backend(9, "active+"))),
        msgspec.structs.replace(given, backends=given.backends[::-1]),
    ):
        assert builder.build(changed).indexes == build_rows(changed).indexes


def test_orders_that_are_not_needed_any_more_are_forgotten() -> None:
    builder = RowBuilder()
    one, other = table(["active+"] * 2, name="one"), table(["active+"] * 3, name="other")
    assert [rows.hops for rows in builder.build_all(TableSet((one, other)))] == [2, 2]
    assert len(builder._orders) == 2
    builder.build_all(TableSet((other,)))
    assert len(builder._orders) == 1


# ---- the extension module's own checks


@pytest.mark.parametrize(
    "call",
    [
        pytest.param(lambda: _rendezvous.siphash24(bytes(15), b""), id="short-key"),
        pytest.param(lambda: _rendezvous.siphash24(bytes(16), bytes(256)), id="long-message"),
        pytest.param(lambda: _rendezvous.Order(bytes(16), [], 16, 1), id="no-address"),
        pytest.param(lambda: _rendezvous.Order(bytes(15), [bytes(4)], 16, 1), id="short-seed"),
        pytest.param(lambda: _rendezvous.Order(bytes(16), [bytes(5)], 16, 1), id="address-of-five-bytes"),
        pytest.param(lambda: _rendezvous.Order(bytes(16), [bytes(4)], 16, 2), id="keep-more-than-there-are"),
        pytest.param(lambda: _rendezvous.Order(bytes(16), [bytes(4)] * 9, 16, 9), id="keep-more-than-8"),
        pytest.param(lambda: _rendezvous.Order(bytes(16), [bytes(4)], 0, 1), id="no-rows"),
        pytest.param(lambda: _rendezvous.Order(bytes(16), [bytes(4)], 2**20 + 1, 1), id="too-many-rows"),
        pytest.param(lambda: _rendezvous.Order(bytes(16), [bytes(4)], 16, 1, weights=[0]), id="weight-0"),
        pytest.param(lambda: _rendezvous.Order(bytes(16), [bytes(4)], 16, 1, weights=[101]), id="weight-101"),
        pytest.param(lambda: _rendezvous.Order(bytes(16), [bytes(4)], 16, 1, weights=[1, 1]), id="weights-too-many"),
        pytest.param(
            lambda: _rendezvous.Order(bytes(16), [bytes(4)], 16, 1).reweighed([1, 1]), id="reweighed-too-many"
        ),
        pytest.param(lambda: _rendezvous.score(0, 0), id="score-of-weight-0"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(call: object) -> None:
    assert callable(call)
    with pytest.raises(ValueError, match=r"\d"):
        call()


def test_derive_refuses_what_does_not_fit_the_order() -> None:
    order = _rendezvous.Order(bytes(16), [bytes(4), b"\1\1\1\1"], 16, 2)
    kinds = bytes([_rendezvous.KIND_USABLE, _rendezvous.KIND_SKIPPED])
    for hops, stride in ((2, 2), (1, 0), (-1, 2)):
        with pytest.raises(ValueError, match="hops of 1 backends"):
            order.derive(kinds, hops, stride, False)
    with pytest.raises(ValueError, match="3 kinds for 2 backends"):
        order.derive(bytes(3), 1, 2, False)
    with pytest.raises(ValueError, match="1 zones for 2 backends"):
        order.derive(kinds, 1, 2, False, array("H", [1]))


def test_states_cover_every_kind() -> None:
    assert {state.value for state in State} == {"inactive", "filling", "active", "draining"}
    assert isinstance(table(["active"]), Table)
