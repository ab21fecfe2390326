"""GitHub GLB's binary forwarding table, version 2, byte for byte (docs/protocol/table.md, "The binary file").

Integers are little-endian. Written always by the row rule glb2, for GLB's own director.
"""

from __future__ import annotations

import ipaddress
import struct
import sys
from array import array
from dataclasses import dataclass

import msgspec

from glb.errors import ConfigError, Problem
from glb.table.config import Backend, Bind, State, Table, TableSet
from glb.table.fields import Address, shown
from glb.table.rows import N_ROWS, RowBuilder, Rows, n_present

SLOTS = 256  # of backends, and of binds

_FILE_HEADER = struct.Struct("<4sIIIII")  # magic, version, tables, rows, backend slots, bind slots
_COUNT = struct.Struct("<I")
_BACKEND = struct.Struct("<I16sHH")  # family, address, state, health
_BIND = struct.Struct("<I16sHHHBx")  # family, address as written, prefix length, first port, last port, protocol
_HASH_KEY_BYTES = 16
_MAGIC = b"GLBD"
_VERSION = 2
TABLE_BYTES = 2 * _COUNT.size + SLOTS * (_BACKEND.size + _BIND.size) + _HASH_KEY_BYTES + N_ROWS * 8

_FAMILIES = {4: 1, 6: 2}
# "draining" stands for inactive, too; the file cannot tell them apart.
_STATE_CODES = {State.filling: 0, State.active: 1, State.draining: 2, State.inactive: 2}
_STATE_NAMES = {0: "filling", 1: "active", 2: "draining or inactive"}
_PROTOCOLS = (6, 17)


@dataclass(frozen=True, slots=True)
class BinaryBackend:
    address: Address
    state: str  # a State's name, or "draining or inactive"
    healthy: bool


@dataclass(frozen=True, slots=True)
class BinaryTable:
    """What the file says of one table: no name, no seed."""

    hash_key: bytes
    binds: tuple[Bind, ...]
    backends: tuple[BinaryBackend, ...]
    rows: Rows


# ---- writing


def write_glbd2(tables: TableSet, *, source: str = "table") -> bytes:
    """The file that GLB's builder makes of the same tables. ConfigError where they do not fit its format."""
    problems = [problem for index, table in enumerate(tables.tables) for problem in _misfits(table, index)]
    if not tables.lenient:
        problems += [problem for index, table in enumerate(tables.tables) for problem in _not_glbs(table, index)]
    if problems:
        raise ConfigError(source, problems)
    header = _FILE_HEADER.pack(_MAGIC, _VERSION, len(tables.tables), N_ROWS, SLOTS, SLOTS)
    return header + b"".join(_write_table(table) for table in tables.tables)


def departures(tables: TableSet) -> list[Problem]:
    """Where GLB's director, given the file, will do something else than ours, given the same tables."""
    result = []
    for index, table in enumerate(tables.tables):
        path = f"$.tables[{index}]"
        if table.hops > 2:
            result.append(Problem(f"{path}.hops", f"is {table.hops}; rows of GLB's binary file have 2"))
        result += _not_glbs(table, index)
        for at, backend in enumerate(table.backends):
            if backend.healthy is None and backend.state is not State.inactive:
                message = "is absent; GLB takes that as unhealthy (we as not health-checked)"
                result.append(Problem(f"{path}.backends[{at}].healthy", message))
    return result


def _misfits(table: Table, index: int) -> list[Problem]:
    path = f"$.tables[{index}]"
    result = [
        Problem(f"{path}.{name}", f"has {count} entries; GLB's binary file has room for {SLOTS}")
        for name, count in (("backends", len(table.backends)), ("binds", len(table.binds)))
        if count > SLOTS
    ]
    present = n_present(table.backends)
    if present < 2:
        message = f"has {present} that is not inactive; GLB's binary file needs 2 or more (its rows have two hops)"
        result.append(Problem(f"{path}.backends", message))
    return result


def _not_glbs(table: Table, index: int) -> list[Problem]:
    """What decides over our rows and is unknown to GLB. Of a table that was read leniently it is ignored."""
    path = f"$.tables[{index}]"
    result = []
    if table.n_rows != N_ROWS:
        result.append(Problem(f"{path}.rows", f"is {table.n_rows}; GLB's binary file has {N_ROWS}"))
    for at, backend in enumerate(table.backends):
        if backend.weight != 1:
            result.append(Problem(f"{path}.backends[{at}].weight", f"is {backend.weight}; GLB has no weights"))
        if backend.zone is not None:
            result.append(Problem(f"{path}.backends[{at}].zone", f"is {shown(backend.zone)}; GLB has no zones"))
    return result


def _write_table(table: Table) -> bytes:
    rows = RowBuilder().build(msgspec.structs.replace(table, hops=2, row_rule="glb2", n_rows=N_ROWS))
    backends = b"".join(_write_backend(backend) for backend in table.backends)
    binds = b"".join(_write_bind(bind) for bind in table.binds)
    return b"".join(
        (
            _COUNT.pack(len(table.backends)),
            backends.ljust(SLOTS * _BACKEND.size, b"\0"),
            _COUNT.pack(len(table.binds)),
            binds.ljust(SLOTS * _BIND.size, b"\0"),
            table.hash_key,
            _little_endian(array("I", rows.indexes)).tobytes(),
        )
    )


def _write_backend(backend: Backend) -> bytes:
    family = _FAMILIES[backend.address.version]
    return _BACKEND.pack(family, backend.address.packed, _STATE_CODES[backend.state], backend.healthy is True)


def _write_bind(bind: Bind) -> bytes:
    family = _FAMILIES[bind.network.version]
    prefix = bind.network.prefixlen
    return _BIND.pack(family, bind.address.packed, prefix, bind.port_first, bind.port_last, bind.proto)


def _little_endian(words: array[int]) -> array[int]:
    if sys.byteorder == "big":
        words.byteswap()
    return words


# ---- reading


def is_glbd2(start: bytes) -> bool:
    """Whether a file that begins with these bytes means to be GLB's binary table."""
    return start.startswith(_MAGIC)


def read_glbd2(content: bytes, *, source: str = "table") -> tuple[BinaryTable, ...]:
    """The tables of a binary file. ConfigError for what GLB's director refuses, and for rows that name no backend."""
    problems: list[Problem] = []
    n_tables = _check_header(content, problems)
    tables: list[BinaryTable] = []
    if not problems:
        for index in range(n_tables):
            start = _FILE_HEADER.size + index * TABLE_BYTES
            table = _read_table(content[start : start + TABLE_BYTES], f"table {index}", problems)
            if table is not None:
                tables.append(table)
    if problems:
        raise ConfigError(source, problems)
    return tuple(tables)


def _check_header(content: bytes, problems: list[Problem]) -> int:
    """The number of tables; 0 with a problem."""
    if len(content) < _FILE_HEADER.size:
        problems.append(
            Problem("header", f"the file has {len(content)} bytes; the header alone has {_FILE_HEADER.size}")
        )
        return 0
    magic, version, n_tables, n_rows, backend_slots, bind_slots = _FILE_HEADER.unpack_from(content)
    for name, value, wanted in (
        ("magic", magic, _MAGIC),
        ("version", version, _VERSION),
        ("rows per table", n_rows, N_ROWS),
        ("backend slots", backend_slots, SLOTS),
        ("bind slots", bind_slots, SLOTS),
    ):
        if value != wanted:
            problems.append(Problem("header", f"{name} is {value!r}; must be {wanted!r}"))
    if n_tables < 1:
        problems.append(Problem("header", "the file has no table; must have at least 1"))
    wanted_bytes = _FILE_HEADER.size + n_tables * TABLE_BYTES
    if len(content) != wanted_bytes:
        problems.append(Problem("", f"the file has {len(content)} bytes; {n_tables} tables have {wanted_bytes}"))
    return int(n_tables)


def _read_table(content: bytes, path: str, problems: list[Problem]) -> BinaryTable | None:
    """One table of TABLE_BYTES; None if there was a problem."""
    before = len(problems)
    (n_backends,) = _COUNT.unpack_from(content)
    binds_at = _COUNT.size + SLOTS * _BACKEND.size
    (n_binds,) = _COUNT.unpack_from(content, binds_at)
    for name, count in (("backends", n_backends), ("binds", n_binds)):
        if not 1 <= count <= SLOTS:
            problems.append(Problem(path, f"has {count} {name}; must have 1 to {SLOTS}"))
    if len(problems) > before:
        return None
    slots = _BACKEND.iter_unpack(content[_COUNT.size : _COUNT.size + n_backends * _BACKEND.size])
    backends = [_read_backend(slot, f"{path} backend {at}", problems) for at, slot in enumerate(slots)]
    binds_at += _COUNT.size
    bind_slots = _BIND.iter_unpack(content[binds_at : binds_at + n_binds * _BIND.size])
    binds = [_read_bind(slot, f"{path} bind {at}", problems) for at, slot in enumerate(bind_slots)]
    key_at = binds_at + SLOTS * _BIND.size
    rows_at = key_at + _HASH_KEY_BYTES
    words = array("I")
    words.frombytes(content[rows_at:])
    strays = sum(word >= n_backends for word in _little_endian(words))
    if strays:
        problems.append(Problem(f"{path} rows", f"{strays} entries name a backend beyond the {n_backends} listed"))
    if len(problems) > before:
        return None
    rows = Rows(N_ROWS, 2, 2, array("H", words))
    return BinaryTable(
        content[key_at:rows_at],
        tuple(bind for bind in binds if bind is not None),
        tuple(backend for backend in backends if backend is not None),
        rows,
    )


def _read_address(family: int, packed: bytes, path: str, problems: list[Problem]) -> Address | None:
    if family == 1:
        return ipaddress.IPv4Address(packed[:4])
    if family == 2:
        return ipaddress.IPv6Address(packed)
    problems.append(Problem(path, f"address family is {family}; must be 1 (IPv4) or 2 (IPv6)"))
    return None


def _read_backend(slot: tuple[int, bytes, int, int], path: str, problems: list[Problem]) -> BinaryBackend | None:
    family, packed, state, health = slot
    address = _read_address(family, packed, path, problems)
    if state not in _STATE_NAMES:
        problems.append(Problem(path, f"state is {state}; must be 0 to 2"))
    if health > 1:
        problems.append(Problem(path, f"health is {health}; must be 0 or 1"))
    if address is None or state not in _STATE_NAMES:
        return None
    return BinaryBackend(address, _STATE_NAMES[state], health == 1)


def _read_bind(slot: tuple[int, bytes, int, int, int, int], path: str, problems: list[Problem]) -> Bind | None:
    family, packed, prefix, first, last, proto = slot
    address = _read_address(family, packed, path, problems)
    if proto not in _PROTOCOLS:
        problems.append(Problem(path, f"protocol is {proto}; must be 6 or 17"))
    if address is None:
        return None
    if prefix > address.max_prefixlen:
        problems.append(Problem(path, f"prefix length is {prefix}; must be 0 to {address.max_prefixlen}"))
        return None
    network = ipaddress.ip_network((address, prefix), strict=False)
    return Bind(network, proto, first, last, written=None if address == network.network_address else address)
