"""Verbs: which states they lead from, what they refuse, and that the documentation says the same."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from glb.errors import TableError, UnsafeChangeError
from glb.table.change import Plan, plan_change
from glb.table.config import State, TableSet
from glb.table.states import VERBS

from .table_samples import table

_DOCUMENT = Path(__file__).parents[2] / "docs" / "operate" / "glbctl.md"


def _plan(verb: Any, words: str, backend: str = "10.0.0.1", *, hops: int = 2, name: str = "web") -> Plan:
    return plan_change(TableSet((table(words.split(), hops=hops),)), name, backend, VERBS[verb])


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_from_every_state(verb: str, state: State) -> None:
    plan = _plan(verb, f"{state.value}+ active+ active+ active+")
    entry = VERBS[verb]  # type: ignore[index]
    if state in entry.reached_in:
        assert (plan.changes, plan.after, plan.objections) == (False, state, ())
    else:
        assert (plan.changes, plan.after) == (True, entry.goal)
        assert any("first" in objection for objection in plan.objections) == (state not in entry.leads_from)
    assert plan.new.backends[0].state is plan.after
    assert plan.new.backends[1:] == plan.old.backends[1:]


def test_the_round_leads_through_all_states() -> None:
    state = "inactive"
    for verb, expected in [
        ("fill", "filling"),
        ("activate", "active"),
        ("drain", "draining"),
        ("deactivate", "inactive"),
    ]:
        plan = _plan(verb, f"{state}+ active+ active+")
        plan.refuse_unless(force=False)
        assert plan.after.value == expected
        state = expected


def test_documentation_has_the_same_table_of_verbs() -> None:
    rows = re.findall(r"^\| `(\w+)` \| ([\w, ]+) \| (\w+) \| ([\w, ]+) \|$", _DOCUMENT.read_text(), re.MULTILINE)
    documented = {verb: (set(before.split(", ")), goal, set(done.split(", "))) for verb, before, goal, done in rows}
    assert documented == {
        verb.name: ({s.value for s in verb.leads_from}, verb.goal.value, {s.value for s in verb.reached_in})
        for verb in VERBS.values()
    }


def test_rows_at_risk_are_refused_and_counted() -> None:
    plan = _plan("drain", "draining+ active+ active+ active+", "10.0.0.2")
    with pytest.raises(UnsafeChangeError, match=rf"{plan.diff.rows_at_risk} of 65536 rows could lose.*10.0.0.2 \("):
        plan.refuse_unless(force=False)
    plan.refuse_unless(force=True)
    _plan("drain", "draining+ active+ active+ active+", "10.0.0.2", hops=3).refuse_unless(force=False)


@pytest.mark.parametrize("words", ["active+ draining+", "active+ active-", "active+ inactive", "active"])
def test_the_last_usable_backend_is_kept(words: str) -> None:
    with pytest.raises(UnsafeChangeError, match=r"10.0.0.1 is the last usable backend of web"):
        _plan("drain", words).refuse_unless(force=False)


def test_an_unusable_backend_can_be_drained_while_none_is_usable() -> None:
    plan = _plan("drain", "active- active-")
    assert not any("last usable" in objection for objection in plan.objections)


def test_a_table_keeps_one_backend_even_by_force() -> None:
    with pytest.raises(TableError, match="the last backend of web that is not inactive"):
        _plan("deactivate", "draining+ inactive")


def test_unknown_names_name_the_known_ones() -> None:
    with pytest.raises(TableError, match='no table "wbe"; there is web'):
        _plan("drain", "active+ active+", name="wbe")
    with pytest.raises(TableError, match=r'no backend "10.0.0.9" in web; there are 10.0.0.1, 10.0.0.2'):
        _plan("drain", "active+ active+", "10.0.0.9")
    with pytest.raises(TableError, match="and 5 more"):
        _plan("drain", "active+ " * 25, "x")
