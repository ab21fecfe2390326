"""Forwarding tables: the typed values, and how a document becomes them. Refused whole, naming every fault by its path.

Format: docs/protocol/table.md, "The JSON file". Read leniently, what GLB accepts with a defined result is a warning and
means what it means to GLB.
"""

from __future__ import annotations

import enum
import functools
import ipaddress
import itertools
from typing import Literal

import msgspec

from glb.errors import Problem
from glb.table.document import Format, decode
from glb.table.fields import Address, Fields, shown

RowRule = Literal["first_usable", "glb2"]
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

MAX_TABLES = 256
MAX_BACKENDS = 4096
MAX_BINDS = 1000
MAX_NAME_CHARACTERS = 64  # of a table or a zone
MAX_WEIGHT = 100
MIN_HOPS, MAX_HOPS = 2, 4
MIN_ROWS, MAX_ROWS = 1 << 8, 1 << 20
N_ROWS = 65536  # unless a table says otherwise
MAX_PORT = 0xFFFF
PROTOCOLS = {"tcp": 6, "udp": 17}
ROW_RULES: tuple[RowRule, ...] = ("first_usable", "glb2")


class State(enum.Enum):
    """What the operator wants of a backend; apart from its health."""

    inactive = "inactive"  # takes no part
    filling = "filling"  # takes new flows, and is new: others may still hold flows of its rows
    active = "active"
    draining = "draining"  # takes no new flows, still holds old ones


class Bind(msgspec.Struct, frozen=True):
    """Packets that a table is for: a prefix, a protocol and a range of destination ports."""

    network: Network
    proto: int  # 6 TCP, 17 UDP
    port_first: int  # host order
    port_last: int  # host order, inclusive
    written: Address | None = None  # the address in the file, where host bits were set; kept for GLB's binary file

    @property
    def address(self) -> Address:
        """The address as written in the file."""
        return self.network.network_address if self.written is None else self.written


class Healthchecks(msgspec.Struct, frozen=True):
    """What GLB's tables say about probing a backend; None: no such check."""

    http: int | None = None  # TCP port, host order
    http_uri: str | None = None
    tcp: int | None = None  # TCP port, host order
    gue: int | None = None  # UDP port, host order
    fou: int | None = None  # UDP port, host order


class Backend(msgspec.Struct, frozen=True):
    address: Address  # IPv6 only when read leniently
    state: State
    healthy: bool | None = None  # None: not health-checked; counts as healthy, but as unhealthy by the rule glb2
    weight: int = 1  # 0 to 100: its share of new flows, relative to the others'
    zone: str | None = None  # what fails together: a rack, a data centre
    healthchecks: Healthchecks | None = None


class Table(msgspec.Struct, frozen=True):
    name: str
    hash_key: bytes  # 16 bytes; hashes packets to rows
    seed: bytes  # 16 bytes; orders backends in rows
    binds: tuple[Bind, ...]
    backends: tuple[Backend, ...]
    hops: int = 2
    row_rule: RowRule = "first_usable"
    n_rows: int = N_ROWS  # a power of two


class TableSet(msgspec.Struct, frozen=True):
    tables: tuple[Table, ...]
    warnings: tuple[Problem, ...] = ()
    lenient: bool = False  # read leniently: what GLB has not is no error in its binary file


def parse_tables(text: str | bytes, *, source: str, format: Format = "json", lenient: bool = False) -> TableSet:
    """One document -> its tables. ConfigError holds every problem, each with its JSON path.

    lenient: what GLB accepts with a defined result (unknown keys, an address or a bind given twice, IPv6 backends,
    port 0, odd prefix text...) becomes a warning.
    """
    fields = Fields(source, lenient=lenient)
    result = read_tables(decode(text, source=source, format=format), fields)
    fields.finish()
    return result


def read_tables(document: object, fields: Fields) -> TableSet:
    """A decoded document -> its tables; worth something only if `fields` has no problems then."""
    root = fields.mapping(document, "$", ("tables",))
    tables: list[Table] = []
    if "tables" in root:
        for index, value in enumerate(fields.array(root["tables"], "$.tables", minimum=1, maximum=MAX_TABLES)):
            tables.append(_read_table(value, f"$.tables[{index}]", index, fields))
    _check_names(tables, fields)
    _check_binds(tables, fields)
    return TableSet(tuple(tables), tuple(fields.warnings), fields.lenient)


def _read_table(value: object, path: str, index: int, fields: Fields) -> Table:
    given = fields.mapping(value, path, ("hash_key", "seed", "binds", "backends"), ("name", "hops", "row_rule", "rows"))
    keys = {
        name: fields.key(given[name], f"{path}.{name}", 16) or bytes(16)
        for name in ("hash_key", "seed")
        if name in given
    }
    rule: RowRule = "first_usable"
    if "row_rule" in given and fields.word(given["row_rule"], f"{path}.row_rule", ROW_RULES) == "glb2":
        rule = "glb2"
    hops: int | None = MIN_HOPS
    if "hops" in given:
        hops = fields.integer(given["hops"], f"{path}.hops", MIN_HOPS, MAX_HOPS)
        if hops is not None and hops > 2 and rule == "glb2":
            fields.problem(f"{path}.hops", f"is {hops}; the row rule glb2 has always 2")
    n_rows = _read_n_rows(given["rows"], f"{path}.rows", rule, fields) if "rows" in given else N_ROWS
    binds: list[Bind | None] = []
    if "binds" in given:
        for at, bind in enumerate(fields.array(given["binds"], f"{path}.binds", minimum=1, maximum=MAX_BINDS)):
            binds.append(_read_bind(bind, f"{path}.binds[{at}]", fields))
    return Table(
        name=_read_name(given.get("name"), f"{path}.name", index, fields),
        hash_key=keys.get("hash_key", bytes(16)),
        seed=keys.get("seed", bytes(16)),
        binds=tuple(_PLACEHOLDER if bind is None else bind for bind in binds),
        backends=_read_backends(given["backends"], f"{path}.backends", rule, fields) if "backends" in given else (),
        hops=hops or MIN_HOPS,
        row_rule=rule,
        n_rows=n_rows,
    )


def _read_name(value: object, path: str, index: int, fields: Fields) -> str:
    default = f"table-{index}"
    if value is None or _is_name(value, path, f'called "{default}" instead', fields):
        return default if value is None else str(value)
    return default


def _is_name(value: object, path: str, otherwise: str, fields: Fields) -> bool:
    if isinstance(value, str) and value.isprintable() and 0 < len(value.strip()) == len(value) <= MAX_NAME_CHARACTERS:
        return True
    message = f"is {shown(value)}; must be 1 to {MAX_NAME_CHARACTERS} printable characters, no space at the ends"
    fields.tolerate(path, message, otherwise)
    return False


def _read_n_rows(value: object, path: str, rule: RowRule, fields: Fields) -> int:
    n_rows = fields.integer(value, path, MIN_ROWS, MAX_ROWS)
    if n_rows is None:
        return N_ROWS
    if n_rows & (n_rows - 1):
        fields.problem(path, f"is {n_rows}; must be a power of two, {MIN_ROWS} to {MAX_ROWS}")
    elif n_rows != N_ROWS and rule == "glb2":
        fields.problem(path, f"is {n_rows}; the row rule glb2 has always {N_ROWS}")
    return n_rows


# ---- backends


def _read_backends(value: object, path: str, rule: RowRule, fields: Fields) -> tuple[Backend, ...]:
    result: list[Backend] = []
    first_at: dict[Address, int] = {}
    for at, entry in enumerate(fields.array(value, path, minimum=1, maximum=MAX_BACKENDS)):
        backend = _read_backend(entry, f"{path}[{at}]", rule, fields)
        if backend is None:
            continue
        if backend.address in first_at:
            message = f"{backend.address} is {path}[{first_at[backend.address]}] already"
            fields.tolerate(f"{path}[{at}].ip", message, "rows where both are hops have no second chance")
        first_at.setdefault(backend.address, at)
        result.append(backend)
    if result and all(backend.state is State.inactive for backend in result):
        fields.problem(path, "every backend is inactive; at least one must be filling, active or draining")
    if result and all(backend.weight == 0 for backend in result):
        fields.problem(path, f"every backend has weight 0; at least one must have 1 to {MAX_WEIGHT}")
    without = sum(backend.zone is None for backend in result)
    if 0 < without < len(result):
        fields.warn(path, f"{without} of {len(result)} have no zone; none of those is ever the hop in another zone")
    return tuple(result)


def _read_backend(value: object, path: str, rule: RowRule, fields: Fields) -> Backend | None:
    given = fields.mapping(value, path, ("ip", "state"), ("healthy", "healthchecks", "weight", "zone"))
    address = _read_backend_address(given["ip"], f"{path}.ip", fields) if "ip" in given else None
    state = fields.word(given["state"], f"{path}.state", list(State.__members__)) if "state" in given else None
    healthy = None
    if "healthy" in given:
        healthy = given["healthy"] is True
        if not isinstance(given["healthy"], bool):
            message = f"is {shown(given['healthy'])}; must be true or false"
            fields.tolerate(f"{path}.healthy", message, "taken as false")
    checks = None
    if "healthchecks" in given:
        checks = _read_healthchecks(given["healthchecks"], f"{path}.healthchecks", fields)
    if address is None or state is None:
        return None
    weight, zone = _read_weight(given, path, rule, fields), _read_zone(given, path, rule, fields)
    return Backend(address, State(state), healthy, weight, zone, checks)


def _read_weight(given: dict[str, object], path: str, rule: RowRule, fields: Fields) -> int:
    value = given.get("weight", 1)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MAX_WEIGHT:
        message = f"is {shown(value)}; must be an integer from 0 to {MAX_WEIGHT}"
    elif value != 1 and rule == "glb2":
        message = f"is {value}; the row rule glb2 has no weights"
    else:
        return value
    fields.tolerate(f"{path}.weight", message, "ignored")
    return 1


def _read_zone(given: dict[str, object], path: str, rule: RowRule, fields: Fields) -> str | None:
    if "zone" not in given or not _is_name(given["zone"], f"{path}.zone", "ignored", fields):
        return None
    if rule == "glb2":
        fields.tolerate(f"{path}.zone", "is given; the row rule glb2 has no zones", "ignored")
        return None
    return str(given["zone"])


def _read_backend_address(value: object, path: str, fields: Fields) -> Address | None:
    address = fields.address(value, path)
    if address is None:
        return None
    if address.version == 6:
        fields.tolerate(path, f"is {address}; must be IPv4 (the outer header is IPv4)", "no packet can be sent to it")
    elif address.is_unspecified or address.is_multicast or address == ipaddress.IPv4Address(0xFFFFFFFF):
        fields.tolerate(path, f"is {address}; must be the address of one host", "no packet can be sent to it")
    return address


def _read_healthchecks(value: object, path: str, fields: Fields) -> Healthchecks:
    ports = ("http", "tcp", "gue", "fou")
    given = fields.mapping(value, path, (), (*ports, "http_uri"))
    uri = fields.text(given["http_uri"], f"{path}.http_uri") if "http_uri" in given else None
    if uri is not None and not uri.startswith("/"):
        fields.tolerate(f"{path}.http_uri", f"is {shown(uri)}; must begin with /", "kept as written")
    found = {key: fields.integer(given[key], f"{path}.{key}", 1, MAX_PORT) for key in ports if key in given}
    return Healthchecks(http_uri=uri, **found)


# ---- binds

_PLACEHOLDER = Bind(ipaddress.IPv4Network("0.0.0.0/32"), 0, 0, 0)  # where a bind was refused; never published


def _read_bind(value: object, path: str, fields: Fields) -> Bind | None:
    given = fields.mapping(value, path, ("ip", "proto"), ("port", "port_start", "port_end"))
    prefix = _read_prefix(given["ip"], f"{path}.ip", fields) if "ip" in given else None
    proto = fields.word(given["proto"], f"{path}.proto", list(PROTOCOLS)) if "proto" in given else None
    ports = _read_ports(given, path, fields)
    if prefix is None or proto is None or ports is None:
        return None
    address, bits = prefix
    network = ipaddress.ip_network((address, bits), strict=False)
    written = None if address == network.network_address else address
    return Bind(network, PROTOCOLS[proto], *ports, written=written)


def _read_prefix(value: object, path: str, fields: Fields) -> tuple[Address, int] | None:
    """``A`` or ``A/bits`` -> the address as written and the prefix length."""
    text = fields.text(value, path)
    if text is None:
        return None
    if "%" in text:
        fields.problem(path, f"is {shown(text)}; an address with a zone cannot be bound")
        return None
    head, slash, tail = text.partition("/")
    address = fields.plain_address(head, path)
    if address is None:
        return None
    longest = address.max_prefixlen
    if not slash:
        return address, longest
    bits = _leading_integer(tail)
    if not (tail.isascii() and tail.isdigit() and str(bits) == tail):
        message = f"has the prefix length {shown(tail)}; must be 0 to {longest} in decimal, without leading zeros"
        fields.tolerate(path, message, f"taken as /{bits}")
        if not fields.lenient:
            return None
    if not 0 <= bits <= longest:
        fields.problem(path, f"has the prefix length {bits}; must be 0 to {longest}")
        return None
    if (network := ipaddress.ip_network((address, bits), strict=False)).network_address != address:
        fields.warn(path, f"{text} has host bits set; it is {network}")
    return address, bits


def _leading_integer(text: str) -> int:
    """The integer that C's atoi reads."""
    text = text.lstrip(" \t\n\v\f\r")
    digits = len(text) - len(text.lstrip("+-"))
    if digits > 1:
        return 0
    end = digits
    while end < len(text) and text[end] in "0123456789":
        end += 1
    value = int(text[digits:end].lstrip("0")[:6] or "0")  # six digits are too long a prefix already
    return -value if text.startswith("-") else value


def _read_ports(given: dict[str, object], path: str, fields: Fields) -> tuple[int, int] | None:
    """`port`, or `port_start` with `port_end` -> first and last port."""
    range_keys = [key for key in ("port_start", "port_end") if key in given]
    read = functools.partial(_read_port, given, path, fields)
    if "port" in given:
        if range_keys:
            message = f"is given together with {' and '.join(range_keys)}; must be one or the other"
            fields.tolerate(f"{path}.port", message, "port counts")
        port = read("port", 1)
        return None if port is None else (port, port)
    if not range_keys:
        fields.tolerate(f"{path}.port", "is missing (or port_start and port_end)", "port 0 is meant")
        return 0, 0
    if len(range_keys) == 1:
        missing = "port_end" if range_keys == ["port_start"] else "port_start"
        fields.tolerate(f"{path}.{missing}", f"is missing beside {range_keys[0]}", "port 0 is meant")
    first, last = read("port_start", 0), read("port_end", 0)
    if first is None or last is None:
        return None
    if last < first and len(range_keys) == 2:
        fields.tolerate(f"{path}.port_end", f"is {last}, below port_start {first}", "no packet matches")
    return first, last


def _read_port(given: dict[str, object], path: str, fields: Fields, key: str, minimum: int) -> int | None:
    value = given.get(key, 0)
    if key not in given:
        return 0
    if fields.lenient and (not isinstance(value, int) or isinstance(value, bool)):
        fields.warn(f"{path}.{key}", f"is {shown(value)}, no integer; port 0 is meant")
        return 0
    if fields.lenient and value == 0 and minimum > 0:
        fields.warn(f"{path}.{key}", "is 0; only packets to port 0 match")
        return 0
    if value == 0 and minimum > 0 and not isinstance(value, bool):
        fields.problem(f"{path}.{key}", 'is 0; all ports are written as "port_start": 0, "port_end": 65535')
        return None
    return fields.integer(value, f"{path}.{key}", minimum, MAX_PORT)


# ---- across tables


def _check_names(tables: list[Table], fields: Fields) -> None:
    first_at: dict[str, int] = {}
    for index, table in enumerate(tables):
        if table.name in first_at:
            fields.problem(f"$.tables[{index}].name", f'"{table.name}" is $.tables[{first_at[table.name]}] already')
        first_at.setdefault(table.name, index)


def _check_binds(tables: list[Table], fields: Fields) -> None:
    """Refuse binds whose precedence is open: of equal prefix, protocol and range width, overlapping, in any tables.

    (The longest prefix wins, then the narrower port range; binds equal in both would both win where they overlap.)
    """
    groups: dict[tuple[Network, int, int], list[tuple[int, str]]] = {}
    for index, table in enumerate(tables):
        for at, bind in enumerate(table.binds):
            if bind is not _PLACEHOLDER and bind.port_first <= bind.port_last:
                group = (bind.network, bind.proto, bind.port_last - bind.port_first)
                groups.setdefault(group, []).append((bind.port_first, f"$.tables[{index}].binds[{at}]"))
    for (network, _, width), members in groups.items():
        members.sort(key=lambda member: member[0])  # stable: the first in the file comes first
        for (first, path), (other_first, other_path) in itertools.pairwise(members):
            if other_first <= first + width:
                ports = str(other_first) if width == 0 else f"{other_first}-{first + width}"
                what = f"{network} port {ports} is bound at {path} already, with an equal prefix and port range width"
                fields.tolerate(other_path, what, "which of them wins is not defined by GLB")
