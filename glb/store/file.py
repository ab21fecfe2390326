"""The embedded store: one file, locked while it is changed, replaced atomically."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import tempfile
import time
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING

from glb.errors import StoreError
from glb.lock import lock_within
from glb.store import Change, Snapshot
from glb.table.config import TableSet, parse_tables
from glb.table.document import format_of
from glb.table.fields import Address

if TYPE_CHECKING:
    from glb.store.history import History

LOCK_TIMEOUT_S = 10.0


def load_tables(path: str | os.PathLike[str], *, lenient: bool = False) -> TableSet:
    """The tables of one file; its suffix names the format. ConfigError with every problem; StoreError if unreadable."""
    name = os.fspath(path)
    return parse_tables(read_bytes(name), source=name, format=format_of(name), lenient=lenient)


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """A file's bytes. StoreError with the reason."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise StoreError(f"{os.fspath(path)}: {error.strerror}") from error


class FileStore:
    """A file of tables; beside it a lock file (PATH.lock) that changes are made under, and PATH.history."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.path.realpath(path)  # a symbolic link stays; what it names is replaced
        self._history_path = f"{self.path}.history"

    def load(self) -> Snapshot:
        return self._snapshot(read_bytes(self.path))

    def update(self, change: Change, *, by: str) -> Snapshot:
        with self._locked():
            before = self.load()
            text = change(before)
            if text is None or text == before.text:
                return before
            content = text.encode()
            after = self._snapshot(content)  # refuses before anything is written
            history = self._record_found(before)
            replace_file(self.path, content)
            # Should this fail, or the machine stop here, the next look finds a change that it does not know.
            self._write_history(history.with_tables(after.tables, at=_now(), by=by))
            return after

    def history(self, snapshot: Snapshot) -> History:
        return self.history_of(snapshot.tables)

    def history_of(self, tables: TableSet) -> History:
        """The same, of tables that were read already."""
        from glb.store.history import EMPTY, FOUND, decode

        known = decode(read_bytes(self._history_path), source=self._history_path) if self.has_history else EMPTY
        return known.with_tables(tables, at=_now(), by=FOUND)

    @property
    def has_history(self) -> bool:
        """Whether anything was changed through the store yet."""
        return os.path.exists(self._history_path)

    def settle(self, table: str, backends: Collection[Address] | None = None) -> None:
        with self._locked():
            self._write_history(self.history(self.load()).settled(table, backends))

    def _record_found(self, snapshot: Snapshot) -> History:
        """The history, on disk before what it ends with is replaced."""
        history = self.history(snapshot)
        self._write_history(history)
        return history

    def _write_history(self, history: History) -> None:
        from glb.store.history import encode

        content = encode(history)
        if not self.has_history or read_bytes(self._history_path) != content:
            replace_file(self._history_path, content, like=self.path)  # it holds the same secrets

    def _snapshot(self, content: bytes) -> Snapshot:
        format_ = format_of(self.path)
        tables = parse_tables(content, source=self.path, format=format_)
        return Snapshot(tables, content.decode(), format_, hashlib.sha256(content).hexdigest(), self.path)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold PATH.lock. The file stays: removing it would let two holders lock different files."""
        path = f"{self.path}.lock"
        try:
            lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise StoreError(f"{path}: {error.strerror}") from error
        try:
            if not lock_within(lock, LOCK_TIMEOUT_S):
                raise StoreError(f"{path}: held by another change for {LOCK_TIMEOUT_S:g} s; nothing was changed")
            yield
        finally:
            os.close(lock)


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def replace_file(path: str, content: bytes, *, like: str | None = None) -> None:
    """Write a file so that readers, and a machine that loses power, see the old one or the new one, whole.

    Mode and owner are the old file's, or those of `like`. StoreError with the reason; the old file stays then.
    """
    path = os.path.realpath(path)
    folder = os.path.dirname(path)
    try:
        descriptor, temporary = tempfile.mkstemp(prefix=f".{os.path.basename(path)}.", dir=folder)
        try:
            with open(descriptor, "wb") as file:
                file.write(content)
                _keep_mode_and_owner(like or path, descriptor)
                file.flush()
                os.fsync(descriptor)
            os.replace(temporary, path)  # The new file is live after this call.
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
            raise
        folder_descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder_descriptor)
        finally:
            os.close(folder_descriptor)
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror}") from error


def _keep_mode_and_owner(path: str, descriptor: int) -> None:
    try:
        old = os.stat(path)
    except FileNotFoundError:
        umask = os.umask(0)
        os.umask(umask)
        os.fchmod(descriptor, 0o666 & ~umask)
        return
    if not stat.S_ISREG(old.st_mode):
        raise StoreError(f"{path}: is no regular file")
    with contextlib.suppress(PermissionError):  # only root may give files away
        os.fchown(descriptor, old.st_uid, old.st_gid)
    os.fchmod(descriptor, stat.S_IMODE(old.st_mode))
