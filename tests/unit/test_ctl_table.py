"""``glbctl table`` and ``glbctl flow``, as an operator sees them."""

from __future__ import annotations

import hashlib
import ipaddress
import json
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from glb.ctl.cli import main
from glb.table.rows import N_ROWS
from glb.wire.gue import encapsulate

from .table_samples import document, text


@pytest.fixture
def source(tmp_path: Path) -> str:
    path = tmp_path / "tables.json"
    path.write_text(text(4))
    return str(path)


def _run(*arguments: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(main, arguments, input=stdin, catch_exceptions=False)


def _json(*arguments: str) -> Any:
    result = _run(*arguments, "-o", "json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def _write(tmp_path: Path, name: str, content: str) -> str:
    path = tmp_path / name
    path.write_text(content)
    return str(path)


# ---- check


def test_check_of_a_good_file_says_one_line(source: str) -> None:
    result = _run("table", "check", source)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == f"{source}: ok: 1 table, 4 backends, 1 bind\n"


def test_check_names_every_problem_and_exits_3(tmp_path: Path) -> None:
    path = _write(tmp_path, "bad.json", text(hash_key="00", seed="x" * 32, extra=1))
    result = _run("table", "check", path)
    assert result.exit_code == 3
    assert [line.split(": ")[:2] for line in result.stdout.splitlines()] == [
        [path, "$.tables[0].extra"],
        [path, "$.tables[0].hash_key"],
        [path, "$.tables[0].seed"],
    ]
    value = json.loads(_run("table", "check", path, "-o", "json").stdout)
    assert value["ok"] is False
    assert [problem["path"] for problem in value["problems"]] == [
        "$.tables[0].extra",
        "$.tables[0].hash_key",
        "$.tables[0].seed",
    ]


def test_check_reads_standard_input() -> None:
    assert _run("table", "check", "-", stdin=text()).exit_code == 0
    assert _run("table", "check", "-", stdin="{").exit_code == 3


def test_check_leniently_warns_on_stderr(tmp_path: Path) -> None:
    path = _write(tmp_path, "t.json", text(comment="x"))
    assert _run("table", "check", path).exit_code == 3
    result = _run("table", "check", path, "--lenient")
    assert (result.exit_code, result.stderr) == (0, f"{path}: warning: $.tables[0].comment: unknown key; ignored\n")


def test_a_missing_file_is_a_failure(tmp_path: Path) -> None:
    result = _run("table", "check", str(tmp_path / "none.json"))
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == f"glbctl: {tmp_path}/none.json: No such file or directory\n"


# ---- build


def test_build_writes_the_file_and_says_its_hash(source: str, tmp_path: Path) -> None:
    out = tmp_path / "tables.bin"
    result = _run("table", "build", source, str(out), "--format", "glbd2")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == f"{out}: 1 table, 537648 bytes, sha256 {hashlib.sha256(out.read_bytes()).hexdigest()}\n"


@pytest.mark.parametrize("content", [text(1), text(257), text(hash_key="zz"), "{"])
def test_build_that_fails_leaves_the_old_file(content: str, tmp_path: Path) -> None:
    out = tmp_path / "tables.bin"
    out.write_bytes(b"old")
    result = _run("table", "build", _write(tmp_path, "t.json", content), str(out), "--format", "glbd2")
    assert (result.exit_code, result.stdout) == (3, "")
    assert result.stderr.startswith("glbctl: ")
    assert out.read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["t.json", "tables.bin"]


def test_build_into_a_folder_that_is_not_there_is_a_failure(source: str, tmp_path: Path) -> None:
    result = _run("table", "build", source, str(tmp_path / "none" / "t.bin"))
    assert result.exit_code == 1
    assert "No such file or directory" in result.stderr


def test_build_warns_where_glb_will_take_the_file_otherwise(tmp_path: Path) -> None:
    backends = [{"ip": "10.0.0.1", "state": "active"}, {"ip": "10.0.0.2", "state": "active", "healthy": True}]
    path = _write(tmp_path, "t.json", text(backends=backends, hops=3))
    result = _run("table", "build", path, str(tmp_path / "t.bin"))
    assert result.exit_code == 0
    assert "$.tables[0].hops" in result.stderr
    assert "$.tables[0].backends[0].healthy: is absent; GLB takes that as unhealthy" in result.stderr


# ---- show


def test_show_rows_as_json_has_the_documented_shape(source: str) -> None:
    value = _json("table", "show", source, "--rows", "0-15")
    (entry,) = value["tables"]
    assert entry["name"] == "web"
    assert [row["row"] for row in entry["rows"]] == list(range(16))
    assert all(len(row["hops"]) == 2 for row in entry["rows"])
    assert {hop for row in entry["rows"] for hop in row["hops"]} <= {f"10.0.0.{n}" for n in range(1, 5)}


def test_show_without_rows_has_shares_that_add_up(source: str) -> None:
    (entry,) = _json("table", "show", source)["tables"]
    assert len(entry["rows"]) == N_ROWS
    for hop in range(2):
        assert sum(backend["shares"][hop] for backend in entry["backends"]) == pytest.approx(1)
    result = _run("table", "show", source)
    assert [line.split()[0] for line in result.stdout.splitlines()[2:-1]] == [f"10.0.0.{n}" for n in range(1, 5)]
    assert "\x1b" not in result.output
    largest = max(entry["backends"], key=lambda backend: backend["shares"][0])
    assert entry["imbalance"]["address"] == largest["address"]
    assert entry["imbalance"]["above"] == pytest.approx(largest["shares"][0] / 0.25 - 1)
    assert f"{largest['address']} with {largest['shares'][0]:.2%} for 25.00%" in result.stdout.splitlines()[-1]


def test_show_reads_the_binary_file(source: str, tmp_path: Path) -> None:
    out = str(tmp_path / "t.bin")
    assert _run("table", "build", source, out).exit_code == 0
    (binary,) = _json("table", "show", out, "--rows", "0-99")["tables"]
    (entry,) = _json("table", "show", source, "--rows", "0-99")["tables"]
    assert (binary["rows"], binary["digest"]) == (entry["rows"], entry["digest"])


@pytest.mark.parametrize("rows", ["x", "5-4", "-1", "0-65536", "1-", ""])
def test_show_refuses_rows_that_are_none(source: str, rows: str) -> None:
    result = _run("table", "show", source, "--rows", rows)
    assert (result.exit_code, result.stdout) == (2, "")


def test_single_row(source: str) -> None:
    assert [row["row"] for row in _json("table", "show", source, "--rows", "65535")["tables"][0]["rows"]] == [65535]


# ---- digest


def test_digest_is_one_line_per_table_and_independent_of_order(tmp_path: Path) -> None:
    one, other = document(name="a")["tables"][0], document(name="b")["tables"][0]
    other["binds"][0]["port"] = 81
    turned = {"tables": [dict(reversed(entry.items())) for entry in (one, other)]}
    for entry in turned["tables"]:
        entry["backends"] = entry["backends"][::-1]
    first = _run("table", "digest", _write(tmp_path, "1.json", json.dumps({"tables": [one, other]})))
    second = _run("table", "digest", _write(tmp_path, "2.json", json.dumps(turned)))
    assert first.stdout == second.stdout
    assert [len(line) for line in first.stdout.splitlines()] == [64, 64]
    assert len(set(first.stdout.splitlines())) == 2


# ---- diff


def test_diff_counts_rows_and_shares(source: str, tmp_path: Path) -> None:
    proposed = document(4)
    proposed["tables"][0]["backends"][0]["state"] = "draining"
    value = _json("table", "diff", source, _write(tmp_path, "new.json", json.dumps(proposed)))
    (entry,) = value["tables"]
    assert value["rows_moved"] == entry["rows_moved"] == round(entry["backends"][0]["share_before"] * N_ROWS)
    assert (value["rows_at_risk"], entry["holders"]) == (0, [])
    assert entry["backends"][0]["state_after"] == "draining"
    assert entry["backends"][0]["share_after"] == 0


def test_diff_for_people_ends_with_one_line_per_table(source: str, tmp_path: Path) -> None:
    assert _run("table", "diff", source, source).stdout == "web: 0 of 65536 rows moved, 0 at risk\n"
    new = _write(tmp_path, "new.json", text(3))
    result = _run("table", "diff", source, new)
    moved = _json("table", "diff", source, new)["rows_moved"]
    assert result.stdout.splitlines()[-1] == f"web: {moved} of 65536 rows moved, {moved} at risk"


def test_diff_of_two_standard_inputs_is_a_usage_error() -> None:
    assert _run("table", "diff", "-", "-", stdin=text()).exit_code == 2


# ---- flow explain

_FLOW = ("--src", "198.51.100.7", "--dst", "203.0.113.10", "--proto", "tcp", "--sport", "40000", "--dport", "80")


def test_explain_says_hash_row_hops_and_why(source: str) -> None:
    value = _json("flow", "explain", source, *_FLOW)
    row = _json("table", "show", source, "--rows", str(value["row"]))["tables"][0]["rows"][0]
    assert value["hops"] == row["hops"]
    assert int(value["hash"], 16) % N_ROWS == value["row"]
    assert value["hash_input"] == "c6336407"
    assert len(value["why"]) == len(value["hops"])
    assert [candidate["address"] for candidate in value["candidates"]][:2] == value["hops"]
    assert value["udp_source_port"] == 0x8000 | ((int(value["hash"], 16) ^ 40000) & 0x7FFF)


def test_explain_shows_the_bytes_of_every_hashed_field(source: str) -> None:
    fields = "dst_port,src_addr,src_port,dst_addr"
    value = _json("flow", "explain", source, *_FLOW, "--hash-fields", fields)
    assert [(entry["field"], entry["value"], entry["bytes"]) for entry in value["hashed"]] == [
        ("src_addr", "198.51.100.7", "c6336407"),
        ("dst_addr", "203.0.113.10", "cb00710a"),
        ("src_port", "40000", "9c40"),
        ("dst_port", "80", "0050"),
    ]
    assert "".join(entry["bytes"] for entry in value["hashed"]) == value["hash_input"]


@pytest.mark.parametrize("hops", [2, 3, 4])
@pytest.mark.parametrize("proto", ["tcp", "udp"])
@pytest.mark.parametrize("version", [4, 6])
def test_explain_shows_the_front_that_the_packet_path_writes(
    tmp_path: Path, version: int, proto: str, hops: int
) -> None:
    addresses = ("198.51.100.7", "203.0.113.10") if version == 4 else ("2001:db8::7", "2001:db8:1::10")
    path = _write(tmp_path, "t.json", text(5, hops=hops, binds=[{"ip": addresses[1], "proto": proto, "port": 80}]))
    flow = ("--src", addresses[0], "--dst", addresses[1], "--proto", proto, "--sport", "4000", "--dport", "80")
    source_ip = ipaddress.IPv4Address("192.0.2.1")
    value = _json("flow", "explain", path, *flow, "--outbound-src-ip", str(source_ip), "--length", "100")
    inner = bytes([version << 4]) + bytes(99)
    packet = encapsulate(inner, source_ip, value["hops"], source_port=value["udp_source_port"])
    assert value["front"] == packet[:-100].hex()
    assert "".join(entry["bytes"] for entry in value["front_fields"]) == value["front"]
    offset = 0
    for entry in value["front_fields"]:
        assert entry["offset"] == offset
        offset += len(entry["bytes"]) // 2
    said = {entry["field"]: entry["value"] for entry in value["front_fields"]}
    assert said["IPv4 total length"] == str(len(packet))
    assert said["IPv4 source"] == "192.0.2.1 (outbound_src_ip)"
    assert [said[f"hop {place}"] for place in range(hops - 1)] == value["hops"][1:]
    assert said["GUE protocol"] == f"IPv{version} inside"


def test_explain_of_an_echo_request_leaves_its_port_open(source: str) -> None:
    flow = ("--src", "198.51.100.7", "--dst", "203.0.113.10", "--proto", "icmp")
    assert _json("flow", "explain", source, *flow)["udp_source_port"] is None
    assert "depends on each packet" in _run("flow", "explain", source, *flow).stdout


def test_explain_of_an_unbound_packet_says_so(source: str) -> None:
    value = _json("flow", "explain", source, *_FLOW[:-1], "81")
    assert value == {"verdict": "host", "reason": "no bind is for it"}
    assert "the director's own stack" in _run("flow", "explain", source, *_FLOW[:-1], "81").stdout


def test_explain_with_alternative_fields(source: str) -> None:
    options = ("--hash-fields", "src_addr,src_port", "--alt-hash-fields", "src_addr")
    value = _json("flow", "explain", source, *_FLOW, *options)
    assert value["hash_input"] == "c6336407" + (40000).to_bytes(2, "big").hex()
    assert value["alternative"]["hash_input"] == "c6336407"
    assert len(value["hops"]) == len(set(value["hops"])) >= 2
    assert "alternative" in _run("flow", "explain", source, *_FLOW, *options).stdout


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param(("--src", "198.51.100"), id="no-address"),
        pytest.param(("--src", "::1"), id="two-versions"),
        pytest.param(("--sport", "65536"), id="port"),
        pytest.param(("--proto", "sctp"), id="protocol"),
        pytest.param(("--proto", "icmp"), id="icmp-with-ports"),
        pytest.param(("--hash-fields", "src"), id="field"),
        pytest.param(("--hash-fields", ""), id="no-field"),
        pytest.param(("--outbound-src-ip", "2001:db8::1"), id="outer-ipv6"),
        pytest.param(("--length", "19"), id="length"),
    ],
)
def test_explain_refuses(source: str, changed: tuple[str, str]) -> None:
    result = _run("flow", "explain", source, *_FLOW, *changed)
    assert (result.exit_code, result.stdout) == (2, "")


# ---- all commands


def _commands(command: click.Command, path: tuple[str, ...]) -> list[tuple[str, ...]]:
    found = [path]
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            assert child is not None
            found += _commands(child, (*path, name))
    return found


_ALL = _commands(main, ())


def test_all_commands_are_there() -> None:
    assert {" ".join(path) for path in _ALL} >= {
        *(f"table {name}" for name in ("build", "check", "show", "diff", "digest", "apply")),
        *("flow explain", "agent status", "mtu-check", "status", "drain", "fill", "activate", "deactivate", "settle"),
    }


@pytest.mark.parametrize("path", _ALL, ids=" ".join)
def test_help_has_an_example_of_the_very_command(path: tuple[str, ...]) -> None:
    result = _run(*path, "--help")
    assert result.exit_code == 0
    _, _, example = result.output.partition("Example:\n")
    assert example.strip().startswith(" ".join(("glbctl", *path)))


def test_an_unknown_command_is_a_usage_error() -> None:
    assert _run("tabel").exit_code == 2
