"""What a worker captures: which packets, how much of them, and what if the ring is full."""

from __future__ import annotations

import time
from ipaddress import ip_address, ip_network

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6DestUnreach, ICMPv6EchoRequest, IPv6
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Packet, Raw
from scene import BACKENDS, CLIENT, CLIENT6, OVERHEAD, VIP, VIP6, ethernet, forwarding, ipv4, ipv6

from glb._capture import ANY_TABLE, Captured, Wanted, WorkerTap
from glb._fastpath import Forwarding, PlainMemory
from glb.director import captured
from glb.director.tap import Names

TCP4, TCP6 = ipv4() / TCP(sport=1234, dport=80), ipv6() / TCP(sport=1234, dport=80)
ROUTER = "198.18.0.1"
ERROR4 = ethernet() / IP(src=ROUTER, dst=VIP) / ICMP(type=3) / IP(src=VIP, dst=CLIENT) / UDP(sport=80, dport=1234)
ERROR6 = ethernet() / IPv6(src="2001:db8:f::1", dst=VIP6) / ICMPv6DestUnreach()
ERROR6 /= IPv6(src=VIP6, dst=CLIENT6) / TCP(sport=80, dport=1234)


def taken(
    *packets: Packet | bytes, table: int | None = ANY_TABLE, plan: Forwarding | None = None, **options: object
) -> list[Captured]:
    """What is captured of these packets."""
    wanted = Wanted(PlainMemory, **options)  # type: ignore[arg-type]
    for bank in range(2):
        wanted.want_table(bank, table)
    tap = WorkerTap(wanted)
    plan = plan or forwarding()
    for packet in packets:
        tap.encapsulate(plan, plan.new_counters(), [bytes(packet)])
    return tap.take(10_000)


@pytest.mark.parametrize("packet", [TCP4, TCP6], ids=["ipv4", "ipv6"])
def test_a_packet_is_captured_before_and_after_encapsulation(packet: Packet) -> None:
    plan = forwarding()
    (seen,) = taken(packet, plan=plan)
    ((_, sent),) = plan.encapsulate([bytes(packet)], plan.new_counters())
    assert sent is not None
    assert (seen.verdict, seen.engine, seen.table) == ("forward", "cython", 0)
    assert (seen.received, seen.received_bytes) == (bytes(packet), len(packet))
    assert (seen.sent, seen.sent_bytes) == (sent, len(packet) + OVERHEAD)
    primary = ip_address(sent[30:34])
    other = next(ip_address(backend) for backend in BACKENDS if ip_address(backend) != primary)
    assert captured.comment("web", seen) == (
        f"forward table=web row={seen.row} hash={seen.hash:016x} hops={primary},{other} engine=cython"
    )


@pytest.mark.parametrize("tags", [1, 2])
def test_tags_are_kept_before_and_after(tags: int) -> None:
    packet = ethernet()
    for vlan in range(tags):
        packet /= Dot1Q(vlan=100 + vlan)
    packet /= IP(src=CLIENT, dst=VIP) / TCP(dport=80)
    (seen,) = taken(packet)
    assert seen.received == bytes(packet)
    assert seen.sent is not None and Ether(seen.sent)[Dot1Q].vlan == 100
    assert str(captured.hops(seen)[0]) == Ether(seen.sent)[IP].dst


@pytest.mark.parametrize(
    ("client", "packets", "n"),
    [
        (f"{CLIENT}/32", [TCP4, TCP6, ERROR4, ERROR6], 2),  # an error's client is whom the quoted packet was for
        (f"{CLIENT6}/128", [TCP4, TCP6, ERROR4, ERROR6], 2),
        ("198.51.100.0/24", [TCP4, TCP6], 1),
        ("198.51.101.0/24", [TCP4, TCP6], 0),
        ("128.0.0.0/1", [TCP4], 1),
        ("0.0.0.0/1", [TCP4], 0),
        ("0.0.0.0/0", [TCP4, TCP6], 1),
        ("::/0", [TCP4, TCP6], 1),
        ("2001:db8:1::/48", [TCP4, TCP6], 1),
        ("2001:db8:2::/48", [TCP4, TCP6], 0),
        (f"{ROUTER}/32", [ERROR4], 0),
        ("::ffff:198.51.100.7/128", [TCP4], 0),
    ],
)
def test_the_client_is_matched(client: str, packets: list[Packet], n: int) -> None:
    assert len(taken(*packets, client=ip_network(client))) == n


def test_a_table_is_matched_by_its_index() -> None:
    truncated = bytes(TCP4)[:30]
    assert len(taken(TCP4, truncated, table=0)) == 1
    assert taken(TCP4, truncated, table=1) == []
    assert taken(TCP4, truncated, table=None) == []
    assert len(taken(TCP4, truncated, table=ANY_TABLE)) == 2


@pytest.mark.parametrize(
    ("packet", "plan", "text"),
    [
        (bytes(TCP4)[:50], {}, "drop truncated engine=cython"),
        (ipv4(frag=100, proto=17) / Raw(bytes(20)), {"hash_fields": 5}, "drop fragment table=web engine=cython"),
        (
            ipv4() / ICMP(),
            {"forward_echo": False},
            "drop stale_bind engine=cython",
        ),  # a worker cannot give it to the host
        (ipv6() / ICMPv6EchoRequest(), {"forward_echo": False}, "drop stale_bind engine=cython"),
    ],
)
def test_what_is_dropped_is_captured_with_the_reason(packet: Packet, plan: dict[str, object], text: str) -> None:
    (seen,) = taken(packet, plan=forwarding(**plan))  # type: ignore[arg-type]
    assert captured.comment(None if seen.table is None else "web", seen) == text
    assert (seen.received, seen.sent) == (bytes(packet), None)


def test_a_packet_that_is_too_big_is_captured_with_its_answer() -> None:
    packet = ipv4() / TCP(dport=80) / Raw(bytes(1400))
    plan = forwarding(1000)
    (seen,) = taken(packet, plan=plan)
    assert captured.comment("web", seen).startswith("drop too_big answered table=web row=")
    ((_, answer),) = plan.encapsulate([bytes(packet)], plan.new_counters())
    assert (seen.received, seen.sent) == (bytes(packet), answer)
    (silent,) = taken(packet, plan=forwarding(1000, answers_per_s=0))
    assert captured.comment("web", silent).startswith("drop too_big table=web") and silent.sent is None


def test_a_packet_without_a_next_hop_is_captured_with_its_row() -> None:
    plan = forwarding()
    for backend in BACKENDS:
        plan.set_next_hop(backend, None)
    (seen,) = taken(TCP4, plan=plan)
    (row,) = [packet.row for packet in taken(TCP4)]
    assert captured.comment("web", seen) == f"drop no_next_hop table=web row={row} hash={seen.hash:016x} engine=cython"


def test_the_snap_length_cuts_what_is_kept_but_not_the_tunnels_front() -> None:
    packet = ipv4() / TCP(dport=80) / Raw(bytes(1000))
    (seen,) = taken(packet, snap_bytes=64)
    assert seen.received == bytes(packet)[:64] and seen.received_bytes == len(packet)
    assert seen.sent is not None and len(seen.sent) == 64 + OVERHEAD and seen.sent_bytes == len(packet) + OVERHEAD
    assert len(captured.hops(seen)) == 2


def test_one_in_so_many_is_sampled_by_chance() -> None:
    assert len(taken(*[TCP4] * 2000, sample=1)) == 2000
    assert 100 < len(taken(*[TCP4] * 2000, sample=10)) < 300  # 6 standard deviations are 80


def test_what_finds_the_ring_full_is_counted_and_room_is_used_again() -> None:
    wanted = Wanted(PlainMemory)
    wanted.want_table(0, ANY_TABLE)
    tap, plan = WorkerTap(wanted), forwarding()
    counters = plan.new_counters()
    offered = got = 0
    for burst in range(12):  # several times round the ring of 4 MiB
        frames = [bytes(ipv4() / TCP(sport=1000 + burst, dport=80) / Raw(bytes([burst]) * 900))] * 40
        for _ in range(1 if burst < 6 else 120):
            tap.encapsulate(plan, counters, frames)
            offered += len(frames)
        packets = tap.take(10_000)
        assert all(packet.received == frames[0] for packet in packets)
        got += len(packets)
    assert tap.missed > 0 and got + tap.missed == offered


def test_nothing_is_captured_when_nobody_has_read_for_a_while() -> None:
    wanted, plan = Wanted(PlainMemory), forwarding()
    wanted.want_table(0, ANY_TABLE)
    tap = WorkerTap(wanted)
    for until_ns, n in ((time.monotonic_ns(), 0), (time.monotonic_ns() + 10**12, 1)):
        wanted.want_until(until_ns)
        tap.encapsulate(plan, plan.new_counters(), [bytes(TCP4)])
        assert len(tap.take(10)) == n


def test_a_packet_has_the_name_that_its_table_had_when_it_was_taken() -> None:
    (packet,) = taken(TCP4)
    names = Names()
    for at_ns, bank, tables in ((0, 0, ["a"]), (10, 1, ["b", "a"]), (20, 0, ["c", "a"]), (40, 0, ["c", "a"])):
        names.follow(bank, tables, at_ns)
    expected = [(5, 0, 0, "a"), (15, 1, 0, "b"), (15, 1, 1, "a"), (25, 0, 0, "c"), (50, 0, 1, "a"), (50, 0, None, None)]
    for at_ns, bank, table, name in expected:
        assert names.of(packet._replace(at_ns=at_ns, bank=bank, table=table)) == name


def test_out_of_range_is_refused() -> None:
    for options in ({"sample": 0}, {"snap_bytes": 10}, {"snap_bytes": 1 << 20}):
        with pytest.raises(ValueError, match="out of range"):
            Wanted(PlainMemory, **options)  # type: ignore[arg-type]
