"""The history beside a file store: what it remembers, forgets, notices, and how it is written."""

from __future__ import annotations

import json
import random
import stat
from pathlib import Path

import msgspec
import pytest

from glb.errors import ConfigError, StoreError
from glb.store import Snapshot, file
from glb.store.edit import set_state
from glb.store.file import FileStore
from glb.store.history import EMPTY, FOUND, IMPLIED, History, decode, encode
from glb.table.config import State, Table, TableSet
from glb.table.safety import Past, displaced_owners, rows_at_risk

from .table_samples import document, table, text


@pytest.fixture
def path(tmp_path: Path) -> Path:
    result = tmp_path / "tables.json"
    result.write_text(text(4))
    return result


def _set(path: Path, backend: int, state: State, by: str = "test") -> None:
    FileStore(path).update(lambda snapshot: set_state(snapshot, 0, backend, state), by=by)


def _history(path: Path) -> History:
    store = FileStore(path)
    return store.history(store.load())


def _lines(path: Path) -> list[tuple[str, str]]:
    """(who, the states) of each entry."""
    entries = _history(path).entries["web"]
    return [(entry.by, " ".join(b.state.value for b in entry.past.table.backends)) for entry in entries]


# ---- through the store


def test_every_change_is_remembered_with_what_it_changed(path: Path) -> None:
    assert not FileStore(path).has_history
    _set(path, 0, State.draining, "drain web 10.0.0.1")
    _set(path, 0, State.filling, "fill web 10.0.0.1")
    assert _lines(path) == [
        (FOUND, "active active active active"),
        ("drain web 10.0.0.1", "draining active active active"),
        ("fill web 10.0.0.1", "filling active active active"),
    ]
    assert _history(path).unsettled_since("web") is not None


def test_an_edit_by_hand_is_noticed_before_and_after_it_is_recorded(path: Path) -> None:
    _set(path, 0, State.draining)
    path.write_text(path.read_text().replace("draining", "inactive"))
    assert _lines(path)[-1] == (FOUND, "inactive active active active")
    _set(path, 1, State.draining)
    assert [states for _, states in _lines(path)] == [
        "active active active active",
        "draining active active active",
        "inactive active active active",
        "inactive draining active active",
    ]


def test_changes_that_move_no_row_are_not_remembered(path: Path) -> None:
    _set(path, 0, State.draining)
    entry = json.loads(path.read_text())
    entry["tables"][0]["binds"][0]["port"] = 81
    entry["tables"][0]["backends"].reverse()
    entry["tables"][0]["backends"][0]["healthchecks"] = {"http": 80}
    path.write_text(json.dumps(entry))
    assert len(_lines(path)) == 2


def test_what_states_imply_is_the_beginning(path: Path) -> None:
    path.write_text(path.read_text().replace("active", "draining", 1))
    assert _lines(path) == [(IMPLIED, "active active active active"), (FOUND, "draining active active active")]
    _set(path, 1, State.draining, "drain")
    assert [by for by, _ in _lines(path)] == [IMPLIED, FOUND, "drain"]


def test_settling_all_keeps_only_the_present(path: Path) -> None:
    _set(path, 0, State.draining)
    FileStore(path).settle("web")
    assert _lines(path) == [("test", "draining active active active")]
    assert _history(path).unsettled_since("web") is None


def test_settling_a_backend_is_remembered(path: Path) -> None:
    _set(path, 0, State.draining)
    _set(path, 0, State.active)
    address = _history(path).past("web")[0].table.backends[1].address
    FileStore(path).settle("web", [address])
    assert [past.ended for past in _history(path).past("web")] == [{address}, frozenset()]


def test_another_table_is_another_history_and_one_that_goes_is_forgotten(path: Path) -> None:
    both = document(3)
    both["tables"].append(
        document(3, name="b", binds=[{"ip": "203.0.113.11", "proto": "tcp", "port": 80}])["tables"][0]
    )
    path.write_text(json.dumps(both))
    _set(path, 0, State.draining)
    history = _history(path)
    assert {name: len(entries) for name, entries in history.entries.items()} == {"web": 2, "b": 1}
    FileStore(path).settle("web")
    assert len(_history(path).entries["b"]) == 1
    path.write_text(text(4))
    assert set(_history(path).entries) == {"web"}


def test_it_has_the_mode_of_the_table_file(path: Path) -> None:
    path.chmod(0o640)
    _set(path, 0, State.draining)
    beside = path.with_name("tables.json.history")
    assert stat.S_IMODE(beside.stat().st_mode) == 0o640
    path.chmod(0o600)
    _set(path, 0, State.active)
    assert stat.S_IMODE(beside.stat().st_mode) == 0o600


def test_a_damaged_history_is_refused_by_line_and_nothing_changes(path: Path) -> None:
    _set(path, 0, State.draining)
    beside = path.with_name("tables.json.history")
    before, good = path.read_bytes(), beside.read_text()
    for broken, message in (
        ("", "line 1"),
        ("{}\n", "line 1"),
        (good[:-9], "line 3"),
        (good.replace('"seed"', '"sead"', 1), r"line 2: \$.sead"),
        (good.replace('"draining"', '"drained"'), r"line 3: \$.*state"),
    ):
        beside.write_text(broken)
        with pytest.raises(ConfigError, match=message):
            _set(path, 1, State.draining)
        assert path.read_bytes() == before


def test_a_stop_between_both_files_looks_like_an_edit_by_hand(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _set(path, 0, State.draining)
    replace, written = file.replace_file, []

    def stop_after_the_table(name: str, content: bytes, *, like: str | None = None) -> None:
        if written and written[-1] == str(path):
            raise StoreError("power failure")
        written.append(name)
        replace(name, content, like=like)

    monkeypatch.setattr(file, "replace_file", stop_after_the_table)
    with pytest.raises(StoreError, match="power failure"):
        _set(path, 0, State.filling)
    assert _lines(path)[-2:] == [("test", "draining active active active"), (FOUND, "filling active active active")]


# ---- as values


def test_text_and_back_is_the_same() -> None:
    zoned = msgspec.structs.replace(table(["active", "draining-", "inactive+"], hops=3), n_rows=1024)
    heavy = [msgspec.structs.replace(entry, weight=7, zone="a") for entry in zoned.backends]
    history = EMPTY.with_tables(TableSet((zoned,)), at="2026-01-01T00:00:00Z", by="x")
    changed = msgspec.structs.replace(zoned, backends=tuple(heavy))
    history = history.with_tables(TableSet((changed,)), at="2026-01-02T00:00:00Z", by="y é")
    history = history.settled("web", [heavy[0].address])
    assert decode(encode(history), source="h") == history


@pytest.mark.parametrize("seed", range(10))
def test_a_configuration_that_comes_back_needs_no_second_line(seed: int) -> None:
    """The history's answers are those of the whole past, also after forced changes and partial settlements."""
    chance = random.Random(seed)
    states = ["active+", "active+", "draining+", "active-", "inactive"]

    def version() -> Table:
        words = [chance.choice(states) for _ in range(4)]
        return msgspec.structs.replace(table(["active+", *words], hops=chance.choice([2, 3])), n_rows=512)

    versions = [version() for _ in range(4)]
    first = table(["active+"] * 5)
    history = EMPTY.with_tables(TableSet((msgspec.structs.replace(first, n_rows=512),)), at="", by="")
    whole = list(history.past("web"))
    for _ in range(12):
        if chance.random() < 0.25:
            gone = frozenset([chance.choice(first.backends).address])
            history = history.settled("web", gone)
            whole = [Past(each.table, each.ended | gone) for each in whole[:-1]] + whole[-1:]
        history = history.with_tables(TableSet((chance.choice(versions),)), at="", by="")
        whole.append(history.past("web")[-1])
        past = history.past("web")
        assert dict(displaced_owners(past)) == dict(displaced_owners(whole))
        for new in versions:
            found, expected = rows_at_risk(past, new), rows_at_risk(whole, new)
            assert (found.at_risk, found.behind_unhealthy) == (expected.at_risk, expected.behind_unhealthy)
            assert dict(found.holders) == dict(expected.holders)
    assert len(history.past("web")) <= 5 < len(whole)


def test_a_director_need_not_read_it(path: Path) -> None:
    path.with_name("tables.json.history").write_text("broken")
    assert isinstance(FileStore(path).load(), Snapshot)
