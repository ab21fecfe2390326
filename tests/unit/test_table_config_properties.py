"""Whatever a document holds: it is read, or refused with a path for every problem; never anything else."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from glb.errors import ConfigError
from glb.table.config import TableSet, parse_tables
from glb.table.glbd2 import read_glbd2, write_glbd2

from .table_samples import document, table

_ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 70000),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from(
        ["", "10.0.0.1", "10.0.0.1/8", "::/0", "::1%lo", "active", "tcp", "glb2", "0" * 32, "/", "1.2.3.4/x"]
    ),
    st.text(max_size=5),
    st.lists(st.none(), max_size=3),
    st.dictionaries(st.text(max_size=3), st.none(), max_size=3),
)


def _mutated(base: Any, chooser: random.Random, odd: Any) -> Any:
    """The document with one value somewhere replaced, removed or added."""
    result = copy.deepcopy(base)
    at = result
    while True:
        keys = list(at) if isinstance(at, dict) else list(range(len(at)))
        key = chooser.choice(keys) if keys else None
        if key is not None and isinstance(at[key], (dict, list)) and chooser.random() < 0.8:
            at = at[key]
            continue
        what = chooser.random()
        if what < 0.2 and key is not None:
            del at[key]
        elif what < 0.4:
            at.append(odd) if isinstance(at, list) else at.__setitem__(chooser.choice("abc"), odd)
        elif key is not None:
            at[key] = odd
        return result


@given(st.lists(_ODD, min_size=1, max_size=4), st.randoms(use_true_random=False), st.booleans())
@settings(max_examples=400, deadline=None)
def test_a_mutated_document_is_read_or_refused_by_path(odds: list[Any], chooser: random.Random, lenient: bool) -> None:
    value = document(4, hops=3)
    value["tables"].append(
        document(2, name="other", binds=[{"ip": "2001:db8::/32", "proto": "udp", "port": 1}])["tables"][0]
    )
    for odd in odds:
        value = _mutated(value, chooser, odd)
    try:
        result = parse_tables(json.dumps(value), source="t", lenient=lenient)
    except ConfigError as error:
        assert error.problems
        assert all(problem.path.startswith("$") and problem.message for problem in error.problems)
        return
    assert isinstance(result, TableSet)
    if not lenient:
        addresses = [[backend.address for backend in entry.backends] for entry in result.tables]
        assert all(len(set(entry)) == len(entry) > 0 for entry in addresses)


@given(st.text(max_size=40) | st.binary(max_size=40), st.sampled_from(["json", "toml", "yaml"]))
@settings(max_examples=300, deadline=None)
def test_random_text_is_refused(content: str | bytes, format_: Any) -> None:
    try:
        parse_tables(content, source="t", format=format_)
    except ConfigError as error:
        assert error.problems
    else:
        raise AssertionError("random text was taken for tables")


_BINARY = write_glbd2(TableSet((table(["active+"] * 3),)))


@given(st.lists(st.tuples(st.integers(0, 13400), st.integers(0, 255)), min_size=1, max_size=4))
@settings(max_examples=60, deadline=None)
def test_a_mutated_binary_file_is_read_or_refused(changes: list[tuple[int, int]]) -> None:
    content = bytearray(_BINARY)
    for offset, value in changes:
        content[offset] = value
    try:
        (found,) = read_glbd2(bytes(content))
    except ConfigError as error:
        assert error.problems
        return
    assert set(found.rows.indexes) <= set(range(len(found.backends)))
