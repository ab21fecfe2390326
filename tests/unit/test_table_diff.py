"""What a change does to the rows, counted once more by the model."""

from __future__ import annotations

import ipaddress

import msgspec
import pytest

from glb.table.config import Bind, State, Table, TableSet
from glb.table.diff import diff_sets, diff_tables
from glb.table.rows import N_ROWS

from .table_samples import backend, model_order, model_row, table

_SETTLED = ["active+"] * 6


def _model_owners(entry: Table, row: int) -> set[str]:
    """Hops of the row that may hold its flows, beside the primary, by docs/operate/glbctl.md."""
    order, hops = model_order(entry, row), model_row(entry, row)
    states = [item.state for item in entry.backends]
    healthy = [item.healthy is not False for item in entry.backends]
    primary = hops[0]
    before = order[: order.index(primary)]
    owners = {index for index in before if states[index] is State.draining and healthy[index]}
    if states[primary] is State.filling:
        for index in order[order.index(primary) + 1 :]:
            if states[index] in (State.active, State.filling) and healthy[index]:
                owners.add(index)
                if states[index] is State.active:
                    break
    return {str(entry.backends[index].address) for index in owners & set(hops)}


def _model_diff(old: Table, new: Table) -> tuple[int, int, int]:
    moved = at_risk = unsettled = 0
    for row in range(N_ROWS):
        old_row = [str(old.backends[index].address) for index in model_row(old, row)]
        new_row = [str(new.backends[index].address) for index in model_row(new, row)]
        moved += old_row[0] != new_row[0]
        if old_row[0] not in new_row:
            at_risk += 1
        elif old_row != new_row and not _model_owners(old, row) <= set(new_row):
            unsettled += 1
    return moved, at_risk, unsettled


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
    assert (result.rows_moved, result.rows_at_risk, result.rows_at_risk_unsettled) == _model_diff(before, after)


def _lost(old: list[str], new: list[str], hops: int) -> int:
    return diff_tables(table(old, hops=hops), table(new, hops=hops)).rows_losing_flows


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
    result = diff_tables(table(one), table(two))
    assert result.rows_at_risk == 0
    assert result.rows_at_risk_unsettled > 0
    assert _lost(one, two, 3) == 0
    assert _lost(["inactive", *_SETTLED[1:]], ["filling+", *_SETTLED[1:]], 2) == 0


def test_taking_a_drained_backend_out_loses_nothing_once_it_has_settled() -> None:
    old, new = table(["draining+", *_SETTLED[1:]]), table(["inactive", *_SETTLED[1:]])
    assert diff_tables(old, new).rows_at_risk_unsettled > 0
    assert diff_tables(old, new, settled=[old.backends[0].address]).rows_losing_flows == 0


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
    assert (result.rows_moved, result.rows_changed, result.rows_losing_flows) == (0, 0, 0)


def test_more_hops_change_rows_and_move_none() -> None:
    result = diff_tables(table(_SETTLED, hops=2), table(_SETTLED, hops=4))
    assert (result.rows_moved, result.rows_changed, result.rows_losing_flows) == (0, N_ROWS, 0)


def test_another_hash_key_puts_every_row_at_risk() -> None:
    old = table(_SETTLED)
    result = diff_tables(old, msgspec.structs.replace(old, hash_key=bytes(16)))
    assert result.hash_key_changed
    assert result.rows_losing_flows == N_ROWS


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
