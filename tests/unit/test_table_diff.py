"""What a change does to the rows, counted once more by the model."""

from __future__ import annotations

import ipaddress

import msgspec
import pytest

from glb.table.config import Bind, Table, TableSet
from glb.table.diff import diff_sets, diff_tables
from glb.table.rows import N_ROWS
from glb.table.safety import Past, implied_past, settled

from .table_samples import backend, model_row, table

_SETTLED = ["active+"] * 6


def _model_diff(past: list[Table], old: Table, new: Table) -> tuple[int, int]:
    """(rows moved, rows at risk), with a set of owners per row."""
    moved = at_risk = 0
    for row in range(N_ROWS):
        owners: set[str] = set()
        for version in (*past, old):
            hops = [str(version.backends[index].address) for index in model_row(version, row)]
            owners = owners & set(hops) | {hops[0]}
        new_row = [str(new.backends[index].address) for index in model_row(new, row)]
        moved += hops[0] != new_row[0]
        at_risk += not owners <= set(new_row)
    return moved, at_risk


@pytest.mark.parametrize(
    ("old", "new", "hops"),
    [
        pytest.param("active+ active+ active+ active+", "draining+ active+ active+ active+", 2, id="one-drain"),
        pytest.param("draining+ active+ active+ active+", "draining+ draining+ active+ active+", 2, id="second-drain"),
        pytest.param("inactive filling+ active+ active+", "filling+ filling+ active+ active+", 2, id="second-fill"),
        pytest.param("filling+ filling+ active+ active+", "filling+ filling+ draining+ active+", 3, id="fills-drain"),
        pytest.param("draining+ draining+ active+ active+", "inactive active+ active+ active+", 4, id="two-changes"),
    ],
)
def test_counts_equal_the_model(old: str, new: str, hops: int) -> None:
    before, after = table(old.split(), hops=hops), table(new.split(), hops=hops)
    result = diff_tables(before, after)
    implied = [past.table for past in implied_past(before)[:-1]]
    assert (result.rows_moved, result.rows_at_risk) == _model_diff(implied, before, after)


def test_a_past_that_is_known_counts_instead_of_what_states_imply() -> None:
    first, drained = table(_SETTLED), table(["draining+", *_SETTLED[1:]])
    new = msgspec.structs.replace(first, backends=(*first.backends, backend(7, "active+")))
    past = [Past(first), Past(drained), Past(first)]
    result = diff_tables(first, new, past=past)
    assert (result.rows_moved, result.rows_at_risk) == _model_diff([first, drained], first, new)
    assert result.rows_at_risk > diff_tables(first, new).rows_at_risk == 0
    assert sum(rows for _, rows in result.holders) >= result.rows_at_risk


def _lost(old: list[str], new: list[str], hops: int) -> int:
    return diff_tables(table(old, hops=hops), table(new, hops=hops)).rows_at_risk


def test_a_drain_and_a_fill_from_a_settled_table_lose_nothing() -> None:
    draining, filling = ["draining+", *_SETTLED[1:]], ["filling+", *_SETTLED[1:]]
    assert _lost(_SETTLED, draining, 2) == 0
    assert _lost(draining, filling, 2) == 0
    assert _lost(draining, _SETTLED, 2) == 0
    assert _lost(filling, _SETTLED, 2) == 0


def test_a_second_drain_loses_rows_with_two_hops_and_none_with_three() -> None:
    one, two = ["draining+", *_SETTLED[1:]], ["draining+", "draining+", *_SETTLED[2:]]
    assert _lost(one, two, 2) > 0
    assert _lost(one, two, 3) == 0
    assert _lost(two, ["draining+"] * 3 + _SETTLED[3:], 3) > 0
    assert _lost(two, ["draining+"] * 3 + _SETTLED[3:], 4) == 0


def test_a_second_fill_before_the_first_has_settled_is_seen_by_the_states() -> None:
    """DESIGN's example: (a, b, c), a is filling, then d is put in front: b's flows would be lost."""
    one, two = ["inactive", "filling+", *_SETTLED[2:]], ["filling+", "filling+", *_SETTLED[2:]]
    assert _lost(one, two, 2) > 0
    assert _lost(one, two, 3) == 0
    assert _lost(["inactive", *_SETTLED[1:]], ["filling+", *_SETTLED[1:]], 2) == 0


def test_taking_a_drained_backend_out_loses_nothing_once_it_has_settled() -> None:
    old, new = table(["draining+", *_SETTLED[1:]]), table(["inactive", *_SETTLED[1:]])
    assert diff_tables(old, new).rows_at_risk > 0
    ended = settled(implied_past(old), [old.backends[0].address])
    assert diff_tables(old, new, past=ended).rows_at_risk == 0


def test_a_backend_removed_from_the_list_puts_its_rows_at_risk() -> None:
    old = table(_SETTLED)
    new = msgspec.structs.replace(old, backends=old.backends[1:])
    result = diff_tables(old, new)
    assert result.rows_moved == result.rows_at_risk > 0
    gone = result.backends[0]
    assert (str(gone.address), gone.state_after, gone.share_after) == ("10.0.0.1", None, 0.0)
    assert gone.share_before == result.rows_at_risk / N_ROWS


def test_the_order_of_the_list_changes_nothing() -> None:
    old = table(_SETTLED)
    result = diff_tables(old, msgspec.structs.replace(old, backends=old.backends[::-1]))
    assert (result.rows_moved, result.rows_changed, result.rows_at_risk) == (0, 0, 0)


def test_more_hops_change_rows_and_move_none() -> None:
    result = diff_tables(table(_SETTLED, hops=2), table(_SETTLED, hops=4))
    assert (result.rows_moved, result.rows_changed, result.rows_at_risk) == (0, N_ROWS, 0)


def test_another_hash_key_puts_every_row_at_risk() -> None:
    old = table(_SETTLED)
    result = diff_tables(old, msgspec.structs.replace(old, hash_key=bytes(16)))
    assert result.hash_key_changed
    assert result.rows_at_risk == N_ROWS


def test_shares_are_of_all_rows() -> None:
    old = table(_SETTLED)
    new = msgspec.structs.replace(old, backends=(*old.backends, backend(99, "filling+")))
    changes = diff_tables(old, new).backends
    assert sum(change.share_before for change in changes) == pytest.approx(1)
    assert sum(change.share_after for change in changes) == pytest.approx(1)
    assert [(change.state_before, change.share_before) for change in changes[-1:]] == [(None, 0)]
    assert changes[-1].share_after == pytest.approx(1 / 7, rel=0.05)


def test_sets_are_compared_by_name() -> None:
    bind = Bind(ipaddress.ip_network("192.0.2.1/32"), 6, 1, 1)
    stays, goes, comes = (table(_SETTLED, name=name) for name in ("stays", "goes", "comes"))
    result = diff_sets(TableSet((goes, stays)), TableSet((msgspec.structs.replace(stays, binds=(bind,)), comes)))
    assert (result.added, result.removed) == (("comes",), ("goes",))
    (change,) = result.tables
    assert (change.name, change.rows_changed) == ("stays", 0)
    assert (change.binds_added, change.binds_removed) == ((bind,), stays.binds)
