"""drain, fill, activate, deactivate: what they change, refuse, and wait for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from glb.ctl import wait
from glb.ctl.cli import main
from glb.store.file import FileStore, load_tables

from .fake_fleet import agent_status, director_status, endpoint, unix_endpoint
from .table_samples import text


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "tables.json"
    path.write_text(text(4))
    return path


@pytest.fixture(autouse=True)
def _fast_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wait, "_POLL_S", 0.01)
    for name in ("GLB_STORE", "GLB_DIRECTORS", "GLB_AGENTS"):
        monkeypatch.delenv(name, raising=False)


def _run(*arguments: str | Path, **environment: str) -> Result:
    return CliRunner().invoke(main, list(map(str, arguments)), env=environment, catch_exceptions=False)


def _states(path: Path) -> list[str]:
    return [backend.state.value for backend in load_tables(path).tables[0].backends]


def _drain(source: Path, *more: str, **environment: str) -> Result:
    return _run("drain", "web", "10.0.0.1", "--store", source, *more, **environment)


# ---- changes


def test_drain_changes_one_word_and_says_one_line(source: Path) -> None:
    before = source.read_text()
    result = _drain(source)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.startswith("drain web 10.0.0.1: active -> draining, ")
    assert result.stdout.endswith(" rows moved, 0 at risk\n")
    assert source.read_text() == before.replace('"active"', '"draining"', 1)


def test_the_whole_round(source: Path) -> None:
    for verb, expected in [
        ("drain", "draining"),
        ("deactivate", "inactive"),
        ("fill", "filling"),
        ("activate", "active"),
        ("drain", "draining"),
        ("fill", "filling"),
        ("drain", "draining"),
        ("activate", "active"),
    ]:
        assert _run(verb, "web", "10.0.0.1", "--store", source).exit_code == 0
        assert _states(source)[0] == expected


def test_what_is_so_already_is_no_failure_and_no_change(source: Path) -> None:
    _drain(source)
    inode = source.stat().st_ino
    result = _drain(source)
    assert (result.exit_code, result.stdout) == (0, "drain web 10.0.0.1: nothing to do, it is draining\n")
    assert source.stat().st_ino == inode


def test_the_store_may_come_from_the_environment(source: Path) -> None:
    assert _run("drain", "web", "10.0.0.1", GLB_STORE=f"file://{source}").exit_code == 0
    assert _states(source)[0] == "draining"


def test_json_says_the_change(source: Path) -> None:
    value = json.loads(_drain(source, "-o", "json").stdout)
    assert {key: value[key] for key in ("verb", "table", "backend", "before", "after", "changed", "dry_run")} == {
        "verb": "drain",
        "table": "web",
        "backend": "10.0.0.1",
        "before": "active",
        "after": "draining",
        "changed": True,
        "dry_run": False,
    }
    assert value["diff"]["rows_moved"] > 0
    assert value["digest"] == director_status(source)["tables"][0]["digest"]


def test_dry_run_says_and_changes_nothing(source: Path) -> None:
    before = source.read_bytes()
    result = _drain(source, "--dry-run")
    assert result.exit_code == 0
    assert "10.0.0.1  active  draining" in result.stdout
    assert "would be active -> draining" in result.stdout.splitlines()[-1]
    assert json.loads(_drain(source, "--dry-run", "-o", "json").stdout)["changed"] is False
    assert source.read_bytes() == before


# ---- refusals


def test_a_second_drain_is_refused_with_the_number_of_rows(source: Path) -> None:
    _drain(source)
    for more in ((), ("--dry-run",)):
        result = _run("drain", "web", "10.0.0.2", "--store", source, *more)
        assert result.exit_code == 3
        assert " of 65536 rows could lose flows that 10.0.0.2 (" in result.stderr
    assert _states(source) == ["draining", "active", "active", "active"]
    result = _run("drain", "web", "10.0.0.2", "--store", source, "--force")
    assert result.exit_code == 0
    assert "warning: forced: " in result.stderr
    assert _states(source) == ["draining", "draining", "active", "active"]


def test_with_three_hops_a_second_drain_is_safe(source: Path) -> None:
    source.write_text(text(4, hops=3))
    for backend in ("10.0.0.1", "10.0.0.2"):
        assert _run("drain", "web", backend, "--store", source).exit_code == 0
    assert _run("drain", "web", "10.0.0.3", "--store", source).exit_code == 3


def test_the_last_usable_backend_is_kept(source: Path) -> None:
    source.write_text(text(1))
    result = _drain(source)
    assert result.exit_code == 3
    assert "the last usable backend of web" in result.stderr
    assert _drain(source, "--force").exit_code == 0


def test_a_step_that_is_left_out_is_named(source: Path) -> None:
    result = _run("deactivate", "web", "10.0.0.1", "--store", source)
    assert (result.exit_code, _states(source)[0]) == (3, "active")
    assert "10.0.0.1 is active; drain it first" in result.stderr


def test_health_that_directors_see_counts(source: Path) -> None:
    """10.0.0.1 is thought dead and may not be: a drain of 10.0.0.2 leaves it out where both come first."""
    seen = director_status(source)
    with endpoint(lambda: seen) as url:
        assert _run("drain", "web", "10.0.0.2", "--store", source, "--director", url, "--dry-run").exit_code == 0
        seen["tables"][0]["backends"][0]["healthy"] = False
        result = _run("drain", "web", "10.0.0.2", "--store", source, "--director", url)
        assert result.exit_code == 3
        assert "flows that 10.0.0.1 (" in result.stderr
        unknown = _run("drain", "web", "10.0.0.2", "--store", source, "--director", "http://127.0.0.1:1", "--dry-run")
    assert (unknown.exit_code, "its view of health is not known" in unknown.stderr) == (0, True)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        pytest.param(("wbe", "10.0.0.1", "--store", "{}"), 1, 'no table "wbe"; there is web', id="table"),
        pytest.param(("web", "10.0.0.9", "--store", "{}"), 1, 'no backend "10.0.0.9" in web', id="backend"),
        pytest.param(("web", "10.0.0.1"), 2, "no store", id="no-store"),
        pytest.param(("web", "10.0.0.1", "--store", "etcd://h/p"), 1, "not in this version", id="etcd"),
        pytest.param(("web", "10.0.0.1", "--store", "{}", "--wait"), 2, "nobody to ask", id="wait-for-nobody"),
        pytest.param(("web", "10.0.0.1", "--store", "{}", "--timeout", "0"), 2, "--timeout", id="timeout"),
        pytest.param(("web", "10.0.0.1", "--store", "{}", "--director", "ftp://x"), 2, "is none of", id="url"),
        pytest.param(("web", "10.0.0.1", "--store", "{}", "--director", "x"), 2, "is none of", id="no-port"),
        pytest.param(("web", "10.0.0.1", "--store", "{}", "--agent", "a=x:1"), 2, "no address", id="agent"),
    ],
)
def test_refused_arguments(source: Path, arguments: tuple[str, ...], code: int, message: str) -> None:
    before = source.read_bytes()
    result = _run("drain", *(argument.format(source) for argument in arguments))
    assert (result.exit_code, result.stdout) == (code, "")
    assert message in result.stderr
    assert source.read_bytes() == before


def test_a_store_that_is_broken_is_refused_as_a_whole(source: Path) -> None:
    source.write_text(text(seed="00"))
    result = _drain(source)
    assert result.exit_code == 3
    assert "$.tables[0].seed" in result.stderr


# ---- waiting


def test_wait_returns_once_every_director_has_the_new_digest(source: Path) -> None:
    asked = {"slow": 0}
    old = director_status(source)

    def slow() -> Any:
        asked["slow"] += 1
        return director_status(source) if asked["slow"] > 3 else old

    with endpoint(lambda: director_status(source)) as fast_url, endpoint(slow) as slow_url:
        result = _drain(source, "--wait", "--director", fast_url, "--director", slow_url)
    assert result.exit_code == 0
    assert asked["slow"] == 4
    lines = result.stderr.splitlines()
    assert lines[0].startswith("1 of 2 directors forward by ")
    assert lines[-1].startswith("2 of 2 directors forward by ")


def test_wait_gives_up_naming_who_is_behind(source: Path) -> None:
    old = director_status(source)
    refusing = director_status(source, last_reload={"ok": False, "error": "no room", "at": 1})
    with endpoint(lambda: old) as behind, endpoint(lambda: refusing) as refused, endpoint(lambda: b"x") as broken:
        result = _drain(
            source, "--wait", "--timeout", "0.05", GLB_DIRECTORS=f"{behind},{refused}, {broken},http://127.0.0.1:1"
        )
    assert result.exit_code == 1
    assert f"{behind} still forwards by {old['tables'][0]['digest'][:12]}" in result.stderr
    assert f"{refused} refused to reload (no room)" in result.stderr
    assert "no JSON" in result.stderr
    assert "Connection refused" in result.stderr
    assert "the change itself was made" in result.stderr
    assert _states(source)[0] == "draining"


def test_wait_believes_a_director_that_says_its_version(source: Path) -> None:
    """Its digest may differ from the stored one all the same: it sees the health of backends."""

    def following() -> Any:
        return director_status(source, table_version=FileStore(source).load().version, tables=tables)

    tables = director_status(source)["tables"]
    stuck = director_status(source, table_version="0" * 64)
    with endpoint(following) as url:
        assert _drain(source, "--wait", "--director", url).exit_code == 0
    with endpoint(lambda: stuck) as url:
        result = _run("fill", "web", "10.0.0.1", "--store", source, "--wait", "--timeout", "0.05", "--director", url)
    assert result.exit_code == 1
    assert f"{url} still forwards by version 000000000000" in result.stderr


def test_wait_says_that_directors_with_the_same_version_differ_in_rows(source: Path) -> None:
    def following() -> Any:
        return director_status(source, table_version=FileStore(source).load().version)

    with endpoint(following) as one, endpoint(lambda: following() | {"tables": old}) as other:
        old = director_status(source)["tables"]
        result = _drain(source, "--wait", "--director", one, "--director", other)
    assert result.exit_code == 0
    assert "warning: web: the directors' rows differ" in result.stderr


def test_wait_is_content_with_a_later_change_of_somebody_else(source: Path) -> None:
    def overtaken() -> Any:
        if "draining" in source.read_text() and '"web2"' not in source.read_text():
            source.write_text(source.read_text().replace('"web"', '"web2"'))
        return director_status(source, table_version=FileStore(source).load().version)

    with endpoint(overtaken) as url:
        assert _drain(source, "--wait", "--timeout", "5", "--director", url).exit_code == 0


def test_a_drain_waits_for_the_last_flow(source: Path) -> None:
    counts = iter([9, 9, 4, 0])
    with endpoint(lambda: agent_status(next(counts))) as url:
        result = _drain(source, "--wait", "--agent", f"10.0.0.1={url}", "--agent", "10.0.0.2=http://127.0.0.1:1")
    assert result.exit_code == 0
    assert result.stderr.splitlines() == [f"{count} flows left on 10.0.0.1" for count in (9, 4, 0)]


def test_a_drain_that_takes_too_long_says_how_many_flows_are_left(source: Path) -> None:
    with endpoint(lambda: agent_status(5)) as url:
        result = _drain(source, "--wait", "--timeout", "0.05", GLB_AGENTS=f"10.0.0.2=http://127.0.0.1:1,10.0.0.1={url}")
    assert result.exit_code == 1
    assert "5 flows are left on 10.0.0.1" in result.stderr


def test_deactivate_is_refused_while_the_agent_counts_flows(source: Path) -> None:
    _drain(source)
    flows = 3
    with endpoint(lambda: agent_status(flows)) as url:
        result = _run("deactivate", "web", "10.0.0.1", "--store", source, "--agent", url)
        assert result.exit_code == 3
        assert "10.0.0.1 still has 3 flows" in result.stderr
        assert _states(source)[0] == "draining"
        flows = 0
        assert _run("deactivate", "web", "10.0.0.1", "--store", source, "--agent", url).exit_code == 0
    assert _states(source)[0] == "inactive"


def test_unix_sockets_can_be_asked(source: Path, tmp_path: Path) -> None:
    with unix_endpoint(tmp_path / "admin", lambda: director_status(source)) as url:
        assert _drain(source, "--wait", "--director", url).exit_code == 0
