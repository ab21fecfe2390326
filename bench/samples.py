"""The tables and frames that are measured with: random, but the same in every run."""

from __future__ import annotations

import ipaddress
import json
import random
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from glb.director.config import Config
from glb.director.forwarding import Published, compile_forwarding
from glb.table.config import Table, TableSet, parse_tables
from glb.table.rows import RowBuilder
from glb.wire.checksum import internet_checksum

HASH_KEY = bytes.fromhex("7d3a34c59e1bb856c3d13fde9020837a")
SEED = bytes.fromhex("5c8e961afcab1024f5540161ef51bc86")
VIP4 = ipaddress.IPv4Address("203.0.113.10")
VIP6 = ipaddress.IPv6Address("2001:db8::10")
CLIENT6 = ipaddress.IPv6Address("2001:db8:c::")
PORT = 443
DIRECTOR_MAC = bytes.fromhex("020000000001")
CLIENT_MAC = bytes.fromhex("020000000002")
GATEWAY_MAC = bytes.fromhex("020000000003")
DIRECTOR_IP = ipaddress.IPv4Address("10.0.0.1")
PATH_MTU_BYTES = 9000


def document(n_backends: int) -> str:
    """A forwarding table: one table with an IPv4 and an IPv6 VIP, as JSON."""
    first = int(ipaddress.IPv4Address("10.1.0.1"))
    backends = [
        {"ip": str(ipaddress.IPv4Address(first + i)), "state": "active", "healthy": True} for i in range(n_backends)
    ]
    binds = [{"ip": str(vip), "proto": "tcp", "port": PORT} for vip in (VIP4, VIP6)]
    table = {"name": "web", "hash_key": HASH_KEY.hex(), "seed": SEED.hex(), "binds": binds, "backends": backends}
    return json.dumps({"tables": [table]})


def table_set(n_backends: int) -> TableSet:
    return parse_tables(document(n_backends), source="bench")


def table(n_backends: int) -> Table:
    return table_set(n_backends).tables[0]


@cache
def published(n_backends: int) -> Published:
    """The table of `document` as a director forwards by it, every next hop known."""
    return publish(table_set(n_backends))


def publish(tables: TableSet) -> Published:
    """Tables as a director forwards by them, every next hop known."""
    rows = RowBuilder().build_all(tables)
    compiled = compile_forwarding(tables, rows, Config(), source_ip=DIRECTOR_IP, source_mac=DIRECTOR_MAC)
    for address in compiled.backends():
        compiled.forwarding.set_next_hop(address.packed, GATEWAY_MAC, PATH_MTU_BYTES)
    return compiled


def ipv4_frame(frame_bytes: int, source: int, source_port: int, vip: bytes = VIP4.packed) -> bytes:
    """A TCP segment to an IPv4 VIP; its IP checksum is right, its TCP checksum 0."""
    header = struct.pack("!BBHHHBBHL4s", 0x45, 0, frame_bytes - 14, 0, 0x4000, 64, 6, 0, source, vip)
    header = header[:10] + internet_checksum(header).to_bytes(2, "big") + header[12:]
    frame = DIRECTOR_MAC + CLIENT_MAC + b"\x08\x00" + header + _tcp(source_port)
    return frame.ljust(frame_bytes, b"\0")


def ipv6_frame(frame_bytes: int, source: int, source_port: int, vip: bytes = VIP6.packed) -> bytes:
    """A TCP segment to an IPv6 VIP; its TCP checksum is 0."""
    header = struct.pack("!LHBB", 0x60000000, frame_bytes - 14 - 40, 6, 64)
    addresses = source.to_bytes(16, "big") + vip
    return (DIRECTOR_MAC + CLIENT_MAC + b"\x86\xdd" + header + addresses + _tcp(source_port)).ljust(frame_bytes, b"\0")


def _tcp(source_port: int) -> bytes:
    return struct.pack("!HHLLBBHHH", source_port, PORT, 1, 1, 0x50, 0x10, 0xFFFF, 0, 0)


def flows(family: int, frame_bytes: int, count: int) -> list[bytes]:
    """`count` frames of as many clients; the same ones in every run."""
    chance = random.Random(count)
    if family == 4:
        return [ipv4_frame(frame_bytes, chance.getrandbits(32), chance.randrange(1024, 65536)) for _ in range(count)]
    prefix = int(CLIENT6)
    return [
        ipv6_frame(frame_bytes, prefix | chance.getrandbits(64), chance.randrange(1024, 65536)) for _ in range(count)
    ]


@dataclass(frozen=True)
class Fleet:
    """A director's tables with many binds: `vips` addresses in all per family, by turns in the tables."""

    n_backends: int  # of each table
    vips: int = 252
    tables: int = 1
    cidrs: int = 0  # how many of the addresses are bound by a /28 or /124 instead
    range_ports: int = 1000  # width of the port range that every other address has besides PORT; 0: none has
    families: tuple[int, ...] = (4, 6)

    def vip(self, family: int, i: int) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
        # 16 apart, so that a /28 holds one of them; not in order, as addresses in use are not either.
        place = i * 16 + 5
        return ipaddress.IPv4Address("198.18.0.0") + place if family == 4 else VIP6 + (place << 16)

    def vips_of(self, family: int) -> list[bytes]:
        return [self.vip(family, i).packed for i in range(self.vips)]

    def document(self) -> str:
        tables = []
        for t in range(self.tables):
            table = json.loads(document(self.n_backends))["tables"][0]
            table |= {"name": f"web{t}", "hash_key": (int.from_bytes(HASH_KEY, "big") + t).to_bytes(16, "big").hex()}
            table["binds"] = [bind for i in range(t, self.vips, self.tables) for bind in self._binds(i)]
            tables.append(table)
        return json.dumps({"tables": tables})

    def _binds(self, i: int) -> Iterator[dict[str, Any]]:
        for family in self.families:
            vip, bits = self.vip(family, i), {4: 28, 6: 124}[family]
            where = str(ipaddress.ip_network((vip, bits), strict=False)) if i < self.cidrs else str(vip)
            yield {"ip": where, "proto": "tcp", "port": PORT}
            if self.range_ports and i % 2:
                yield {"ip": where, "proto": "tcp", "port_start": 8000, "port_end": 7999 + self.range_ports}
