"""Tables at their largest, and how evenly their rows are spread."""

from __future__ import annotations

from array import array

import pytest

from glb.table.rows import NO_BACKEND, Rows, build_rows
from glb.table.shares import imbalance, imbalance_of

from .table_samples import table


def _rows(*primaries: int) -> Rows:
    """Rows of these primaries, without a second hop."""
    return Rows(len(primaries), 1, 2, array("H", [entry for index in primaries for entry in (index, NO_BACKEND)]))


def test_imbalance_is_the_largest_share_over_its_due() -> None:
    found = imbalance_of(_rows(0, 0, 0, 1), {0: 1, 1: 1})
    assert (found.index, found.share, found.due, found.above) == (0, 0.75, 0.5, 0.5)


def test_imbalance_goes_by_the_weight() -> None:
    found = imbalance_of(_rows(0, 0, 0, 1, 1), {0: 4, 1: 1})
    assert (found.index, found.share, found.due) == (1, 0.4, 0.2)
    assert found.above == pytest.approx(1.0)


def test_a_backend_that_may_be_primary_and_never_is_counts() -> None:
    assert imbalance_of(_rows(0, 0), {0: 1, 1: 1}).above == 1.0


@pytest.mark.parametrize(
    ("words", "rule", "due"),
    [
        pytest.param(["active+"] * 4, "first_usable", 0.25, id="equal"),
        pytest.param(["active+"] * 2 + ["draining+", "active-"], "first_usable", 0.5, id="only-usable-ones-are-due"),
        pytest.param(["active-"] * 4, "first_usable", 0.25, id="failing-open"),
        pytest.param(["active+"] * 4, "glb2", 0.25, id="glb2"),
        pytest.param(["active+"], "first_usable", 1.0, id="one"),
    ],
)
def test_imbalance_of_a_table(words: list[str], rule: str, due: float) -> None:
    given = table(words, row_rule="glb2" if rule == "glb2" else "first_usable")
    found = imbalance(build_rows(given), given)
    assert found.due == due
    assert 0 <= found.above < 0.05


def test_the_imbalance_to_be_expected_is_neither_too_low_nor_idle() -> None:
    """Of 30 tables about two thirds stay below it; a bound twice as wide would hold for all of them."""
    below = 0
    for number in range(30):
        given = table(["active+"] * 20, name=str(number), seed=bytes([number]) * 16)
        found = imbalance(build_rows(given), given)
        below += found.above <= found.expected_above
        assert found.above <= 2 * found.expected_above
    assert 15 <= below <= 28
