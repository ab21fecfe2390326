"""Reads the tables that a command is given: a file in any format, standard input, or GLB's binary file."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from glb.ctl.output import say
from glb.errors import ConfigError, Problem
from glb.store.file import read_bytes
from glb.table.config import TableSet, parse_tables
from glb.table.document import format_of

if TYPE_CHECKING:
    from glb.table.safety import Past

STDIN = "-"


def read_source(path: str) -> bytes:
    """The bytes of a file, or of standard input for ``-``."""
    return sys.stdin.buffer.read() if path == STDIN else read_bytes(path)


def tables_of(path: str, content: bytes, *, lenient: bool) -> TableSet:
    """The tables in the content of a file; warnings go to stderr."""
    if content.startswith(b"GLBD"):
        raise ConfigError(path, [Problem("", "is GLB's binary file; this needs the tables it was built from")])
    tables = parse_tables(content, source=path, format=format_of(path), lenient=lenient)
    for warning in tables.warnings:
        say(f"{path}: warning: {warning}")
    return tables


def load_source(path: str, *, lenient: bool) -> TableSet:
    """The tables of a file or of standard input."""
    return tables_of(path, read_source(path), lenient=lenient)


def pasts_of(path: str, tables: TableSet) -> dict[str, tuple[Past, ...]]:
    """By table, what was in force before the tables of this file, if it is a store with a history; else nothing."""
    from glb.store.file import FileStore

    store = FileStore(path)
    return store.history_of(tables).pasts() if path != STDIN and store.has_history else {}
