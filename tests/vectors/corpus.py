"""The reference vectors (tests/vectors/reference/README.md) as Forwardings and frames."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glb._fastpath import Forwarding
from glb.director.config import parse_config
from glb.director.forwarding import compile_forwarding
from glb.table.config import parse_tables
from glb.table.rows import RowBuilder

REFERENCE = Path(__file__).parent / "reference"
# Outer bytes that the two paths of the reference fill in differently: Ethernet source, UDP checksum (SPEC: frame sent).
_ETHERNET_SOURCE = slice(6, 12)
_UDP_CHECKSUM = slice(40, 42)


def json_lines(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (REFERENCE / name).read_text().splitlines()]


@functools.cache
def packets() -> list[dict[str, Any]]:
    return json_lines("packets.jsonl")


@functools.cache
def tables() -> dict[str, dict[str, Any]]:
    return {record["name"]: record for record in json_lines("tables.jsonl")}


@dataclass(frozen=True)
class Outcome:
    """What one implementation made of a frame: `outer` is the new front in hex, less what the paths differ in."""

    verdict: str
    outer: str | None


def comparable(outer: bytes | None) -> str | None:
    if outer is None:
        return None
    front = bytearray(outer)
    front[_ETHERNET_SOURCE] = bytes(6)
    front[_UDP_CHECKSUM] = bytes(2)
    return front.hex()


def reference_outcome(record: dict[str, Any], path: str) -> Outcome:
    """What the reference did: its `xdp` or `dpdk` path."""
    result = record[path]
    verdict = {"tx": "forward", "encap": "forward", "pass": "host", "kernel": "host", "drop": "drop"}[result["action"]]
    return Outcome(verdict, comparable(bytes.fromhex(result["outer"])) if "outer" in result else None)


@functools.cache
def forwarding(
    env: str,
    row_rule: str = "glb2",
    memory: Callable[..., Any] | None = None,
    source_mac: bytes | None = None,
    hops: int | None = None,
    mtu_bytes: int = 0xFFFF,
    egress: tuple[int, bytes, bool] | None = None,
) -> Forwarding:
    """An environment of envs.json, ready to forward; next hops are the configured gateway's.

    `egress`: what is sent to backends of odd addresses leaves by it.
    """
    names = json.loads((REFERENCE / "envs.json").read_text())[env]
    director = json.loads((REFERENCE / "directors.json").read_text())[names["director"]]
    document = json.loads(json.dumps(tables()[names["table"]]["config"]))
    for table in document["tables"]:
        table["row_rule"] = row_rule
        if hops is not None:
            table["hops"] = hops
    config = parse_config(json.dumps(director), source=names["director"], format="json")
    table_set = parse_tables(json.dumps(document), source=names["table"])
    assert config.outbound_src_ip is not None
    published = compile_forwarding(
        table_set,
        RowBuilder().build_all(table_set),
        config,
        source_ip=config.outbound_src_ip,
        source_mac=source_mac,
        memory=memory,
    )
    for address in published.backends():
        published.forwarding.set_next_hop(
            address.packed, config.outbound_gateway_mac, mtu_bytes, egress if address.packed[3] % 2 else None
        )
    return published.forwarding


def run(env: str, frames: list[bytes], row_rule: str = "glb2") -> list[tuple[str, bytes | None]]:
    """(verdict, frame sent) per frame, by the Cython path."""
    plan = forwarding(env, row_rule)
    return plan.encapsulate(frames, plan.new_counters())


def link_bytes(frame: bytes) -> int:
    """Bytes before the IP header: Ethernet and its VLAN tags."""
    at = 12
    while frame[at : at + 2] in (b"\x81\x00", b"\x88\xa8"):
        at += 4
    return at + 2


def our_outcome(record: dict[str, Any]) -> Outcome:
    frame = bytes.fromhex(record["frame"])
    ((verdict, sent),) = run(record["env"], [frame])
    if sent is None:
        return Outcome(verdict, None)
    link = link_bytes(frame)
    front = len(sent) - (len(frame) - link)
    assert sent[front:] == frame[link:], "the received frame from its IP header on follows unchanged"
    return Outcome(verdict, comparable(sent[:front]))
