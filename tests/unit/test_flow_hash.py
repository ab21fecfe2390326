"""Flow hashes by every engine: SipHash-2-4 over the chosen fields, for each packet of a batch its own."""

from __future__ import annotations

import random
from array import array
from dataclasses import dataclass
from ipaddress import ip_network

import pytest

from glb._fastpath import Forwarding
from glb._rendezvous import ENGINES, siphash24
from glb.table.binds import compile_binds
from glb.table.config import Bind

N_ROWS = 4096
BACKENDS = [bytes([10, 0, n >> 8, n & 0xFF]) for n in range(300)]
GATEWAY = bytes.fromhex("02005e000001")
VIPS = {
    4: [bytes([203, 0, 113, n]) for n in (10, 11)],
    6: [bytes.fromhex("20010db8") + bytes([n] * 12) for n in (1, 2)],
}
KEYS = [bytes(range(16)), bytes(range(100, 116))]  # of the two tables, one for each VIP of a family
STRIDES = [2, 4]
PORT = 443
FIELDS = range(1, 16)


@dataclass(frozen=True)
class Flow:
    """What a client's packets have in common, and which table they are for."""

    source: bytes
    destination: bytes
    source_port: int
    table: int

    def message(self, fields: int) -> bytes:
        parts = [self.source, self.destination, self.source_port.to_bytes(2, "big"), PORT.to_bytes(2, "big")]
        return b"".join(part for bit, part in enumerate(parts) if fields >> bit & 1)

    def hash(self, fields: int) -> int:
        return siphash24(KEYS[self.table], self.message(fields))


def flows(count: int, seed: int) -> list[Flow]:
    chance = random.Random(seed)
    made = []
    for _ in range(count):
        family, table = chance.choice((4, 6)), chance.randrange(2)
        source = chance.randbytes(4 if family == 4 else 16)
        made.append(Flow(source, VIPS[family][table], chance.randrange(1, 65536), table))
    return made


def ip(flow: Flow, payload: bytes, *, icmp: bool = False, back: bool = False) -> bytes:
    """An IP header without checksum, and the payload. back: as a proxy answers it."""
    ends = (flow.destination, flow.source) if back else (flow.source, flow.destination)
    if len(flow.source) == 4:
        length = (20 + len(payload)).to_bytes(2, "big")
        return b"\x45\0" + length + bytes(4) + bytes([64, 1 if icmp else 6, 0, 0]) + b"".join(ends) + payload
    length = len(payload).to_bytes(2, "big")
    return b"\x60\0\0\0" + length + bytes([58 if icmp else 6, 64]) + b"".join(ends) + payload


def frame(flow: Flow, kind: str) -> bytes:
    """A packet of the flow, or an ICMP error from its client's side about a packet sent to that client."""
    source, port = flow.source_port.to_bytes(2, "big"), PORT.to_bytes(2, "big")
    if kind == "tcp":
        packet = ip(flow, source + port + bytes(16))
    else:
        quoted = ip(flow, port + source + bytes(16), back=True)
        packet = ip(flow, bytes([3 if len(flow.source) == 4 else 1]) + bytes(7) + quoted, icmp=True)
    return bytes(12) + (b"\x08\x00" if len(flow.source) == 4 else b"\x86\xdd") + packet


def rows_of(table: int) -> array[int]:
    chance = random.Random(table)
    return array("H", [hop for _ in range(N_ROWS) for hop in chance.sample(range(len(BACKENDS)), STRIDES[table])])


def forwarding(fields: int, alt_fields: int = 0) -> Forwarding:
    tables = [(f"t{t}", KEYS[t], rows_of(t), STRIDES[t], BACKENDS, False) for t in range(2)]
    binds = [[Bind(ip_network(VIPS[family][t]), 6, PORT, PORT) for family in (4, 6)] for t in range(2)]
    made = Forwarding(
        tables,
        compile_binds(binds),
        source_ip=bytes([192, 0, 2, 1]),
        hash_fields=fields,
        alt_hash_fields=alt_fields,
    )
    for backend in BACKENDS:
        made.set_next_hop(backend, GATEWAY)
    return made


def hops_by(flow: Flow, fields: int) -> list[bytes]:
    stride, row = STRIDES[flow.table], flow.hash(fields) % N_ROWS
    return [BACKENDS[hop] for hop in rows_of_table[flow.table][row * stride : (row + 1) * stride]]


rows_of_table = [rows_of(0), rows_of(1)]


def hops_in(sent: bytes) -> list[bytes]:
    return [sent[30:34], *(sent[50 + 4 * i : 54 + 4 * i] for i in range(sent[49]))]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("fields", FIELDS)
def test_every_packet_has_the_row_and_source_port_of_its_flow_hash(fields: int, engine: str) -> None:
    plan = forwarding(fields)
    chance = random.Random(fields)
    for count in (1, 2, 3, 7, 8, 9, 33, 64, 130):
        given = flows(count, seed=count)
        frames = [frame(flow, chance.choice(("tcp", "error"))) for flow in given]
        for flow, (verdict, sent) in zip(
            given, plan.encapsulate(frames, plan.new_counters(), engine=engine), strict=True
        ):
            assert verdict == "forward" and sent is not None
            assert hops_in(sent) == hops_by(flow, fields)
            udp_source = int.from_bytes(sent[34:36], "big")
            assert udp_source == 0x8000 | (flow.hash(fields) ^ flow.source_port) & 0x7FFF


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("fields", "alt_fields"), [(1, 2), (1, 5), (15, 1), (3, 12), (1, 1)])
def test_alternative_rows_follow_without_what_is_listed_already(fields: int, alt_fields: int, engine: str) -> None:
    plan = forwarding(fields, alt_fields)
    given = flows(130, seed=7)
    frames = [frame(flow, "tcp") for flow in given]
    for flow, (_, sent) in zip(given, plan.encapsulate(frames, plan.new_counters(), engine=engine), strict=True):
        assert sent is not None
        assert hops_in(sent) == list(dict.fromkeys(hops_by(flow, fields) + hops_by(flow, alt_fields)))


def test_packets_that_are_not_forwarded_leave_no_gap() -> None:
    plan = forwarding(1)
    given = flows(64, seed=3)
    frames = [bytes(60) if i % 3 == 0 else frame(flow, "tcp") for i, flow in enumerate(given)]
    for i, (flow, (verdict, sent)) in enumerate(zip(given, plan.encapsulate(frames, plan.new_counters()), strict=True)):
        assert verdict == ("host" if i % 3 == 0 else "forward")
        if sent is not None:
            assert hops_in(sent) == hops_by(flow, 1)


def test_engine_that_is_not_there_is_refused() -> None:
    plan = forwarding(1)
    with pytest.raises(ValueError, match="no engine 'mmx'"):
        plan.encapsulate([], plan.new_counters(), engine="mmx")
