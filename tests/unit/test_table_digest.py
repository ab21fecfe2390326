"""The digest: equal for equal forwarding, different for anything else; and exactly what docs/protocol/table.md says."""

from __future__ import annotations

import hashlib
import ipaddress
from array import array

import msgspec
import pytest

from glb.table.config import Bind, Table
from glb.table.digest import forwarded_digest, table_digest
from glb.table.rows import N_ROWS, NO_BACKEND, build_rows

from .table_samples import backend, table

_BASE = table(["active+", "active+", "draining+", "active+"])


def _digest(entry: Table) -> str:
    return table_digest(entry, build_rows(entry))


def _bind(network: str, proto: int = 6, first: int = 80, last: int = 80) -> Bind:
    return Bind(ipaddress.ip_network(network), proto, first, last)


def test_format_is_the_documented_one() -> None:
    entry = msgspec.structs.replace(_BASE, binds=(_bind("2001:db8::/32", 17, 1, 9), _bind("192.0.2.0/24")))
    rows = build_rows(entry)
    expected = b"glb-table-digest-1\n" + entry.hash_key + bytes([0, 0, 0, 2])
    expected += b"\x04\xc0\x00\x02\x00" + bytes(12) + b"\x18\x06\x00\x50\x00\x50"
    expected += b"\x06" + ipaddress.ip_address("2001:db8::").packed + b"\x20\x11\x00\x01\x00\x09"
    expected += bytes([0, 1, 0, 0]) + b"\x02"
    mapped = [bytes(10) + b"\xff\xff" + backend.address.packed for backend in entry.backends]
    expected += b"".join(mapped[rows.row(row)[column]] for column in range(2) for row in range(N_ROWS))
    assert table_digest(entry, rows) == hashlib.sha256(expected).hexdigest()


def test_order_of_lists_names_and_seeds_do_not_matter() -> None:
    binds = (_bind("192.0.2.1/32"), _bind("192.0.2.2/32"))
    entry = msgspec.structs.replace(_BASE, binds=binds)
    turned = msgspec.structs.replace(entry, backends=entry.backends[::-1], binds=binds[::-1], name="other")
    assert _digest(turned) == _digest(entry)


def test_host_bits_of_a_bind_do_not_matter() -> None:
    written = msgspec.structs.replace(_BASE.binds[0], written=ipaddress.IPv4Address("203.0.113.10"))
    assert _digest(msgspec.structs.replace(_BASE, binds=(written,))) == _digest(_BASE)


def test_a_state_that_changes_no_row_does_not_matter() -> None:
    assert _digest(table(["filling+"] * 3)) == _digest(table(["active"] * 3))


def test_an_inactive_backend_does_not_matter() -> None:
    assert _digest(table(["active+", "active+", "inactive"])) == _digest(table(["active+", "active+"]))


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param(msgspec.structs.replace(_BASE, hash_key=bytes(16)), id="hash-key"),
        pytest.param(msgspec.structs.replace(_BASE, seed=bytes(16)), id="seed-moves-rows"),
        pytest.param(msgspec.structs.replace(_BASE, hops=3), id="hops"),
        pytest.param(msgspec.structs.replace(_BASE, binds=(_bind("203.0.113.10/31"),)), id="prefix-length"),
        pytest.param(msgspec.structs.replace(_BASE, binds=(_bind("203.0.113.10/32", 17),)), id="protocol"),
        pytest.param(msgspec.structs.replace(_BASE, binds=(_bind("203.0.113.10/32", 6, 80, 81),)), id="last-port"),
        pytest.param(msgspec.structs.replace(_BASE, binds=(*_BASE.binds, _bind("203.0.113.9/32"))), id="bind-added"),
        pytest.param(table(["active+", "draining+", "draining+", "active+"]), id="state"),
        pytest.param(msgspec.structs.replace(_BASE, backends=(*_BASE.backends, backend(9, "active+"))), id="backend"),
    ],
)
def test_whatever_is_forwarded_by_matters(changed: Table) -> None:
    assert _digest(changed) != _digest(_BASE)


def test_read_back_from_a_datapath_it_is_the_same() -> None:
    """Other index numbers, and more room per row than is used."""
    rows = build_rows(_BASE)
    addresses = [entry.address for entry in _BASE.backends]
    renumbered = array("H", [NO_BACKEND]) * (4 * N_ROWS)
    for column in range(2):
        renumbered[column::4] = array("H", [3 - index for index in rows.indexes[column::2]])
    assert forwarded_digest(_BASE.hash_key, _BASE.binds, renumbered, 4, addresses[::-1]) == table_digest(_BASE, rows)


def test_one_changed_row_is_seen() -> None:
    rows = build_rows(_BASE)
    indexes = rows.indexes[:]
    indexes[2 * 777], indexes[2 * 777 + 1] = indexes[2 * 777 + 1], indexes[2 * 777]
    addresses = [entry.address for entry in _BASE.backends]
    assert forwarded_digest(_BASE.hash_key, _BASE.binds, indexes, 2, addresses) != table_digest(_BASE, rows)
