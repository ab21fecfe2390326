"""What a store's tables have been since each was last settled: what glb.table.safety judges a change by.

Kept beside the tables, as JSON lines (docs/protocol/safety.md, "The history"), in the order of time; the last line of a
table is what it was when the store last looked. A configuration that comes back moves to the end: only the last time
that it was in force matters, since every owner from before then has had to stay a hop ever since.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from glb.errors import ConfigError, Problem
from glb.table.config import MAX_BACKENDS, Backend, Table, TableSet, read_tables
from glb.table.fields import Address, Fields
from glb.table.rows import N_ROWS
from glb.table.safety import Past, implied_past, settled

FOUND = "found"  # who changed it, where that is not known: an editor, another tool
IMPLIED = "implied"  # what states imply of the time before the first record

_HEADER = {"format": "glb-history-1"}
_ABOUT = ("table", "at", "by", "ended")  # keys of a line
_KEYS = ("hash_key", "seed", "hops", "row_rule", "backends")  # further ones, as in the tables
_ANY_BIND = [{"ip": "192.0.2.1", "proto": "tcp", "port": 1}]  # binds are not kept; a table needs one


@dataclass(frozen=True, slots=True)
class Entry:
    """One configuration of one table."""

    at: str  # when it was recorded, as 2026-01-31T12:00:00Z
    by: str  # the command that made it so, FOUND or IMPLIED
    past: Past


@dataclass(frozen=True, slots=True)
class History:
    """Entries by table name."""

    entries: dict[str, tuple[Entry, ...]]

    def past(self, table: str) -> tuple[Past, ...]:
        """As glb.table.safety takes it."""
        return tuple(entry.past for entry in self.entries[table])

    def pasts(self) -> dict[str, tuple[Past, ...]]:
        return {name: self.past(name) for name in self.entries}

    def unsettled_since(self, table: str) -> str | None:
        """When the table ceased to be settled; None: it is."""
        entries = self.entries[table]
        return entries[1].at if len(entries) > 1 else None

    def with_tables(self, tables: TableSet, *, at: str, by: str) -> History:
        """This and what is in force from now on; tables that are gone are forgotten."""
        return History({table.name: self._with_table(table, at, by) for table in tables.tables})

    def _with_table(self, table: Table, at: str, by: str) -> tuple[Entry, ...]:
        now = configuration(table)
        before = self.entries.get(table.name)
        if before is None:
            return tuple(Entry(at, by if past.table == now else IMPLIED, past) for past in implied_past(now))
        if before[-1].past.table == now:
            return before
        return (*(entry for entry in before if entry.past.table != now), Entry(at, by, Past(now)))

    def settled(self, table: str, backends: Collection[Address] | None = None) -> History:
        """This once displaced flows of the table have ended: all, or those that these backends held."""
        entries = self.entries[table]
        pasts = settled([entry.past for entry in entries], backends)
        kept = entries[len(entries) - len(pasts) :]
        fresh = tuple(replace(entry, past=past) for entry, past in zip(kept, pasts, strict=True))
        return History({**self.entries, table: fresh})


EMPTY = History({})


def configuration(table: Table) -> Table:
    """What of a table its rows depend on; the same for every order of the list."""
    backends = [msgspec.structs.replace(backend, healthchecks=None) for backend in table.backends]
    return msgspec.structs.replace(table, binds=(), backends=tuple(sorted(backends, key=_address)))


def _address(backend: Backend) -> tuple[int, bytes]:
    return backend.address.version, backend.address.packed


# ---- as text


def encode(history: History) -> bytes:
    """One JSON object per line."""
    lines = [_HEADER, *(_line(name, entry) for name, entries in history.entries.items() for entry in entries)]
    return b"".join(json.dumps(line, separators=(",", ":")).encode() + b"\n" for line in lines)


def decode(content: bytes, *, source: str) -> History:
    """ConfigError, naming the line, if it is no history."""
    header, *lines = content.splitlines() or [b""]
    if _object(header, source, 1) != _HEADER:
        raise _damaged(source, 1, f"is no {json.dumps(_HEADER)}")
    entries: dict[str, list[Entry]] = {}
    for number, line in enumerate(lines, 2):
        name, entry = _read(_object(line, source, number), f"{source}: line {number}")
        entries.setdefault(name, []).append(entry)
    return History({name: tuple(found) for name, found in entries.items()})


def _line(name: str, entry: Entry) -> dict[str, object]:
    table = entry.past.table
    rows = {} if table.n_rows == N_ROWS else {"rows": table.n_rows}
    return {
        "table": name,
        "at": entry.at,
        "by": entry.by,
        "ended": sorted(map(str, entry.past.ended)),
        "hash_key": table.hash_key.hex(),
        "seed": table.seed.hex(),
        "hops": table.hops,
        "row_rule": table.row_rule,
        **rows,
        "backends": list(map(_backend, table.backends)),
    }


def _backend(backend: Backend) -> dict[str, object]:
    weight = None if backend.weight == 1 else backend.weight
    given = {"healthy": backend.healthy, "weight": weight, "zone": backend.zone}
    present = {key: value for key, value in given.items() if value is not None}
    return {"ip": str(backend.address), "state": backend.state.value, **present}


def _object(line: bytes, source: str, number: int) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError:
        raise _damaged(source, number, "is no JSON") from None
    if not isinstance(value, dict):
        raise _damaged(source, number, "is no object")
    return value


def _read(line: dict[str, Any], source: str) -> tuple[str, Entry]:
    fields = Fields(source)
    given = fields.mapping(line, "$", (*_ABOUT, *_KEYS), ("rows",))
    at, by = (fields.text(given.get(key), f"$.{key}") or "" for key in ("at", "by"))
    listed = fields.array(given.get("ended"), "$.ended", minimum=0, maximum=MAX_BACKENDS)
    ended = [fields.address(value, "$.ended") for value in listed]
    document = {"name": given.get("table"), "binds": _ANY_BIND}
    document |= {key: given[key] for key in (*_KEYS, "rows") if key in given}
    tables = read_tables({"tables": [document]}, fields)
    fields.finish()
    table = configuration(tables.tables[0])
    return table.name, Entry(at, by, Past(table, frozenset(address for address in ended if address is not None)))


def _damaged(source: str, number: int, what: str) -> ConfigError:
    return ConfigError(source, [Problem(f"line {number}", what)])
