"""The embedded store: one file, locked while it is changed, replaced atomically."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import stat
import tempfile
import time
from collections.abc import Iterator

from glb.errors import StoreError
from glb.store import Change, Snapshot
from glb.table.config import TableSet, parse_tables
from glb.table.document import format_of

LOCK_TIMEOUT_S = 10.0
_LOCK_POLL_S = 0.05


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
    """A file of tables, and beside it a lock file (PATH.lock) that changes of it are made under."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.path.realpath(path)  # a symbolic link stays; what it names is replaced

    def load(self) -> Snapshot:
        return self._snapshot(read_bytes(self.path))

    def update(self, change: Change) -> Snapshot:
        with self._locked():
            before = self.load()
            text = change(before)
            if text is None or text == before.text:
                return before
            content = text.encode()
            after = self._snapshot(content)  # refuses before anything is written
            replace_file(self.path, content)
            return after

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
            deadline = time.monotonic() + LOCK_TIMEOUT_S
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        message = f"{path}: held by another change for {LOCK_TIMEOUT_S:g} s; nothing was changed"
                        raise StoreError(message) from None
                    time.sleep(_LOCK_POLL_S)
            yield
        finally:
            os.close(lock)


def replace_file(path: str, content: bytes) -> None:
    """Write a file so that readers, and a machine that loses power, see the old one or the new one, whole.

    Mode and owner of an old file are kept. StoreError with the reason; the old file stays then.
    """
    path = os.path.realpath(path)
    folder = os.path.dirname(path)
    try:
        descriptor, temporary = tempfile.mkstemp(prefix=f".{os.path.basename(path)}.", dir=folder)
        try:
            with open(descriptor, "wb") as file:
                file.write(content)
                _keep_mode_and_owner(path, descriptor)
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
