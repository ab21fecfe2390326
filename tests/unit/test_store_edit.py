"""One value of a JSON text is changed, and not a character beside it."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glb.store.edit import set_value

_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"a":[1,{"b":"old"}]}', '{"a":[1,{"b":"new"}]}'),
        ('\n{ "x" : [ ],\n "a":\t[ {} , {"b" :"old"} ] }\n', '\n{ "x" : [ ],\n "a":\t[ {} , {"b" :"new"} ] }\n'),
        ('{"b": "a", "a": ["]", {"c": "b", "b": {"b": "old"}}]}', '{"b": "a", "a": ["]", {"c": "b", "b": "new"}]}'),
        ('{"\\u0061": [0, {"b": 7}], "z": "é"}', '{"\\u0061": [0, {"b": "new"}], "z": "é"}'),
    ],
)  # fmt: skip
def test_layout_stays(text: str, expected: str) -> None:
    assert set_value(text, ("a", 1, "b"), "new") == expected


@given(_VALUES, st.randoms(use_true_random=False), st.sampled_from([None, 1, 2, "\t"]))
@settings(max_examples=200, deadline=None)
def test_any_value_of_any_document(document: object, chooser: random.Random, indent: int | str | None) -> None:
    path: list[str | int] = []
    expected = json.loads(json.dumps(document))
    at, holder = expected, None
    while isinstance(at, (list, dict)) and at and chooser.random() < 0.8:
        holder = at
        path.append(chooser.choice(list(at) if isinstance(at, dict) else list(range(len(at)))))
        at = holder[path[-1]]  # type: ignore[index]
    text = json.dumps(document, indent=indent)
    result = json.loads(set_value(text, path, "replaced"))
    if holder is None:
        assert result == "replaced"
        return
    holder[path[-1]] = "replaced"  # type: ignore[index, call-overload]
    assert result == expected
