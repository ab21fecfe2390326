"""Our own vectors (tests/vectors/own, written by make_own.py) as Forwardings and frames."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from ipaddress import IPv4Address
from typing import Any

import make_own

from glb._fastpath import Forwarding
from glb.director.config import HASH_FIELDS, Config
from glb.director.forwarding import compile_forwarding
from glb.table.config import parse_tables
from glb.table.rows import RowBuilder

FILES = sorted(make_own.HASHED)


@functools.cache
def vectors(file: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (make_own.OWN / f"{file}.jsonl").read_text().splitlines()]


def mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


@functools.cache
def forwarding(file: str, memory: Callable[..., Any] | None = None) -> Forwarding:
    """What a file's frames are forwarded by."""
    tables = parse_tables(json.dumps(make_own.TABLES), source="own")
    published = compile_forwarding(
        tables,
        RowBuilder().build_all(tables),
        Config(hash_fields=sum(HASH_FIELDS[name] for name in make_own.HASHED[file])),
        source_ip=IPv4Address(make_own.SOURCE),
        source_mac=mac(make_own.SOURCE_MAC),
        memory=memory,
    )
    for address in published.backends():
        next_hop = mac(make_own.GATEWAY_MAC)
        published.forwarding.set_next_hop(address.packed, next_hop, make_own.MTU_BYTES)
    return published.forwarding
