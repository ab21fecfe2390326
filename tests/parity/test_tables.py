"""Every table that the reference built: the same file, the same rows, by GLB's rule."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import msgspec
import pytest

from glb.errors import ConfigError
from glb.table.config import TableSet, parse_tables
from glb.table.glbd2 import read_glbd2, write_glbd2
from glb.table.rows import build_rows

_REFERENCE = Path(__file__).parents[1] / "vectors" / "reference"


def _records(name: str) -> list[Any]:
    lines = (_REFERENCE / name).read_text().splitlines()
    return [pytest.param(record, id=record["name"]) for record in map(json.loads, lines)]


def _parse(record: dict[str, Any], *, lenient: bool) -> TableSet:
    return parse_tables(json.dumps(record["config"]), source=record["name"], lenient=lenient)


# What only --lenient takes, and why.
_LENIENT_ONLY = {
    "binds-mixed": {"$.tables[0].binds[0].port"},  # port 0
    "extra-keys": {
        "$.version",
        "$.tables[0].comment",
        "$.tables[0].binds[0].comment",
    },
}


@pytest.mark.parametrize("record", _records("tables.jsonl"))
def test_binary_file_equals_the_reference(record: dict[str, Any]) -> None:
    tables = _parse(record, lenient=True)
    content = write_glbd2(tables)
    assert len(content) == record["file_bytes"]
    assert hashlib.sha256(content).hexdigest() == record["sha256"]


@pytest.mark.parametrize("record", _records("tables.jsonl"))
def test_strict_reading_refuses_only_the_listed_keys(record: dict[str, Any]) -> None:
    expected = _LENIENT_ONLY.get(record["name"])
    if expected is None:
        _parse(record, lenient=False)
        return
    with pytest.raises(ConfigError) as refusal:
        _parse(record, lenient=False)
    assert {problem.path for problem in refusal.value.problems} == expected


@pytest.mark.parametrize("record", _records("tables.jsonl"))
def test_rule_glb2_gives_the_reference_rows(record: dict[str, Any]) -> None:
    tables = _parse(record, lenient=True)
    for table, expected in zip(tables.tables, record["tables"], strict=True):
        rows = build_rows(msgspec.structs.replace(table, row_rule="glb2"))
        packed = struct.pack(f"<{2 * rows.n_rows}I", *rows.indexes)
        assert hashlib.sha256(packed).hexdigest() == expected["rows_sha256"]
        for row, primary, secondary, *addresses in expected["rows"]:
            assert rows.row(row) == (primary, secondary)
            assert [str(table.backends[index].address) for index in rows.row(row)] == addresses


@pytest.mark.parametrize("record", _records("tables.jsonl"))
def test_binary_file_reads_back_as_it_was_written(record: dict[str, Any]) -> None:
    tables = _parse(record, lenient=True)
    for table, found in zip(tables.tables, read_glbd2(write_glbd2(tables)), strict=True):
        assert found.hash_key == table.hash_key
        assert found.binds == table.binds
        assert [backend.address for backend in found.backends] == [backend.address for backend in table.backends]
        assert [backend.healthy for backend in found.backends] == [bool(backend.healthy) for backend in table.backends]
        assert found.rows.indexes == build_rows(msgspec.structs.replace(table, row_rule="glb2")).indexes


# configs.jsonl: what we say of each; None: taken. All but one are refused, also where the reference accepted them.
_EXPECTED: dict[str, tuple[str, str] | None] = {
    "no-tables-key": ("$.tables", "is missing"),
    "empty-tables": ("$.tables", "has 0 entries"),
    "no-hash_key": ("$.tables[0].hash_key", "is missing"),
    "no-seed": ("$.tables[0].seed", "is missing"),
    "no-binds": ("$.tables[0].binds", "is missing"),
    "no-backends": ("$.tables[0].backends", "is missing"),
    "key-short": ("$.tables[0].hash_key", "has 31 hex digits; must have 32"),
    "key-long": ("$.tables[0].hash_key", "has 33 hex digits; must have 32"),
    "seed-short": ("$.tables[0].seed", "has 30 hex digits; must have 32"),
    "empty-binds": ("$.tables[0].binds", "has 0 entries"),
    "state-unknown": ("$.tables[0].backends[2].state", '"Active"; must be inactive, filling, active or draining'),
    "state-missing": ("$.tables[0].backends[2].state", "is missing"),
    "health-missing": None,
    "backend-ip-bad": ("$.tables[0].backends[2].ip", '"10.9.9"'),
    "backend-ip-cidr": ("$.tables[0].backends[2].ip", '"10.9.9.9/32"'),
    "bind-ip-bad": ("$.tables[0].binds[0].ip", '"203.0.113.256"'),
    "cidr-33": ("$.tables[0].binds[0].ip", "prefix length 33; must be 0 to 32"),
    "cidr6-129": ("$.tables[0].binds[0].ip", "prefix length 129; must be 0 to 128"),
    "port-65536": ("$.tables[0].binds[0].port", "65536; must be 1 to 65535"),
    "port-negative": ("$.tables[0].binds[0].port", "-1; must be 1 to 65535"),
    "proto-icmp": ("$.tables[0].binds[0].proto", '"icmp"; must be tcp or udp'),
    "proto-missing": ("$.tables[0].binds[0].proto", "is missing"),
    "not-json": ("", "line 1, column 13"),
}


def test_every_odd_config_is_expected() -> None:
    assert {param.id for param in _records("configs.jsonl")} == set(_EXPECTED)


@pytest.mark.parametrize("lenient", [False, True], ids=["strict", "lenient"])
@pytest.mark.parametrize("record", _records("configs.jsonl"))
def test_odd_config_is_refused_by_path(record: dict[str, Any], lenient: bool) -> None:
    text = record.get("text") or json.dumps(record["config"])
    expected = _EXPECTED[record["name"]]
    if expected is None:
        tables = parse_tables(text, source="t.json", lenient=lenient)
        assert hashlib.sha256(write_glbd2(tables)).hexdigest() == record["sha256"]
        return
    with pytest.raises(ConfigError) as refusal:
        parse_tables(text, source="t.json", lenient=lenient)
    (problem,) = refusal.value.problems
    assert problem.path == expected[0]
    assert expected[1] in problem.message
    assert str(refusal.value).startswith("t.json: ")
