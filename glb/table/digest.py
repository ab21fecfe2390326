"""One hash of what is forwarded by: equal on two machines if, and only if, they forward alike.

Format: docs/protocol/table.md, "Digest". Names, seeds, states and the order of anything in the file do not enter it.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Sequence

from glb.table.config import Bind, Table
from glb.table.fields import Address
from glb.table.rows import NO_BACKEND, Rows

_MAGIC = b"glb-table-digest-1\n"
_NO_HOP = bytes(16)
_ROWS_AT_ONCE = 65536  # 1 MiB of addresses


def table_digest(table: Table, rows: Rows) -> str:
    """The digest of a table with its rows, as 64 hex digits."""
    addresses = [backend.address for backend in table.backends]
    return forwarded_digest(table.hash_key, table.binds, rows.indexes, rows.stride, addresses)


def forwarded_digest(
    hash_key: bytes, binds: Iterable[Bind], indexes: array[int], stride: int, addresses: Sequence[Address]
) -> str:
    """The digest of what a datapath holds.

    indexes: `stride` uint16 backend indexes per row, unused ones NO_BACKEND; addresses: by that index.
    """
    normal_binds = sorted({_bind_bytes(bind) for bind in binds})
    digest = hashlib.sha256(_MAGIC + hash_key)
    digest.update(len(normal_binds).to_bytes(4, "big") + b"".join(normal_binds))
    hops = [_mapped(address) for address in addresses]
    hops += [_NO_HOP] * (NO_BACKEND + 1 - len(hops))
    n_rows, n_columns = len(indexes) // stride, stride
    # How many entries a row has room for is the datapath's own affair.
    while n_columns and indexes[n_columns - 1 :: stride].count(NO_BACKEND) == n_rows:
        n_columns -= 1
    digest.update(n_rows.to_bytes(4, "big") + bytes([n_columns]))
    for column in range(n_columns):
        for start in range(0, n_rows, _ROWS_AT_ONCE):
            part = indexes[start * stride + column : (start + _ROWS_AT_ONCE) * stride : stride]
            digest.update(b"".join(map(hops.__getitem__, part)))
    return digest.hexdigest()


def _mapped(address: Address) -> bytes:
    """16 bytes; IPv4 as ::ffff:a.b.c.d (RFC 4291, 2.5.5.2)."""
    return address.packed if address.version == 6 else bytes(10) + b"\xff\xff" + address.packed


def _bind_bytes(bind: Bind) -> bytes:
    """25 bytes: family, 16 address bytes with the host bits cleared, prefix length, protocol, first and last port."""
    address = bind.network.network_address.packed.ljust(16, b"\0")
    ports = bind.port_first.to_bytes(2, "big") + bind.port_last.to_bytes(2, "big")
    return bytes([bind.network.version]) + address + bytes([bind.network.prefixlen, bind.proto]) + ports
