"""Explanations, against the reference's recorded packets and by example."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from glb.table.config import Bind, TableSet, parse_tables
from glb.table.explain import Flow, explain_flow, find_bind
from glb.table.rows import N_ROWS, RowBuilder, build_rows

from .table_samples import DOCUMENTED, table

_REFERENCE = Path(__file__).parents[1] / "vectors" / "reference"


def _load(name: str) -> Any:
    return json.loads((_REFERENCE / name).read_text())


def _tables() -> dict[str, TableSet]:
    records = [json.loads(line) for line in (_REFERENCE / "tables.jsonl").read_text().splitlines()]
    result = {}
    for record in records:
        if record["name"].startswith("packets-"):
            tables = parse_tables(json.dumps(record["config"]), source=record["name"])
            glb2 = tuple(msgspec.structs.replace(entry, row_rule="glb2") for entry in tables.tables)
            result[record["name"]] = TableSet(glb2)
    return result


def _flow(frame: bytes) -> Flow:
    """The flow of a TCP or UDP frame without IPv4 options or IPv6 extension headers."""
    if frame[12:14] == b"\x08\x00":
        addresses, proto, ports = (frame[26:30], frame[30:34]), frame[23], frame[34:38]
    else:
        addresses, proto, ports = (frame[22:38], frame[38:54]), frame[20], frame[54:58]
    source, destination = map(ipaddress.ip_address, addresses)
    return Flow(source, destination, proto, int.from_bytes(ports[:2], "big"), int.from_bytes(ports[2:], "big"))


def _recorded_packets() -> Iterator[dict[str, Any]]:
    for line in (_REFERENCE / "packets.jsonl").read_text().splitlines():
        record = json.loads(line)
        if record["group"] in ("tcp", "udp", "same_client", "values") and record["dpdk"]["action"] == "encap":
            yield record


def test_hash_row_hops_ports_and_header_equal_every_recorded_packet() -> None:
    envs, directors, tables = _load("envs.json"), _load("directors.json"), _tables()
    builder = RowBuilder()
    seen = 0
    for record in _recorded_packets():
        env = envs[record["env"]]
        director = directors[env["director"]]

        def fields(key: str, director: dict[str, Any] = director) -> tuple[str, ...]:
            return tuple(name for name, chosen in director.get(key, {}).items() if chosen)

        found = explain_flow(
            tables[env["table"]],
            _flow(bytes.fromhex(record["frame"])),
            hash_fields=fields("hash_fields") or ("src_addr",),
            alt_hash_fields=fields("alt_hash_fields"),
            builder=builder,
        )
        assert found is not None, record["id"]
        outer = bytes.fromhex(record["dpdk"]["outer"])
        assert (f"{found.choice.hash:016x}", found.choice.row) == (record["dpdk"]["hash"], record["dpdk"]["row"])
        assert found.table is tables[env["table"]].tables[record["dpdk"]["table"]]
        assert found.hops[0].address.packed == outer[30:34]
        assert found.source_port == int.from_bytes(outer[34:36], "big")
        assert found.gue_header == outer[42:]
        seen += 1
    assert seen > 200


_FLOW = Flow(ipaddress.ip_address("198.51.100.7"), ipaddress.ip_address("203.0.113.10"), 6, 40000, 80)


def test_hops_are_those_of_the_row() -> None:
    entry = table(["draining+", "active-", "active+", "active+"], hops=3)
    found = explain_flow(TableSet((entry,)), _FLOW)
    assert found is not None
    expected = [entry.backends[index].address for index in build_rows(entry).row(found.choice.row)]
    assert [hop.address for hop in found.hops] == expected


def test_reasons_name_what_stands_before_the_primary() -> None:
    entry = table(["draining+", "active-", "active+"], hops=3)
    reasons: dict[str, set[str]] = {}
    builder = RowBuilder()
    for last in range(200):
        source = ipaddress.ip_address(f"198.51.100.{last}")
        found = explain_flow(TableSet((entry,)), _from(_FLOW, source), builder=builder)
        assert found is not None
        for hop in found.hops:
            reasons.setdefault(str(hop.address), set()).add(hop.reason.split(": ")[-1].split(",")[0])
    assert "still holds older flows of this row" in reasons["10.0.0.1"]
    assert "a second chance" in reasons["10.0.0.2"]
    assert reasons["10.0.0.3"] == {"the first usable"}


def _from(flow: Flow, source: ipaddress.IPv4Address | ipaddress.IPv6Address) -> Flow:
    return Flow(source, flow.destination, flow.proto, flow.source_port, flow.destination_port)


def test_fail_open_is_said() -> None:
    found = explain_flow(TableSet((table(["active-", "active-"]),)), _FLOW)
    assert found is not None
    assert "fail open" in found.hops[0].reason


def test_the_hop_in_another_zone_and_weight_0_are_said() -> None:
    entry = table(["active+*0@a", *["active+@a"] * 4, "active+@b"], hops=3)
    builder = RowBuilder()
    said = set()
    for last in range(100):
        source = ipaddress.ip_address(f"198.51.100.{last}")
        found = explain_flow(TableSet((entry,)), _from(_FLOW, source), builder=builder)
        assert found is not None
        for hop in found.hops:
            said.add((str(hop.address), hop.reason.split(", ", 1)[-1]))
    assert ("10.0.0.6", 'the first usable outside the primary\'s zone "a"') in said
    assert ("10.0.0.1", "active with weight 0 and healthy: still holds older flows of this row") in said


def test_candidates_carry_what_they_are_ordered_by() -> None:
    entry = table(["active+*3@a", "active+", "active+*100"])
    found = explain_flow(TableSet((entry,)), _FLOW)
    assert found is not None
    by_address = {str(candidate.address): candidate for candidate in found.choice.candidates}
    assert [by_address[f"10.0.0.{n}"].weight for n in (1, 2, 3)] == [3, 1, 100]
    assert by_address["10.0.0.1"].zone == "a"
    scores = [candidate.score for candidate in found.choice.candidates]
    assert scores == sorted(DOCUMENTED["score"](c.rank, c.weight) for c in found.choice.candidates)
    plain = explain_flow(TableSet((table(["active+"] * 3),)), _FLOW)
    assert plain is not None
    assert {candidate.score for candidate in plain.choice.candidates} == {None}


def test_an_exchange_by_glb2_is_said() -> None:
    entry = table(["draining+", "active+"], row_rule="glb2")
    for last in range(50):
        flow = _from(_FLOW, ipaddress.ip_address(f"198.51.100.{last}"))
        found = explain_flow(TableSet((entry,)), flow)
        assert found is not None
        assert str(found.hops[0].address) == "10.0.0.2"
        first = found.choice.candidates[0].address == found.hops[0].address
        assert ("exchanged" in found.hops[0].reason) != first


def test_alternative_hops_are_appended_once() -> None:
    entry = table(["active+", "active+", "active+"])
    for rule, expected in (("first_usable", 3), ("glb2", 4)):
        tables = TableSet((msgspec.structs.replace(entry, row_rule=rule),))
        counts = set()
        for port in range(60):
            flow = Flow(_FLOW.source, _FLOW.destination, 6, port, 80)
            found = explain_flow(tables, flow, alt_hash_fields=("src_port",))
            assert found is not None
            assert found.alternative is not None
            counts.add(len(found.hops))
        assert max(counts) == expected


def test_echo_requests_match_by_address_and_have_no_fixed_port() -> None:
    flow = Flow(_FLOW.source, _FLOW.destination, 1)
    found = explain_flow(TableSet((table(["active+", "active+"]),)), flow)
    assert found is not None
    assert found.source_port is None
    assert 0 <= found.choice.row < N_ROWS


@pytest.mark.parametrize(
    ("destination", "proto", "port", "expected"),
    [
        pytest.param("192.0.2.1", 6, 80, 0, id="longest-prefix-wins-over-narrower-range"),
        pytest.param("192.0.2.2", 6, 80, 2, id="narrower-range-wins"),
        pytest.param("192.0.2.2", 6, 81, 1, id="wider-range"),
        pytest.param("192.0.2.2", 17, 80, None, id="other-protocol"),
        pytest.param("192.0.3.1", 6, 80, None, id="outside"),
        pytest.param("2001:db8::1", 6, 80, 3, id="ipv6"),
    ],
)
def test_which_bind_wins(destination: str, proto: int, port: int, expected: int | None) -> None:
    binds = [("192.0.2.1/32", 1, 65535), ("192.0.2.0/24", 1, 100), ("192.0.2.0/24", 80, 80), ("::/0", 80, 80)]
    entries = tuple(Bind(ipaddress.ip_network(network), 6, first, last) for network, first, last in binds)
    tables = TableSet((msgspec.structs.replace(table(["active+"]), binds=entries),))
    address = ipaddress.ip_address(destination)
    found = find_bind(tables, Flow(address, address, proto, 1, port))
    assert (found[1] if found else None) == (None if expected is None else entries[expected])
