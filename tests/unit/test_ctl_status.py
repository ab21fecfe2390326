"""``glbctl status``: who agrees, who does not, who does not answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from glb.ctl.cli import main
from glb.store.edit import set_state
from glb.store.file import FileStore
from glb.table.config import State

from .fake_fleet import agent_status, director_status, endpoint
from .table_samples import text

_NOBODY = "http://127.0.0.1:1"  # refuses connections


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "tables.json"
    path.write_text(text(4))
    return path


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GLB_STORE", "GLB_DIRECTORS", "GLB_AGENTS"):
        monkeypatch.delenv(name, raising=False)


def _status(*arguments: str | Path, **environment: str) -> Result:
    return CliRunner().invoke(main, ["status", *map(str, arguments)], env=environment, catch_exceptions=False)


def test_a_fleet_that_agrees(source: Path) -> None:
    with endpoint(lambda: director_status(source)) as one, endpoint(lambda: director_status(source)) as other:
        result = _status("--store", source, GLB_DIRECTORS=f"{one},{other}")
        value = json.loads(_status("--store", source, "-o", "json", GLB_DIRECTORS=f"{one},{other}").stdout)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.count("agrees") == 2
    assert "native" in result.stdout
    assert value["agree"] is True
    assert [director["url"] for director in value["directors"]] == [one, other]
    (table,) = value["tables"]
    assert value["directors"][0]["digests"] == {"web": table["stored_digest"]}
    assert sum(backend["share"] for backend in table["backends"]) == pytest.approx(1)


def test_directors_that_differ(source: Path, tmp_path: Path) -> None:
    other_source = tmp_path / "other.json"
    other_source.write_text(text(3))
    with endpoint(lambda: director_status(source)) as one, endpoint(lambda: director_status(other_source)) as other:
        result = _status("--director", one, "--director", other)
    assert result.exit_code == 3
    assert result.stdout.count("differs") == 2
    assert "glbctl: web: digests differ: " in result.stderr


def test_a_director_that_is_behind_the_store(source: Path) -> None:
    old = director_status(source, last_reload={"ok": False, "error": "bad", "at": 1})
    source.write_text(text(3))
    with endpoint(lambda: old) as url:
        result = _status("--director", url, "--store", source)
    assert result.exit_code == 3
    assert "refused" in result.stdout


def test_a_director_with_the_stored_version_may_see_other_health(source: Path) -> None:
    version = FileStore(source).load().version
    tables = director_status(source)["tables"]
    tables[0]["digest"] = "1" * 64
    seen = director_status(source, table_version=version, tables=tables)
    old = director_status(source, table_version="0" * 64, tables=tables)
    with endpoint(lambda: seen) as one, endpoint(lambda: old) as other:
        good = _status("--director", one, "--store", source)
        behind = _status("--director", one, "--director", other, "--store", source)
        value = json.loads(_status("--director", other, "--store", source, "-o", "json").stdout)
        assert _status("--director", other).exit_code == 0  # no store to compare with
    assert (good.exit_code, good.stderr) == (0, "")
    assert behind.exit_code == 3
    assert f"{other} does not forward by what is stored" in behind.stderr
    assert behind.stdout.count("is behind") == 1
    assert (value["agree"], value["stored_version"], value["directors"][0]["behind"]) == (False, version, True)
    assert value["directors"][0]["table_version"] == "0" * 64


def test_displaced_flows_are_shown(source: Path) -> None:
    store = FileStore(source)
    for state in (State.draining, State.active):
        store.update(lambda snapshot, state=state: set_state(snapshot, 0, 0, state), by="test")  # type: ignore[misc]
    with endpoint(lambda: director_status(source)) as url:
        result = _status("--director", url, "--store", source)
        value = json.loads(_status("--director", url, "--store", source, "-o", "json").stdout)
        store.settle("web")
        settled = json.loads(_status("--director", url, "--store", source, "-o", "json").stdout)
    (displaced,) = [table["displaced"] for table in value["tables"]]
    assert {holder["address"] for holder in displaced["holders"]} == {"10.0.0.2", "10.0.0.3", "10.0.0.4"}
    assert f"web: since {displaced['since']} displaced flows may live on 10.0.0." in result.stdout
    assert settled["tables"][0]["displaced"] == {"since": None, "holders": []}


def test_somebody_who_does_not_answer_is_named_and_the_rest_is_shown(source: Path) -> None:
    with endpoint(lambda: director_status(source)) as url:
        result = _status("--director", url, "--director", _NOBODY)
        value = json.loads(_status("--director", url, "--director", _NOBODY, "-o", "json").stdout)
    assert result.exit_code == 1
    assert f"{_NOBODY}: Connection refused" in result.stderr
    assert "agrees" in result.stdout
    assert [director["up"] for director in value["directors"]] == [True, False]


def test_flows_are_shown_where_agents_are_given(source: Path) -> None:
    with endpoint(lambda: director_status(source)) as url, endpoint(lambda: agent_status(42)) as agent:
        options = ("--director", url, "--agent", f"10.0.0.2={agent}")
        value = json.loads(_status(*options, "-o", "json").stdout)
        assert _status("--director", url, "--agent", f"10.0.0.2={_NOBODY}").exit_code == 1
        assert _status("--director", url, "--agent", agent).exit_code == 2
    flows = {backend["address"]: backend["flows"] for backend in value["tables"][0]["backends"]}
    assert flows == {"10.0.0.1": None, "10.0.0.2": 42, "10.0.0.3": None, "10.0.0.4": None}


def test_health_is_what_the_director_sees(source: Path) -> None:
    seen = director_status(source)
    seen["tables"][0]["backends"][2]["healthy"] = False
    with endpoint(lambda: seen) as url:
        result = _status("--director", url, "--store", source)
    (line,) = [line for line in result.stdout.splitlines() if "10.0.0.3" in line]
    assert "unhealthy" in line


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"<html>", "no JSON"),
        ([], "no object"),
        ({"version": "1"}, "is no director"),
        ({"version": "1", "tables": [{"name": "web"}]}, "is no director"),
        ({"version": "1", "tables": 7}, "is no director"),
    ],
)
def test_an_answer_that_makes_no_sense_is_no_traceback(answer: Any, message: str) -> None:
    with endpoint(lambda: answer) as url:
        result = _status("--director", url)
    assert result.exit_code == 1
    assert message in result.stderr
