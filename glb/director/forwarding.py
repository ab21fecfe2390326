"""Tables and configuration -> the Forwarding that a datapath reads, and what is said of it (digests)."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import TYPE_CHECKING

from glb._fastpath import Forwarding
from glb.director.config import Config
from glb.errors import TableError
from glb.table.binds import compile_binds
from glb.table.config import Table, TableSet
from glb.table.digest import forwarded_digest
from glb.table.rows import Rows

if TYPE_CHECKING:
    from glb._fastpath import Memory


@dataclass(frozen=True, slots=True)
class Published:
    """One generation: the tables as they were read, and the form they are forwarded by."""

    tables: TableSet
    rows: tuple[Rows, ...]
    forwarding: Forwarding
    version: str | None = None  # the store's, of what was read

    def digests(self) -> list[str]:
        """Per table, the digest of the rows read back from the datapath, not of those that were computed."""
        return [
            forwarded_digest(
                table.hash_key,
                table.binds,
                array("H", self.forwarding.table_rows(i)),
                self.rows[i].stride,
                [backend.address for backend in table.backends],
            )
            for i, table in enumerate(self.tables.tables)
        ]

    def backends(self) -> list[IPv4Address]:
        """Every backend address once, in the tables' order."""
        return list(dict.fromkeys(ipv4(b.address) for table in self.tables.tables for b in table.backends))


def ipv4(address: object) -> IPv4Address:
    """The address as IPv4; TableError for anything else: the tunnel's outer header is IPv4."""
    if not isinstance(address, IPv4Address):
        raise TableError(f"backend {address}: only IPv4 backends can be forwarded to")
    return address


def compile_forwarding(
    tables: TableSet,
    rows: Sequence[Rows],
    config: Config,
    *,
    version: str | None = None,
    source_ip: IPv4Address,
    source_mac: bytes | None,
    answers_per_s: int | None = None,
    memory: Callable[..., Memory] | None = None,
    bank: int = 0,
) -> Published:
    """Everything the packet path needs, in one object. Raises TableError.

    `answers_per_s`: to packets that are too big, of each worker; None: all. `memory`: gives memory that the kernel
    reads too (glb._bpf.SharedArrays); `bank`: which half of the kernel's slots the new generation takes.
    """
    plans = [_table_plan(table, rows[i]) for i, table in enumerate(tables.tables)]
    prefixes = compile_binds([table.binds for table in tables.tables])
    forwarding = Forwarding(
        plans,
        prefixes,
        source_ip=source_ip.packed,
        hash_fields=config.hash_fields,
        alt_hash_fields=config.alt_hash_fields,
        forward_echo=config.forward_icmp_ping_responses,
        source_mac=source_mac,
        answers_per_s=answers_per_s,
        memory=memory,
        bank=bank,
    )
    return Published(tables, tuple(rows), forwarding, version)


def _table_plan(table: Table, rows: Rows) -> tuple[str, bytes, array[int], int, list[bytes], bool]:
    addresses = [ipv4(backend.address).packed for backend in table.backends]
    return table.name, table.hash_key, rows.indexes, rows.stride, addresses, table.row_rule == "glb2"
