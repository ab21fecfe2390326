"""How evenly the rows are spread: the backend that is furthest above the part that its weight asks for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from glb.table.config import Table
from glb.table.rows import NO_BACKEND, Rows, is_usable


@dataclass(frozen=True, slots=True)
class Imbalance:
    """The backend with the largest share of the rows, measured by its due."""

    index: int  # into the table's backends
    share: float  # its part of the rows as primary; 0 to 1
    due: float  # its weight as part of the weights of all that may be primary; 0 to 1
    expected_above: float  # what `above` is in two of three tables like this one, at most: hashing is a game of chance

    @property
    def above(self) -> float:
        """How far the share is above its due: 0.03 is 3 %. All others are below that."""
        return self.share / self.due - 1


def imbalance(rows: Rows, table: Table) -> Imbalance:
    """The imbalance of a table's own rows. Equal weights: due is the mean share."""
    weights = {index: backend.weight for index, backend in enumerate(table.backends) if is_usable(backend)}
    primaries = column_counts(rows, 0)
    if table.row_rule == "glb2" or not weights:  # GLB has no weights; failing open heeds none
        return imbalance_of(rows, dict.fromkeys(primaries, 1))
    return imbalance_of(rows, weights)


def imbalance_of(rows: Rows, weights: Mapping[int, int]) -> Imbalance:
    """The same of any rows, such as GLB's binary file holds. weights: backend index -> weight, none of them 0."""
    counts = column_counts(rows, 0)
    total = sum(weights.values())
    index = max(weights, key=lambda each: counts[each] / weights[each])
    return Imbalance(
        index=index,
        share=counts[index] / rows.n_rows,
        due=weights[index] / total,
        expected_above=_expected_above(rows.n_rows, weights),
    )


def column_counts(rows: Rows, column: int) -> Counter[int]:
    """How many rows name each backend index as their hop number `column` (0: primary)."""
    counts = Counter(rows.indexes[column :: rows.stride])
    del counts[NO_BACKEND]
    return counts


def _expected_above(n_rows: int, weights: Mapping[int, int]) -> float:
    """Two of three fair draws of n_rows leave every backend less above its due than this.

    By the normal approximation of each backend's count: its chance to be above the result is 1/3 of 1/n.
    """
    from statistics import NormalDist

    if len(weights) < 2:
        return 0.0
    total = sum(weights.values())
    deviations = NormalDist().inv_cdf(1 - 1 / (3 * len(weights)))
    due = min(weights.values()) / total  # the smallest share varies most, relative to itself
    return float(deviations * ((1 - due) / (due * n_rows)) ** 0.5)
