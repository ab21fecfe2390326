"""The embedded store: one file, locked while it is changed, replaced atomically."""

from __future__ import annotations

from pathlib import Path

from glb.errors import StoreError
from glb.table.config import TableSet, parse_tables
from glb.table.document import format_of


def load_tables(path: str | Path, *, lenient: bool = False) -> TableSet:
    """The tables of one file; its suffix names the format. ConfigError with every problem; StoreError if unreadable."""
    return parse_tables(read_bytes(path), source=str(path), format=format_of(str(path)), lenient=lenient)


def read_bytes(path: str | Path) -> bytes:
    """A file's bytes; StoreError with the reason."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror or error}") from error
