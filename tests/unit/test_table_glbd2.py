"""GLB's binary file: what does not fit is refused before it is written, and what is broken when it is read."""

from __future__ import annotations

import ipaddress
import struct

import msgspec
import pytest

from glb.errors import ConfigError
from glb.table.config import Bind, TableSet
from glb.table.glbd2 import TABLE_BYTES, departures, read_glbd2, write_glbd2

from .table_samples import table

_GOOD = TableSet((table(["active+", "active", "draining+", "inactive+"]),))


def _problems(content: bytes) -> list[str]:
    with pytest.raises(ConfigError) as refusal:
        read_glbd2(content, source="t.bin")
    return [str(problem) for problem in refusal.value.problems]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        pytest.param(["active+"] * 257, "has 257 entries; GLB's binary file has room for 256", id="257-backends"),
        pytest.param(["active+"], "has 1 that is not inactive", id="one-backend"),
        pytest.param(["active+", "inactive"], "has 1 that is not inactive", id="one-backend-that-takes-part"),
    ],
)
def test_backends_that_do_not_fit_are_refused(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        write_glbd2(TableSet((table(words),)), source="t.json")
    (problem,) = refusal.value.problems
    assert problem.path == "$.tables[0].backends"
    assert message in problem.message


def test_300_binds_are_refused() -> None:
    binds = tuple(Bind(ipaddress.ip_network("192.0.2.1/32"), 6, port, port) for port in range(1, 301))
    with pytest.raises(ConfigError, match=r"t.json: \$.tables\[0\].binds: has 300 entries"):
        write_glbd2(TableSet((msgspec.structs.replace(_GOOD.tables[0], binds=binds),)), source="t.json")


def test_256_backends_fit() -> None:
    (found,) = read_glbd2(write_glbd2(TableSet((table(["active+"] * 256),))))
    assert len(found.backends) == 256
    assert set(found.rows.indexes) == set(range(256))


def test_states_and_health_read_back() -> None:
    (found,) = read_glbd2(write_glbd2(_GOOD))
    assert [(entry.state, entry.healthy) for entry in found.backends] == [
        ("active", True),
        ("active", False),  # absent: unhealthy to GLB
        ("draining or inactive", True),
        ("draining or inactive", True),
    ]


def test_departures_from_the_tables_are_named() -> None:
    entry = msgspec.structs.replace(_GOOD.tables[0], hops=3)
    assert [problem.path for problem in departures(TableSet((entry,)))] == [
        "$.tables[0].hops",
        "$.tables[0].backends[1].healthy",
    ]


def test_row_rule_and_hops_of_the_table_do_not_matter() -> None:
    entry = _GOOD.tables[0]
    for changed in (msgspec.structs.replace(entry, hops=4), msgspec.structs.replace(entry, row_rule="glb2")):
        assert write_glbd2(TableSet((changed,))) == write_glbd2(_GOOD)


@pytest.mark.parametrize(
    ("change", "path", "message"),
    [
        pytest.param({"n_rows": 131072}, "$.tables[0].rows", "is 131072; GLB's binary file has 65536", id="rows"),
        pytest.param({"weight": 2}, "$.tables[0].backends[1].weight", "is 2; GLB has no weights", id="weight"),
        pytest.param({"weight": 0}, "$.tables[0].backends[1].weight", "is 0; GLB has no weights", id="weight-0"),
        pytest.param({"zone": "a"}, "$.tables[0].backends[1].zone", 'is "a"; GLB has no zones', id="zone"),
    ],
)
def test_what_glb_has_not_is_refused_or_of_a_lenient_reading_ignored(
    change: dict[str, object], path: str, message: str
) -> None:
    entry = _GOOD.tables[0]
    if "n_rows" in change:
        changed = msgspec.structs.replace(entry, **change)
    else:
        backends = (entry.backends[0], msgspec.structs.replace(entry.backends[1], **change), *entry.backends[2:])
        changed = msgspec.structs.replace(entry, backends=backends)
    with pytest.raises(ConfigError) as refusal:
        write_glbd2(TableSet((changed,)))
    (problem,) = refusal.value.problems
    assert (problem.path, problem.message) == (path, message)
    lenient = TableSet((changed,), lenient=True)
    assert write_glbd2(lenient) == write_glbd2(_GOOD)
    assert problem in departures(lenient)


def _with(offset: int, *words: int) -> bytes:
    content = bytearray(write_glbd2(_GOOD))
    struct.pack_into(f"<{len(words)}I", content, offset, *words)
    return bytes(content)


_TABLE = 24
_BACKEND = _TABLE + 4
_BIND = _TABLE + 6152


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(_with(0, 0), "magic is", id="magic"),
        pytest.param(_with(4, 1), "version is 1; must be 2", id="version"),
        pytest.param(_with(8, 0), "the file has no table", id="no-table"),
        pytest.param(_with(8, 2), f"2 tables have {24 + 2 * TABLE_BYTES}", id="more-tables-than-bytes"),
        pytest.param(_with(12, 65535), "rows per table is 65535", id="rows"),
        pytest.param(_with(16, 255), "backend slots is 255", id="backend-slots"),
        pytest.param(_with(20, 255), "bind slots is 255", id="bind-slots"),
        pytest.param(_with(_TABLE, 0), "has 0 backends; must have 1 to 256", id="no-backend"),
        pytest.param(_with(_TABLE, 257), "has 257 backends", id="257-backends"),
        pytest.param(_with(_BACKEND, 3), "address family is 3", id="backend-family"),
        pytest.param(_with(_BACKEND + 20, 3), "state is 3", id="state"),
        pytest.param(_with(_BACKEND + 20, 0x20001), "health is 2", id="health"),
        pytest.param(_with(_TABLE + 6148, 300), "has 300 binds", id="300-binds"),
        pytest.param(_with(_BIND, 0), "address family is 0", id="bind-family"),
        pytest.param(_with(_BIND + 20, 33), "prefix length is 33; must be 0 to 32", id="prefix-length"),
        pytest.param(_with(_BIND + 24, 50 | 1 << 16), "protocol is 1; must be 6 or 17", id="protocol"),
        pytest.param(_with(_TABLE + 13336, 4), "1 entries name a backend beyond the 4 listed", id="row-index"),
    ],
)
def test_broken_file_is_refused(content: bytes, message: str) -> None:
    assert any(message in problem for problem in _problems(content)), _problems(content)


@pytest.mark.parametrize("length", [0, 3, 23, 24, 25, 24 + TABLE_BYTES - 1])
def test_cut_file_is_refused(length: int) -> None:
    assert _problems(write_glbd2(_GOOD)[:length])


def test_padded_file_is_refused() -> None:
    assert _problems(write_glbd2(_GOOD) + b"\0")
