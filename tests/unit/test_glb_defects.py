"""What GLB's table builder accepts or gets wrong, each by name; the rule glb2, which shows the defect, beside ours.

Refusals are seen as an operator sees them: glbctl names file, path, value and what is allowed, and an old file stays.
"""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from glb.ctl.cli import main
from glb.table.config import Backend, State, Table
from glb.table.rows import N_ROWS, RowBuilder, is_usable

from .table_samples import table, text

_TEN = ["active+"] * 10


def _ten(**others: str) -> Table:
    """Ten backends, settled and healthy but for b1=..., b2=..."""
    return table([others.get(f"b{number}", word) for number, word in enumerate(_TEN, 1)])


def _bad_first_hops(given: Table) -> int:
    """Rows that send new flows to a backend that is dead or draining."""
    rows = RowBuilder().build(given)
    bad = {index for index, backend in enumerate(given.backends) if not is_usable(backend)}
    return sum(index in bad for index in rows.indexes[:: rows.stride])


_HALF_DOWN = {f"b{number}": "active-" for number in range(1, 6)}


@pytest.mark.parametrize(
    ("given", "share_by_glb"),
    [
        pytest.param(_ten(b1="active-", b2="active-"), 0.021, id="two-of-ten-unhealthy-keep-dead-first-hops"),
        pytest.param(_ten(**_HALF_DOWN), 0.22, id="five-of-ten-unhealthy-keep-dead-first-hops"),
        pytest.param(_ten(b1="draining+", b2="draining+"), 0.021, id="two-of-ten-draining-get-new-flows"),
        pytest.param(_ten(b1="draining+", b2="filling+"), 0.0105, id="one-draining-gets-new-flows-beside-one-filling"),
        pytest.param(_ten(b1="draining+", b2="active-"), 0.021, id="one-draining-is-exchanged-for-a-dead-one"),
    ],
)
def test_new_flows_go_to_who_can_take_them(given: Table, share_by_glb: float) -> None:
    assert _bad_first_hops(msgspec.structs.replace(given, row_rule="glb2")) / N_ROWS == pytest.approx(
        share_by_glb, rel=0.12
    )
    assert _bad_first_hops(given) == 0


def _entries(addresses: list[str]) -> list[dict[str, object]]:
    return [{"ip": address, "state": "active", "healthy": True} for address in addresses]


def _refusal(tmp_path: Path, content: str) -> str:
    """What `table build` and `table check` say of a file that both refuse; nothing is written."""
    source, out = tmp_path / "tables.json", tmp_path / "tables.bin"
    source.write_text(content)
    out.write_bytes(b"old")
    checked = CliRunner().invoke(main, ["table", "check", str(source)])
    built = CliRunner().invoke(main, ["table", "build", str(source), str(out), "--format", "glbd2"])
    assert built.exit_code == 3
    assert out.read_bytes() == b"old"
    if checked.exit_code == 3:  # what does not fit GLB's file only is a good table of ours
        assert [f"glbctl: {line}" for line in checked.stdout.splitlines()] == built.stderr.splitlines()
    assert built.stderr.startswith(f"glbctl: {source}: $.tables[0].")
    return str(built.stderr).removeprefix(f"glbctl: {source}: ").rstrip("\n")


_MANY = [f"10.0.{number // 256}.{number % 256}" for number in range(1, 258)]


@pytest.mark.parametrize(
    ("content", "refusal"),
    [
        pytest.param(text(0), "$.tables[0].backends: has 0 entries; must have 1 to 4096", id="no-backend"),
        pytest.param(
            text(1),
            "$.tables[0].backends: has 1 that is not inactive; GLB's binary file needs 2 or more",
            id="one-backend-in-a-binary-file",
        ),
        pytest.param(
            text(backends=_entries(_MANY)),
            "$.tables[0].backends: has 257 entries; GLB's binary file has room for 256",
            id="257-backends-in-a-binary-file",
        ),
        pytest.param(
            text(binds=[{"ip": "203.0.113.10", "proto": "tcp", "port": port} for port in range(1, 301)]),
            "$.tables[0].binds: has 300 entries; GLB's binary file has room for 256",
            id="300-binds-in-a-binary-file",
        ),
        pytest.param(
            text(backends=_entries(["10.0.0.1", "10.0.0.2", "10.0.0.1"])),
            "$.tables[0].backends[2].ip: 10.0.0.1 is $.tables[0].backends[0] already",
            id="duplicate-backend",
        ),
        pytest.param(
            text(hash_key="zz" * 16),
            '$.tables[0].hash_key: character 1 is "z", which is no hex digit',
            id="hash-key-that-is-no-hex",
        ),
    ],
)
def test_refused(tmp_path: Path, content: str, refusal: str) -> None:
    assert refusal in _refusal(tmp_path, content)


def test_one_backend_is_a_row_of_one_hop() -> None:
    rows = RowBuilder().build(table(["active+"]))
    assert {rows.row(row) for row in range(0, N_ROWS, 4096)} == {(0,)}


def test_an_absent_health_is_not_unhealthy() -> None:
    unchecked = [Backend(backend.address, State.active) for backend in _ten().backends]
    assert _bad_first_hops(msgspec.structs.replace(_ten(b1="active-"), backends=tuple(unchecked))) == 0
    document = json.loads(text(2))
    del document["tables"][0]["backends"][0]["healthy"]
    assert CliRunner().invoke(main, ["table", "check", "-"], input=json.dumps(document)).exit_code == 0
