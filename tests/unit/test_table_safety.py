"""The rows at risk of changes of real tables, counted once more row by row; settling; the past that states imply."""

from __future__ import annotations

import random
from collections import Counter

import msgspec
import pytest

from glb.table.config import State, Table
from glb.table.safety import Past, Risk, displaced_owners, implied_past, rows_at_risk, settled

from .table_samples import backend, model_row, table

_N_ROWS = 512  # few, so that the model is quick


def _few_rows(words: list[str], *, hops: int = 2) -> Table:
    return msgspec.structs.replace(table(words, hops=hops), n_rows=_N_ROWS)


def _hops(given: Table, row: int) -> list[str]:
    return [str(given.backends[index].address) for index in model_row(given, row % given.n_rows)]


def _model(past: list[Past], new: Table) -> tuple[Risk, dict[str, int]]:
    """(what is at risk, displaced owners), with a set of owners per row. Nobody is unhealthy."""
    at_risk, holders, displaced = 0, Counter[str](), Counter[str]()
    for row in range(_N_ROWS):
        owners: set[str] = set()
        for each in past:
            hops = _hops(each.table, row)
            owners &= set(hops)
            if hops[0] not in map(str, each.ended):
                owners.add(hops[0])
        displaced.update(owners - {_hops(past[-1].table, row)[0]})
        lost = owners - set(_hops(new, row))
        holders.update(lost)
        at_risk += bool(lost)
    return Risk(_N_ROWS, at_risk, 0, tuple((address, n) for address, n in holders.items())), dict(displaced)  # type: ignore[misc]


@pytest.mark.parametrize("seed", range(12))
def test_any_past_gives_what_the_model_counts(seed: int) -> None:
    """Tables of 3 to 8 backends with any states, joined and left by others, in any order of the list."""
    chance = random.Random(seed)
    hops = chance.randint(2, 4)
    versions = []
    for _ in range(chance.randint(2, 5)):
        words = {number: chance.choice(["active+", "active+", "draining+", "inactive"]) for number in range(1, 9)}
        words[chance.randint(1, 8)] = "active+"
        members = sorted(words, key=lambda _: chance.random())[: chance.randint(3, 8)]
        if not any(words[member] == "active+" for member in members):
            continue
        entries = tuple(backend(member, words[member]) for member in members)
        versions.append(msgspec.structs.replace(_few_rows(["active"], hops=hops), backends=entries))
    *before, new = versions
    if not before:
        before = [new]
    ended = frozenset(entry.address for entry in before[0].backends[:1])
    past = [Past(each, ended if each is before[0] else frozenset()) for each in before]
    expected, displaced = _model(past, new)
    found = rows_at_risk(past, new)
    assert (found.n_rows, found.at_risk, found.behind_unhealthy) == (_N_ROWS, expected.at_risk, 0)
    assert {str(address): rows for address, rows in found.holders} == dict(expected.holders)
    assert {str(address): rows for address, rows in displaced_owners(past)} == displaced


_SETTLED = ["active+"] * 6


def _with(**states: str) -> list[str]:
    """Settled, but for b1=..., b2=..."""
    return [states.get(f"b{number}", word) for number, word in enumerate(_SETTLED, 1)]


def _risk(*versions: list[str], hops: int = 2) -> int:
    *past, new = (_few_rows(words, hops=hops) for words in versions)
    return rows_at_risk([Past(each) for each in past], new).at_risk


def test_rolling_drains_lose_nothing_with_two_hops() -> None:
    versions = [_SETTLED]
    for number in (1, 2, 3, 4, 5, 6):
        versions += [_with(**{f"b{number}": "draining+"}), _SETTLED]
        assert _risk(*versions) == _risk(*versions[:-1]) == 0


def test_a_flow_that_was_lost_is_not_at_risk_again() -> None:
    two = _with(b1="draining+", b2="draining+")
    assert _risk(_SETTLED, _with(b1="draining+"), two) > 0  # those of b2, in rows that b1 comes first in
    assert _risk(_SETTLED, _with(b1="draining+"), two, two) == 0


def test_a_false_alarm_leaves_its_backend_an_owner() -> None:
    alarm = _with(b1="active-")
    assert _risk(_SETTLED, alarm) == _risk(_SETTLED, alarm, _SETTLED) == 0
    # b2's drain would leave out b1, in rows where both come first.
    assert _risk(_SETTLED, alarm, _with(b1="active-", b2="draining+")) > 0
    assert _risk(_SETTLED, alarm, _with(b1="active-", b2="draining+"), hops=3) == 0


def test_an_owner_behind_a_hop_that_may_be_dead_is_told_apart() -> None:
    """Order (6, 1, 2): 1 fails, 2 takes over, 6 is added: 2's flows would have to bounce by way of 1."""
    past = [_few_rows(words, hops=3) for words in (_with(b6="inactive"), _with(b6="inactive", b1="active-"))]
    found = rows_at_risk(list(map(Past, past)), _few_rows(_with(b1="active-"), hops=3))
    assert found.at_risk == found.behind_unhealthy > 0
    recovered = rows_at_risk(list(map(Past, past)), _few_rows(_SETTLED, hops=3))
    assert recovered.at_risk == 0


def test_settling_all_forgets_all_but_the_present() -> None:
    drained, filled = _few_rows(_with(b1="draining+")), _few_rows(_SETTLED)
    past = [Past(filled), Past(drained), Past(filled)]
    assert displaced_owners(past)
    assert settled(past) == (Past(filled),)
    assert displaced_owners(settled(past)) == ()
    # The primaries of now stay: a drained backend's flows are not displaced before it drains.
    assert rows_at_risk(settled(past), _few_rows(_with(b1="inactive"))).at_risk > 0


def test_settling_one_backend_forgets_only_its_displaced_flows() -> None:
    past = [Past(_few_rows(words)) for words in (_SETTLED, _with(b1="draining+"), _SETTLED)]
    before = dict(displaced_owners(past))
    b2 = past[0].table.backends[1].address
    after = dict(displaced_owners(settled(past, [b2])))
    assert b2 in before
    assert after == {address: rows for address, rows in before.items() if address != b2}
    # Where it is primary now, it still owns.
    assert rows_at_risk(settled(past, [b2]), _few_rows(_with(b2="inactive"))).at_risk > 0


def test_taking_out_whose_flows_have_ended_loses_nothing() -> None:
    drained = _few_rows(_with(b1="draining+"))
    past = [Past(_few_rows(_SETTLED)), Past(drained)]
    gone = _few_rows(_with(b1="inactive"))
    assert rows_at_risk(past, gone).at_risk > 0
    assert rows_at_risk(settled(past, [drained.backends[0].address]), gone).at_risk == 0


@pytest.mark.parametrize(("words", "n_versions"), [
    (_SETTLED, 1),
    (_with(b1="draining+"), 2),
    (_with(b1="filling+", b2="draining+"), 4),
    (["filling+", "inactive"], 1),
])  # fmt: skip
def test_what_states_imply_of_the_past(words: list[str], n_versions: int) -> None:
    now = _few_rows(words)
    past = implied_past(now)
    assert past[-1] == Past(now)
    assert len(past) == n_versions
    undone = past[0].table.backends
    if n_versions > 1:
        assert {entry.state for entry in undone} <= {State.active, State.inactive}


def test_a_larger_number_of_rows_is_compared_row_by_row() -> None:
    """Row 700 of 1024 takes over from row 700 mod 512."""
    small = _few_rows(_SETTLED)
    large = msgspec.structs.replace(small, n_rows=2 * _N_ROWS)
    for old, new in ((small, large), (large, small)):
        lost = sum(_hops(old, row)[0] not in _hops(new, row) for row in range(2 * _N_ROWS))
        assert 0 < lost < _N_ROWS
        found = rows_at_risk([Past(old)], new)
        assert (found.n_rows, found.at_risk) == (2 * _N_ROWS, lost)


def test_another_hash_key_loses_all_and_forgets_what_was() -> None:
    old = _few_rows(_SETTLED)
    new = msgspec.structs.replace(old, hash_key=bytes(16))
    assert rows_at_risk([Past(old)], new).at_risk == _N_ROWS
    assert displaced_owners([Past(old), Past(_few_rows(_with(b1="draining+"))), Past(new)]) == ()


def test_weights_and_seeds_may_change_between_versions() -> None:
    """Other orders, not only other states: counted by the model too."""
    old = _few_rows(_SETTLED)
    other_seed = msgspec.structs.replace(old, seed=bytes(16))
    expected, _ = _model([Past(old)], other_seed)
    assert rows_at_risk([Past(old)], other_seed).at_risk == expected.at_risk > _N_ROWS // 2
