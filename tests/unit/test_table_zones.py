"""Zones: a row outlives its primary's zone, and nobody who may hold its flows is pushed out for that."""

from __future__ import annotations

import pytest

from glb.table.rows import N_ROWS, RowBuilder, build_rows

from .table_samples import model_order, model_row, table

_SAMPLED_ROWS = range(0, N_ROWS, 257)


def _row_with_order(words: list[str], order: tuple[int, ...]) -> int:
    """A row whose order, were all backends active, begins so."""
    all_active = table(["active+"] * len(words))
    return next(row for row in range(N_ROWS) if tuple(model_order(all_active, row)[: len(order)]) == order)


@pytest.mark.parametrize(
    ("words", "hops", "expected"),
    [
        pytest.param("active+@a active+@a active+@b active+@b", 2, (0, 2), id="second-hop-in-another-zone"),
        pytest.param("active+@a active+@a active+@b active+@b", 3, (0, 2, 1), id="then-the-order"),
        pytest.param("active+@a active+@a active+@b active+@b", 4, (0, 2, 1, 3), id="nobody-twice"),
        pytest.param("active+@a active+@b active+@a active+@b", 3, (0, 1, 2), id="another-zone-already"),
        pytest.param("active+@a active+@a active+@a active+@a", 3, (0, 1, 2), id="one-zone"),
        pytest.param("active+@a active+@a active-@b active+@b", 3, (0, 3, 1), id="the-unhealthy-is-not-chosen"),
        pytest.param("active+@a active+@a draining+@b active+@b", 3, (0, 3, 1), id="the-draining-is-not-chosen"),
        pytest.param("active+@a active+@a active+*0@b active+@b", 3, (0, 3, 1), id="weight-0-is-not-chosen"),
        pytest.param("active+@a active+@a inactive@b active+@b", 3, (0, 3, 1), id="the-inactive-is-not-chosen"),
        pytest.param("active+@a active+@a filling+@b active+@b", 3, (0, 2, 1), id="filling-is-chosen"),
        pytest.param("active+@a active+@a active-@b active-@b", 3, (0, 1, 2), id="nobody-usable-elsewhere"),
        pytest.param("active+@a active+@a active+ active+@b", 3, (0, 3, 1), id="without-a-zone-is-no-other-zone"),
        pytest.param("active+ active+ active+@a active+@b", 3, (0, 1, 2), id="primary-without-a-zone"),
        # owners
        pytest.param("draining+@a active+@a active+@a active+@b", 2, (1, 0), id="draining-owner-stays-with-two-hops"),
        pytest.param("draining+@a active+@a active+@a active+@b", 3, (1, 0, 3), id="draining-owner-then-the-zone"),
        pytest.param("active-@a active+@a active+@a active+@b", 2, (1, 0), id="unhealthy-owner-stays-with-two-hops"),
        pytest.param("active-@b active+@a active+@a active+@b", 3, (1, 0, 3), id="unhealthy-elsewhere-is-no-escape"),
        pytest.param("active-@a draining+@a active+@a active+@b", 3, (2, 1, 0), id="two-owners-fill-three-hops"),
        pytest.param("active-@a draining+@a active+@a active+@b", 4, (2, 1, 0, 3), id="two-owners-then-the-zone"),
        pytest.param("active+*0@a active+@a active+@a active+@b", 2, (1, 0), id="weight-0-owner-stays"),
        pytest.param("filling+@a active+@a active+@a active+@b", 2, (0, 1), id="displaced-by-filling-stays"),
        pytest.param("filling+@a active+@a active+@a active+@b", 3, (0, 1, 3), id="displaced-by-filling-then-the-zone"),
        pytest.param("filling+@a active-@a active+@a active+@b", 3, (0, 1, 2), id="all-up-to-the-settled-one-stay"),
        pytest.param("filling+@a filling+@a active+@a active+@b", 4, (0, 1, 2, 3), id="a-chain-of-filling-stays"),
        pytest.param("filling+@a active+@b active+@a active+@c", 3, (0, 1, 2), id="displaced-is-elsewhere-already"),
        pytest.param("active-@a active-@a active-@b active-@b", 2, (0, 1), id="failing-open-keeps-the-order"),
    ],
)
def test_hops(words: str, hops: int, expected: tuple[int, ...]) -> None:
    given = table(words.split(), hops=hops)
    row = _row_with_order(words.split(), (0, 1, 2, 3))
    found = build_rows(given).row(row)
    assert found == expected
    assert found == model_row(given, row)


def test_in_a_settled_table_every_second_hop_is_in_another_zone() -> None:
    words = [f"active+@{'abc'[number % 3]}" for number in range(12)]
    rows = build_rows(table(words))
    zones = [word[-1] for word in words]
    plain = build_rows(table(["active+"] * 12))
    assert rows.indexes[::2] == plain.indexes[::2]  # primaries do not move
    assert all(zones[rows.row(row)[0]] != zones[rows.row(row)[1]] for row in range(N_ROWS))
    assert any(rows.row(row) != plain.row(row) for row in range(N_ROWS))


def test_a_lone_backend_elsewhere_is_found_behind_many() -> None:
    """It is not among the remembered first 8 of most rows."""
    words = [*["active+@a"] * 40, "active+@b"]
    rows = build_rows(table(words))
    assert all(40 in rows.row(row) for row in range(N_ROWS))
    assert all(rows.row(row) == model_row(table(words), row) for row in _SAMPLED_ROWS)


def test_one_zone_or_none_changes_nothing() -> None:
    plain = build_rows(table(["active+"] * 9, hops=3))
    assert build_rows(table(["active+@a"] * 9, hops=3)).indexes == plain.indexes


def test_by_the_rule_glb2_zones_do_not_count() -> None:
    words = ["active+@a", "active+@b", "active+@a"]
    plain = build_rows(table(["active+"] * 3, row_rule="glb2"))
    assert build_rows(table(words, row_rule="glb2")).indexes == plain.indexes


def test_rows_deep_in_a_large_table_are_exact() -> None:
    """Neither the first 8 nor the first 64 of most rows suffice: few are usable, and one alone is in another zone."""
    words = [
        *["draining+@a", "active-@a", "active+*0@b", "inactive@b", "draining-"] * 60,
        *["active+@a"] * 2,
        "filling+@a",
        "active+*7@b",
    ]
    for hops in (2, 3, 4):
        given = table(words, hops=hops, n_rows=512)
        rows = build_rows(given)
        assert all(rows.row(row) == model_row(given, row) for row in range(0, 512, 3))


def test_a_builder_that_went_deep_stays_exact() -> None:
    """It keeps longer heads of the rows that needed them."""
    builder = RowBuilder()
    for out in ("draining+@a", "active-@b", "inactive@a", "active+@b"):
        for alone in ("active+@b", "active+*0@b", "active-@b"):
            given = table([*[out] * 70, *["active+@a"] * 20, alone], hops=3, n_rows=1024)
            rows = builder.build(given)
            assert all(rows.row(row) == model_row(given, row) for row in range(0, 1024, 31))
