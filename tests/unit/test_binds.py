"""Which bind wins, against a plain reading of the rule; and the packed form that both engines search."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_network

from hypothesis import given, settings
from hypothesis import strategies as st

from glb._fastpath import Forwarding
from glb.table.binds import NO_TABLE, compile_binds
from glb.table.config import Bind

TCP, UDP = 6, 17


def bind(network: str, first: int, last: int | None = None, proto: int = TCP) -> Bind:
    return Bind(ip_network(network), proto, first, first if last is None else last)


def winner(tables: list[list[Bind]], address: IPv4Address | IPv6Address, proto: int, port: int) -> int:
    """The rule as it is written: longest prefix, then narrowest range, then first in the file."""
    found = [
        (-b.network.prefixlen, b.port_last - b.port_first, position, table)
        for position, (table, b) in enumerate((i, b) for i, binds in enumerate(tables) for b in binds)
        if address in b.network and b.proto == proto and b.port_first <= port <= b.port_last
    ]
    return min(found)[3] if found else NO_TABLE


def tcp_frame(address: IPv4Address | IPv6Address, proto: int, port: int) -> bytes:
    ports = (1234).to_bytes(2, "big") + port.to_bytes(2, "big") + bytes(16)
    if address.version == 4:
        header = bytes([0x45, 0, 0, 40, 0, 1, 0, 0, 64, proto, 0, 0]) + bytes([192, 0, 2, 1]) + address.packed
        return bytes(12) + b"\x08\x00" + header + ports
    header = bytes([0x60, 0, 0, 0, 0, 20, proto, 64]) + bytes(15) + b"\x01" + address.packed
    return bytes(12) + b"\x86\xdd" + header + ports


def table_by_datapath(tables: list[list[Bind]], address: IPv4Address | IPv6Address, proto: int, port: int) -> int:
    """Table i forwards to the backend 10.0.0.i and nowhere else, so the outer destination tells the table."""
    plans = [
        (f"t{i}", bytes(16), memoryview(bytes(4)).cast("H"), 2, [bytes([10, 0, 0, i])], False)
        for i in range(len(tables))
    ]
    forwarding = Forwarding(plans, compile_binds(tables), source_ip=bytes(4))
    for i in range(len(tables)):
        forwarding.set_next_hop(bytes([10, 0, 0, i]), bytes([2, 0, 0, 0, 0, 1]))
    ((verdict, sent),) = forwarding.encapsulate([tcp_frame(address, proto, port)], forwarding.new_counters())
    return sent[33] if verdict == "forward" and sent is not None else NO_TABLE


NETWORKS = ["203.0.113.0/24", "203.0.113.128/25", "203.0.113.200/32", "203.0.113.201/32", "0.0.0.0/0"]
NETWORKS += ["2001:db8::/32", "2001:db8::1/128", "::/0", "2001:db8::/64"]
ADDRESSES = [IPv4Address(a) for a in ("203.0.113.1", "203.0.113.200", "203.0.113.201", "203.0.113.129", "192.0.2.9")]
ADDRESSES += [
    IPv6Address(a) for a in ("2001:db8::1", "2001:db8::2", "2001:db8:0:1::", "fd00::1", "::ffff:203.0.113.200")
]
PORTS = [0, 1, 79, 80, 81, 443, 65535]


@st.composite
def table_binds(draw: st.DrawFn) -> list[list[Bind]]:
    """Up to three tables of binds; the refusal of equal binds is another module's work, the first one wins here."""

    def one() -> Bind:
        first = draw(st.sampled_from(PORTS))
        last = draw(st.sampled_from([port for port in PORTS if port >= first]))
        return bind(draw(st.sampled_from(NETWORKS)), first, last, draw(st.sampled_from([TCP, UDP])))

    return [[one() for _ in range(draw(st.integers(1, 4)))] for _ in range(draw(st.integers(1, 3)))]


@settings(max_examples=150, deadline=None)
@given(table_binds(), st.sampled_from(ADDRESSES), st.sampled_from([TCP, UDP]), st.sampled_from(PORTS))
def test_datapath_finds_the_winner(
    tables: list[list[Bind]], address: IPv4Address | IPv6Address, proto: int, port: int
) -> None:
    # An IPv4-mapped IPv6 destination is never a VIP on the wire (RFC 4038): its packets go to the host.
    mapped = address.version == 6 and address.ipv4_mapped is not None  # type: ignore[union-attr]
    expected = NO_TABLE if mapped else winner(tables, address, proto, port)
    assert table_by_datapath(tables, address, proto, port) == expected


def test_segments_are_disjoint_ascending_and_merged() -> None:
    tables = [[bind("203.0.113.0/24", 80, 90), bind("203.0.113.0/24", 91, 99)], [bind("203.0.113.7/32", 85)]]
    whole, one = compile_binds(tables)
    assert [(s.port_first, s.port_last, s.table) for s in whole.segments] == [(80, 99, 0)]
    assert [(s.port_first, s.port_last, s.table) for s in one.segments] == [(80, 84, 0), (85, 85, 1), (86, 99, 0)]


def test_later_fragments_have_a_table_only_where_ports_cannot_matter() -> None:
    tables = [[bind("203.0.113.1/32", 80), bind("203.0.113.1/32", 53, proto=UDP)], [bind("203.0.113.1/32", 81)]]
    (prefix,) = compile_binds(tables)
    assert prefix.fragment_tables == (NO_TABLE, 0)


def test_echo_goes_to_the_table_of_the_narrowest_then_first_bind_of_the_longest_prefix() -> None:
    tables = [[bind("203.0.113.0/24", 22)], [bind("203.0.113.1/32", 1, 99)], [bind("203.0.113.1/32", 443)]]
    assert [prefix.echo_table for prefix in compile_binds(tables)] == [0, 2]


def test_sixteen_thousand_prefixes_find_their_slots() -> None:
    binds = [bind(f"10.{i // 256}.{i % 256}.0/24", 80) for i in range(16384)]
    prefixes = compile_binds([binds])
    plan = ("t", bytes(16), memoryview(bytes(4)).cast("H"), 2, [bytes([10, 0, 0, 1])], False)
    forwarding = Forwarding([plan], prefixes, source_ip=bytes(4))
    forwarding.set_next_hop(bytes([10, 0, 0, 1]), bytes([2, 0, 0, 0, 0, 1]))
    frames = [tcp_frame(b.network.network_address + 7, TCP, 80) for b in binds]
    results = forwarding.encapsulate(frames, forwarding.new_counters())
    assert {verdict for verdict, _ in results} == {"forward"}
