"""The file store: locked, checked, replaced at once or not at all."""

from __future__ import annotations

import fcntl
import os
import stat
import threading
from pathlib import Path

import pytest

from glb.errors import ConfigError, StoreError
from glb.store import Snapshot, file, open_store
from glb.store.edit import set_state
from glb.store.file import FileStore, load_tables, replace_file
from glb.table.config import State

from .table_samples import text


@pytest.fixture
def path(tmp_path: Path) -> Path:
    result = tmp_path / "tables.json"
    result.write_text(text(4))
    return result


def _states(path: Path) -> list[str]:
    return [backend.state.value for backend in load_tables(path).tables[0].backends]


def _files(path: Path) -> set[str]:
    return {entry.name for entry in path.parent.iterdir()}


def test_update_replaces_the_file_and_returns_what_is_stored(path: Path) -> None:
    store = FileStore(path)
    before = store.load()
    after = store.update(lambda snapshot: set_state(snapshot, 0, 1, State.draining), by="test")
    assert after == store.load()
    assert after.version != before.version
    assert _states(path) == ["active", "draining", "active", "active"]
    assert _files(path) == {"tables.json", "tables.json.lock", "tables.json.history"}


@pytest.mark.parametrize("change", [lambda snapshot: None, lambda snapshot: snapshot.text], ids=["none", "same"])
def test_no_change_leaves_the_very_file(path: Path, change: object) -> None:
    inode = path.stat().st_ino
    store = FileStore(path)
    assert callable(change)
    assert store.update(change, by="test") == store.load()
    assert path.stat().st_ino == inode


def test_a_result_that_is_no_valid_table_is_refused_and_the_file_stays(path: Path) -> None:
    before = path.read_bytes()
    with pytest.raises(ConfigError, match="is missing"):
        FileStore(path).update(lambda snapshot: "{}", by="test")
    with pytest.raises(ZeroDivisionError):
        FileStore(path).update(lambda snapshot: str(1 // 0), by="test")
    assert path.read_bytes() == before
    assert _files(path) == {"tables.json", "tables.json.lock"}


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_file_and_no_litter(
    path: Path, failing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise OSError(28, "No space left on device")

    before = path.read_bytes()
    monkeypatch.setattr(file.os, failing, fail)
    with pytest.raises(StoreError, match="No space left on device"):
        FileStore(path).update(lambda snapshot: set_state(snapshot, 0, 0, State.draining), by="test")
    assert path.read_bytes() == before
    assert _files(path) == {"tables.json", "tables.json.lock"}


def test_mode_and_owner_are_kept(path: Path) -> None:
    path.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(path, 1234, 4321)
    before = path.stat()
    FileStore(path).update(lambda snapshot: set_state(snapshot, 0, 0, State.draining), by="test")
    after = path.stat()
    assert stat.S_IMODE(after.st_mode) == 0o640
    assert (after.st_uid, after.st_gid) == (before.st_uid, before.st_gid)
    assert after.st_ino != before.st_ino


def test_a_new_file_has_the_usual_mode(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        replace_file(str(tmp_path / "new"), b"x")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o640


def test_a_symbolic_link_stays_one(path: Path) -> None:
    link = path.parent / "link.json"
    link.symlink_to(path.name)
    FileStore(link).update(lambda snapshot: set_state(snapshot, 0, 2, State.draining), by="test")
    assert link.is_symlink()
    assert _states(path)[2] == "draining"


def test_changes_from_many_threads_are_all_kept(path: Path) -> None:
    def drain(backend: int) -> None:
        FileStore(path).update(lambda snapshot: set_state(snapshot, 0, backend, State.draining), by="test")

    threads = [threading.Thread(target=drain, args=(backend,)) for backend in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert _states(path) == ["draining"] * 4


def test_a_reader_never_sees_half_a_file(path: Path) -> None:
    done = threading.Event()
    seen: set[str] = set()

    def read() -> None:
        while not done.is_set():
            seen.update(_states(path))

    reader = threading.Thread(target=read)
    reader.start()
    for turn in range(60):
        state = State.draining if turn % 2 else State.active
        FileStore(path).update(lambda snapshot, state=state: set_state(snapshot, 0, 0, state), by="test")
    done.set()
    reader.join()
    assert seen <= {"active", "draining"}


def test_a_lock_that_is_held_is_named(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file, "LOCK_TIMEOUT_S", 0.0)
    with open(f"{path}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(StoreError, match=r"tables.json.lock: held by another change"):
            FileStore(path).update(lambda snapshot: None, by="test")
    FileStore(path).update(lambda snapshot: None, by="test")


@pytest.mark.parametrize("url", ["{}", "file://{}"])
def test_open_store(path: Path, url: str) -> None:
    assert open_store(url.format(path)).load().source == str(path)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("etcd://127.0.0.1:2379/glb", "not in this version"),
        ("file://tables.json", "absolute path"),
        ("http://127.0.0.1/", "unknown kind of store 'http'"),
    ],
)
def test_open_store_refuses(url: str, message: str) -> None:
    with pytest.raises(StoreError, match=message):
        open_store(url)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"none.json: No such file or directory"):
        load_tables(tmp_path / "none.json")
    with pytest.raises(StoreError, match="Is a directory"):
        load_tables(tmp_path)


def test_only_json_can_be_changed(tmp_path: Path) -> None:
    path = tmp_path / "tables.yaml"
    path.write_text(text())  # JSON is YAML
    store = FileStore(path)
    with pytest.raises(StoreError, match="only JSON files can be changed by glbctl, this one is YAML"):
        store.update(lambda snapshot: set_state(snapshot, 0, 0, State.draining), by="test")
    assert isinstance(store.load(), Snapshot)
