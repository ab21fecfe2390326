"""table apply, settle, and what agents say of displaced flows: the memory of the store, as an operator meets it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from glb.ctl import wait
from glb.ctl.cli import main
from glb.store.file import FileStore, load_tables

from .fake_fleet import agent_status, director_status, endpoint
from .table_samples import document, text


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "tables.json"
    path.write_text(text(4))
    return path


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wait, "_POLL_S", 0.01)
    for name in ("GLB_STORE", "GLB_DIRECTORS", "GLB_AGENTS"):
        monkeypatch.delenv(name, raising=False)


def _run(*arguments: str | Path, stdin: str | None = None) -> Result:
    return CliRunner().invoke(main, list(map(str, arguments)), input=stdin, catch_exceptions=False)


def _verb(verb: str, source: Path, backend: int, *more: str) -> Result:
    return _run(verb, "web", f"10.0.0.{backend}", "--store", source, *more)


def _displace(source: Path, backend: int = 1) -> None:
    """Drain and fill: the others hold flows of the backend's rows."""
    for verb in ("drain", "fill", "activate"):
        assert _verb(verb, source, backend).exit_code == 0


def _apply(source: Path, tmp_path: Path, new: dict[str, Any] | str, *more: str) -> Result:
    path = tmp_path / "new.json"
    path.write_text(new if isinstance(new, str) else json.dumps(new))
    return _run("table", "apply", path, "--store", source, *more)


def _json(result: Result) -> Any:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


# ---- table apply


def test_apply_puts_the_very_text_in_place(source: Path, tmp_path: Path) -> None:
    result = _apply(source, tmp_path, text(5))
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.splitlines()[-1] == f"table apply {tmp_path}/new.json: applied"
    assert source.read_text() == text(5)
    again = _apply(source, tmp_path, text(5))
    assert "nothing to do, the store holds just that" in again.stdout
    assert _json(_apply(source, tmp_path, text(5), "-o", "json"))["changed"] is False


def test_apply_reads_standard_input(source: Path) -> None:
    assert _run("table", "apply", "-", "--store", source, stdin=text(5)).exit_code == 0
    assert len(load_tables(source).tables[0].backends) == 5


def test_apply_dry_run_says_what_table_diff_says_and_changes_nothing(source: Path, tmp_path: Path) -> None:
    value = _json(_apply(source, tmp_path, text(5), "--dry-run", "-o", "json"))
    assert (value["changed"], value["dry_run"]) == (False, True)
    assert value["diff"] == json.loads(_run("table", "diff", source, tmp_path / "new.json", "-o", "json").stdout)
    assert source.read_text() == text(4)


@pytest.mark.parametrize("more", [(), ("--dry-run",)], ids=["apply", "dry-run"])
def test_apply_refuses_what_would_lose_flows(source: Path, tmp_path: Path, more: tuple[str, ...]) -> None:
    result = _apply(source, tmp_path, text(3), *more)
    assert result.exit_code == 3
    assert "rows could lose flows that 10.0.0.4 (" in result.stderr
    assert source.read_text() == text(4)


def _changed(**changes: object) -> dict[str, Any]:
    return document(4, **changes)


def _with_table(**keys: object) -> dict[str, Any]:
    result = document(4)
    result["tables"].append(document(2, name="other", **keys)["tables"][0])
    return result


_WIDE = {"ip": "203.0.113.0/24", "proto": "tcp", "port_start": 0, "port_end": 65535}


@pytest.mark.parametrize(
    ("new", "message"),
    [
        pytest.param(_changed(name="wbe"), "web is removed: the flows to its binds are lost", id="table"),
        pytest.param(_changed(hash_key="00" * 16), "web: the hash key changes", id="hash-key"),
        pytest.param(
            _changed(binds=[{"ip": "203.0.113.10", "proto": "tcp", "port": 81}]),
            "web no longer has 203.0.113.10/32 tcp 80: flows to it are lost",
            id="bind",
        ),
        pytest.param(
            _changed(backends=[{"ip": f"10.0.0.{n}", "state": "draining"} for n in range(1, 5)]),
            "web has no usable backend any more",
            id="no-usable",
        ),
    ],
)
def test_apply_refuses_what_else_loses_flows(source: Path, tmp_path: Path, new: dict[str, Any], message: str) -> None:
    result = _apply(source, tmp_path, new)
    assert result.exit_code == 3
    assert message in result.stderr
    assert source.read_text() == text(4)
    forced = _apply(source, tmp_path, new, "--force")
    assert forced.exit_code == 0
    assert f"warning: forced: {message}" in forced.stderr
    assert source.read_text() == json.dumps(new)


def test_a_wider_bind_keeps_flows_and_another_tables_narrower_one_takes_them(source: Path, tmp_path: Path) -> None:
    assert _apply(source, tmp_path, _changed(binds=[_WIDE])).exit_code == 0
    wide = _changed(binds=[_WIDE])
    wide["tables"].append(document(2, name="other")["tables"][0])  # 203.0.113.10 port 80
    result = _apply(source, tmp_path, wide)
    assert result.exit_code == 3
    assert "web loses to another table packets of 203.0.113.0/24 tcp 0-65535" in result.stderr
    # A bind that another table's narrower one wins over already loses nothing more.
    assert _apply(source, tmp_path, wide, "--force").exit_code == 0
    assert _apply(source, tmp_path, {"tables": wide["tables"][::-1]}).exit_code == 0


def test_a_table_beside_takes_nothing(source: Path, tmp_path: Path) -> None:
    for keys in (
        {"binds": [{"ip": "203.0.113.11", "proto": "tcp", "port": 80}]},
        {"binds": [{"ip": "203.0.113.10", "proto": "udp", "port": 80}]},
        {"binds": [{"ip": "203.0.113.10", "proto": "tcp", "port": 81}]},
        {"binds": [_WIDE]},
    ):
        assert _apply(source, tmp_path, _with_table(**keys), "--dry-run").exit_code == 0, keys


def test_apply_refuses_a_broken_file_and_another_format(source: Path, tmp_path: Path) -> None:
    broken = _apply(source, tmp_path, text(4, seed="x"))
    assert (broken.exit_code, "$.tables[0].seed" in broken.stderr) == (3, True)
    other = tmp_path / "new.yaml"
    other.write_text(text(5))
    result = _run("table", "apply", other, "--store", source)
    assert (result.exit_code, "they must be alike" in result.stderr) == (1, True)
    assert source.read_text() == text(4)


def test_apply_counts_the_health_that_directors_see(source: Path, tmp_path: Path) -> None:
    """10.0.0.1 is thought dead; who took over for it is left out where an addition comes in front of both."""
    seen = director_status(source)
    with endpoint(lambda: seen) as url:
        assert _apply(source, tmp_path, text(5), "--director", url, "--dry-run").exit_code == 0
        seen["tables"][0]["backends"][0]["healthy"] = False
        result = _apply(source, tmp_path, text(5), "--director", url)
    assert (result.exit_code, source.read_text()) == (3, text(4))
    assert all(f"10.0.0.{number} (" in result.stderr for number in (2, 3, 4))
    assert "10.0.0.1 (" not in result.stderr


def test_apply_waits_for_the_directors(source: Path, tmp_path: Path) -> None:
    old = director_status(source)
    with endpoint(lambda: old) as url:
        result = _apply(source, tmp_path, text(5), "--wait", "--timeout", "0.05", "--director", url)
    assert result.exit_code == 1
    assert "still forwards by" in result.stderr
    assert _apply(source, tmp_path, text(6), "--wait").exit_code == 2


# ---- the memory of the store


def test_an_addition_after_a_drain_and_fill_is_refused_until_it_is_settled(source: Path, tmp_path: Path) -> None:
    """DESIGN's example. The states say that all is well: only the history knows better."""
    _displace(source)
    grown = text(5)
    assert _apply(source, tmp_path, grown).exit_code == 3
    settled = _run("settle", "web", "--store", source)
    assert settled.exit_code == 0
    assert settled.stdout.startswith("settle web: forgotten displaced flows of 10.0.0.")
    assert _apply(source, tmp_path, grown).exit_code == 0


def test_with_three_hops_it_is_safe(source: Path, tmp_path: Path) -> None:
    source.write_text(text(4, hops=3))
    _displace(source)
    assert _apply(source, tmp_path, text(5, hops=3)).exit_code == 0


def test_table_diff_knows_the_history_of_a_store(source: Path, tmp_path: Path) -> None:
    _displace(source)
    new, copy = tmp_path / "new.json", tmp_path / "copy.json"
    new.write_text(text(5))
    copy.write_text(source.read_text())
    risk = [_json(_run("table", "diff", old, new, "-o", "json"))["rows_at_risk"] for old in (source, copy)]
    assert risk[0] > risk[1] == 0


def test_an_edit_by_hand_counts(source: Path, tmp_path: Path) -> None:
    assert _verb("drain", source, 1).exit_code == 0
    source.write_text(source.read_text().replace("draining", "active"))
    assert _apply(source, tmp_path, text(5)).exit_code == 3


# ---- settle


def test_settle_says_who_and_changes_nothing_in_a_dry_run(source: Path) -> None:
    _displace(source)
    before = _json(_run("settle", "web", "--store", source, "--dry-run", "-o", "json"))
    assert (before["changed"], before["dry_run"]) == (False, True)
    assert {entry["address"] for entry in before["settled"]} == {"10.0.0.2", "10.0.0.3", "10.0.0.4"}
    assert _json(_run("settle", "web", "--store", source, "-o", "json")) == before | {"changed": True, "dry_run": False}
    nothing = _run("settle", "web", "--store", source)
    assert (nothing.exit_code, nothing.stdout) == (0, "settle web: nothing to do, no displaced flows are known\n")


def test_settle_of_one_backend_leaves_the_others(source: Path) -> None:
    _displace(source)
    assert _run("settle", "web", "10.0.0.3", "--store", source).exit_code == 0
    left = _json(_run("settle", "web", "--store", source, "--dry-run", "-o", "json"))["settled"]
    assert {entry["address"] for entry in left} == {"10.0.0.2", "10.0.0.4"}


def test_settle_names_what_it_does_not_know(source: Path) -> None:
    assert 'no table "wbe"; there is web' in _run("settle", "wbe", "--store", source).stderr
    assert 'no backend "10.0.0.9" in web' in _run("settle", "web", "10.0.0.9", "--store", source).stderr
    assert _run("settle", "web").exit_code == 2


def test_settle_asks_the_agents_of_who_takes_no_new_flows(source: Path) -> None:
    _verb("drain", source, 1)
    with endpoint(lambda: agent_status(3)) as url:
        agents = ("--agent", f"10.0.0.1={url}", "--agent", f"10.0.0.2={url}")
        refused = _run("settle", "web", "--store", source, *agents)
        assert (refused.exit_code, "10.0.0.1 still has 3 flows" in refused.stderr) == (3, True)
        assert _run("settle", "web", "--store", source, "--agent", "10.0.0.1=http://127.0.0.1:1").exit_code == 1
        assert _run("settle", "web", "--store", source, *agents, "--force").exit_code == 0


# ---- agents settle


def test_a_drain_that_was_waited_for_is_settled(source: Path) -> None:
    with endpoint(lambda: agent_status(0)) as url:
        assert _verb("drain", source, 1, "--wait", "--agent", url).exit_code == 0
    displaced = _json(_run("settle", "web", "--store", source, "--dry-run", "-o", "json"))["settled"]
    assert displaced == []
    assert _verb("drain", source, 2).exit_code == 3  # 10.0.0.2 holds flows of the rows of both


def test_a_refusal_is_lifted_where_agents_count_no_flows(source: Path, tmp_path: Path) -> None:
    """10.0.0.1 is drained, its flows have ended; so it can be left out of rows."""
    source.write_text(text(4, hops=2))
    _verb("drain", source, 1)
    flows = 5
    with endpoint(lambda: agent_status(flows)) as url:
        gone = document(4)
        gone["tables"][0]["backends"] = gone["tables"][0]["backends"][1:]
        agents = ("--agent", f"10.0.0.1={url}", "--agent", "10.0.0.2=http://127.0.0.1:1")
        assert _apply(source, tmp_path, gone, *agents).exit_code == 3
        flows = 0
        dry = _apply(source, tmp_path, gone, *agents, "--dry-run")
        assert (dry.exit_code, "10.0.0.1 has no flows left, by its agent" in dry.stderr) == (0, True)
        assert len(FileStore(source).history(FileStore(source).load()).past("web")) == 2
        assert _apply(source, tmp_path, gone, *agents).exit_code == 0


def test_a_verb_asks_the_agents_too(source: Path) -> None:
    _verb("drain", source, 1)
    refused = _verb("drain", source, 2)
    assert (refused.exit_code, "10.0.0.2 (" in refused.stderr) == (3, True)
    with endpoint(lambda: agent_status(0)) as idle, endpoint(lambda: agent_status(1)) as busy:
        assert _verb("drain", source, 2, "--agent", f"10.0.0.2={busy}").exit_code == 3
        # It is primary of the rows now: without flows this moment, with some the next.
        assert _verb("drain", source, 2, "--agent", f"10.0.0.2={idle}").exit_code == 3
