"""The packet path's own rules: what is not in the reference vectors, or is worth a name of its own."""

from __future__ import annotations

import ctypes
import random
from array import array
from ipaddress import ip_network

import corpus
import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrFragment
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from fuzz.mutations import mutated
from glb._fastpath import DROP_REASONS, Forwarding
from glb.errors import TableError
from glb.table.binds import compile_binds
from glb.table.config import Bind
from glb.wire.gue import parse_tunnel

BACKENDS = [bytes([10, 0, 0, n]) for n in (1, 2, 3)]
GATEWAY = bytes.fromhex("02005e000001")
VIP = "203.0.113.10"


def forwarding(rows: list[int] | None = None, stride: int = 2, **options: object) -> Forwarding:
    binds = [
        Bind(ip_network(VIP), 6, 80, 80),
        Bind(ip_network(VIP), 17, 53, 53),
        Bind(ip_network("2001:db8::10"), 6, 80, 80),
    ]
    plan = ("web", bytes(16), array("H", rows or [0, 1]), stride, BACKENDS, False)
    result = Forwarding([plan], compile_binds([binds]), source_ip=bytes([192, 0, 2, 1]), **options)  # type: ignore[arg-type]
    for backend in BACKENDS:
        result.set_next_hop(backend, GATEWAY)
    return result


def run(plan: Forwarding, packet: Ether) -> tuple[str, bytes | None]:
    return plan.encapsulate([bytes(packet)], plan.new_counters())[0]


def ipv4(**fields: object) -> Ether:
    return Ether(src="02:00:00:00:00:02", dst="02:00:00:00:00:01") / IP(src="198.51.100.7", dst=VIP, **fields)


def test_an_independent_decoder_reads_the_tunnel_packet() -> None:
    packet = ipv4() / TCP(sport=1234, dport=80, flags="S")
    verdict, sent = run(forwarding(), packet)
    assert verdict == "forward" and sent is not None
    outer = Ether(sent)
    assert outer.dst == "02:00:5e:00:00:01" and outer.src == "02:00:00:00:00:01"
    checksum = outer[IP].chksum
    del outer[IP].chksum
    assert IP(bytes(outer[IP])).chksum == checksum
    assert (outer[IP].src, outer[IP].dst, outer[IP].ttl, outer[IP].flags.value) == ("192.0.2.1", "10.0.0.1", 64, 2)
    assert outer[UDP].dport == 19523 and outer[UDP].sport >= 0x8000 and outer[UDP].chksum == 0
    assert outer[UDP].len == len(sent) - 34 and outer[IP].len == len(sent) - 14
    tunnel = parse_tunnel(sent[14:])
    assert [str(hop) for hop in tunnel.gue.hops] == ["10.0.0.2"]
    assert tunnel.inner == bytes(packet)[14:]


def test_a_row_of_one_backend_lists_no_hop() -> None:
    verdict, sent = run(forwarding([2, 0xFFFF]), ipv4() / TCP(dport=80))
    assert verdict == "forward" and sent is not None
    assert sent[30:34] == BACKENDS[2] and sent[42] == 1 and sent[49] == 0


def test_a_row_of_three_lists_two_hops() -> None:
    _, sent = run(forwarding([2, 0, 1, 0xFFFF], 4), ipv4() / TCP(dport=80))
    assert (
        sent is not None and sent[30:34] == BACKENDS[2] and sent[42] == 3 and sent[50:58] == BACKENDS[0] + BACKENDS[1]
    )


def test_ethernet_padding_is_sent_along_and_not_counted_as_packet() -> None:
    packet = bytes(ipv4() / TCP(dport=80)) + bytes(6)
    plan = forwarding()
    ((verdict, sent),) = plan.encapsulate([packet], plan.new_counters())
    assert verdict == "forward" and sent is not None and sent.endswith(packet[14:])
    assert int.from_bytes(sent[16:18], "big") == 40 + 40


def test_the_same_flow_has_the_same_row_and_another_client_may_not() -> None:
    plan = forwarding([0, 1, 1, 2, 2, 0, 1, 0], 2)
    seen = {run(plan, ipv4() / TCP(sport=port, dport=80))[1][30:34] for port in range(1, 50)}  # type: ignore[index]
    assert len(seen) == 1
    other = Ether() / IP(dst=VIP) / TCP(dport=80)
    frames = []
    for n in range(64):
        other[IP].src = f"198.51.100.{n}"
        frames.append(bytes(other))
    spread = {sent[30:34] for _, sent in plan.encapsulate(frames, plan.new_counters()) if sent}
    assert len(spread) == 3


def test_tunnel_packet_larger_than_the_path_is_dropped_and_counted() -> None:
    plan = forwarding()
    plan.set_next_hop(BACKENDS[0], GATEWAY, 1500)
    fits = ipv4() / TCP(dport=80) / Raw(bytes(1420))
    assert run(plan, fits)[0] == "forward"
    assert run(plan, ipv4() / TCP(dport=80) / Raw(bytes(1421)))[0] == "too_big"
    assert plan.counts()["verdicts"]["too_big"] == 1


def test_backend_without_a_next_hop_is_dropped_and_counted() -> None:
    plan = forwarding()
    plan.set_next_hop(BACKENDS[0], None)
    assert run(plan, ipv4() / TCP(dport=80))[0] == "no_next_hop"


def test_what_leaves_by_another_interface_has_its_source_address() -> None:
    plan = forwarding(source_mac=bytes.fromhex("020000000001"))
    macs = [bytes([2, 0, 0, 1, i // 256, i % 256]) for i in range(300)]
    for i, mac in enumerate(macs):  # more than there are entries: those that are not in use are used again
        plan.set_next_hop(BACKENDS[0], GATEWAY, 1500, (i + 1, mac, i % 2 == 0))
        _, sent = run(plan, ipv4() / TCP(dport=80))
        assert sent is not None and sent[:12] == GATEWAY + mac
    plan.set_next_hop(BACKENDS[0], GATEWAY)
    assert run(plan, ipv4() / TCP(dport=80))[1][6:12] == bytes.fromhex("020000000001")  # type: ignore[index]


def test_more_interfaces_than_entries_are_refused_and_change_nothing() -> None:
    backends = [bytes([10, 1, i // 256, i % 256]) for i in range(256)]
    table = ("web", bytes(16), array("H", [255, 0]), 2, backends, False)
    plan = Forwarding([table], compile_binds([[Bind(ip_network(VIP), 6, 80, 80)]]), source_ip=bytes(4))
    plan.set_next_hop(backends[255], GATEWAY)
    for i, backend in enumerate(backends[:255]):
        plan.set_next_hop(backend, GATEWAY, 1500, (i + 1, bytes([2, 0, 0, 0, 0, i]), True))
    with pytest.raises(TableError, match="more than 255 interfaces"):
        plan.set_next_hop(backends[255], GATEWAY, 1500, (256, bytes(6), True))
    plan.set_next_hop(backends[255], GATEWAY, 1500, (7, bytes([2, 0, 0, 0, 0, 6]), True))
    _, sent = plan.encapsulate([bytes(ipv4() / TCP(dport=80))], plan.new_counters())[0]
    assert sent is not None and sent[6:12] == bytes([2, 0, 0, 0, 0, 6])


def test_an_interface_that_was_left_just_now_is_the_last_to_be_forgotten() -> None:
    """A batch under way may still send by it."""
    plan = forwarding()
    egresses = [(i + 1, bytes([2, 0, 0, 0, 7, i]), True) for i in range(3)]
    for backend, egress in zip(BACKENDS[:2], egresses, strict=False):
        plan.set_next_hop(backend, GATEWAY, 1500, egress)
    plan.set_next_hop(BACKENDS[0], GATEWAY, 1500, egresses[0])  # said again: there already
    plan.set_next_hop(BACKENDS[1], None)
    plan.set_next_hop(BACKENDS[2], GATEWAY, 1500, egresses[2])
    entries = ctypes.string_at(plan.generation_memory.address, 1 << 14)  # what a generation begins with
    assert [mac in entries for _, mac, _ in egresses] == [True, True, True]


def test_drops_are_counted_by_table_where_they_have_one() -> None:
    web = [Bind(ip_network(VIP), 6, 80, 80), Bind(ip_network(VIP), 17, 53, 53)]
    api = [Bind(ip_network(VIP), 6, 81, 81)]
    tables = [(name, bytes(16), array("H", [i, 0xFFFF]), 2, BACKENDS, False) for i, name in enumerate(("web", "api"))]
    plan = Forwarding(tables, compile_binds([web, api]), source_ip=bytes(4), hash_fields=1 | 4)
    plan.set_next_hop(BACKENDS[1], GATEWAY, 1000)
    packets = [
        ipv4() / TCP(dport=80),
        ipv4() / TCP(dport=81) / Raw(bytes(1000)),
        ipv4(frag=9, proto=17) / Raw(bytes(32)),
        ipv4(frag=9, proto=6) / Raw(bytes(32)),
        ipv4() / TCP(dport=80),
        ipv4(len=900) / TCP(dport=80),
        ipv4() / TCP(dport=81),
    ]
    for packet in packets:
        run(plan, packet)
    drops = plan.counts()["drops"]
    assert {key: n for key, n in drops.items() if n} == {
        ("web", "no_next_hop"): 2,
        ("api", "too_big"): 1,
        ("web", "fragment"): 1,
        ("", "fragment"): 1,
        ("", "truncated"): 1,
    }
    assert sum(drops.values()) == sum(plan.counts()["verdicts"][reason] for reason in DROP_REASONS)


def test_later_fragment_follows_where_addresses_alone_decide() -> None:
    later = ipv4(frag=100, proto=17) / Raw(bytes(32))
    assert run(forwarding(), later)[0] == "forward"
    assert run(forwarding(hash_fields=1 | 4), later)[0] == "fragment"
    later6 = Ether() / IPv6(dst="2001:db8::10") / IPv6ExtHdrFragment(nh=6, offset=10) / Raw(bytes(32))
    assert run(forwarding(), later6)[0] == "forward"


def test_both_pieces_of_a_datagram_reach_the_same_proxy() -> None:
    plan = forwarding([0, 1, 1, 2] * 4, 2)
    for host in range(1, 60):
        first = (
            Ether()
            / IP(src=f"198.51.100.{host}", dst=VIP, flags="MF", proto=17)
            / UDP(dport=53, sport=host)
            / Raw(bytes(24))
        )
        later = Ether() / IP(src=f"198.51.100.{host}", dst=VIP, frag=4, proto=17) / Raw(b"\xff" * 40)
        (_, one), (_, two) = plan.encapsulate([bytes(first), bytes(later)], plan.new_counters())
        assert one is not None and two is not None and one[30:34] == two[30:34]


def test_icmp_error_follows_the_flow_it_quotes() -> None:
    plan = forwarding([0, 1, 1, 2] * 4, 2)
    for host in range(1, 60):
        client = f"198.51.100.{host}"
        flow = Ether() / IP(src=client, dst=VIP) / TCP(sport=999, dport=80)
        quoted = IP(src=VIP, dst=client) / TCP(sport=80, dport=999)
        error = Ether() / IP(src="192.0.2.99", dst=VIP) / ICMP(type=3, code=4) / quoted
        (_, one), (_, two) = plan.encapsulate([bytes(flow), bytes(error)], plan.new_counters())
        assert one is not None and two is not None
        assert one[30:36] == two[30:36], "same proxy, same UDP source port"


def test_every_counted_frame_has_exactly_one_verdict() -> None:
    plan = corpus.forwarding("plain")
    before = sum(plan.counts()["verdicts"].values())
    frames = list(mutated([bytes.fromhex(r["frame"]) for r in corpus.packets()], 7, 3000))
    results = plan.encapsulate(frames, plan.new_counters())
    counts = plan.counts()
    assert len(results) == 3000 and sum(counts["verdicts"].values()) - before == 3000
    assert (
        counts["verdicts"]["forward"]
        == sum(counts["backends"].values())
        == sum(n for n, _ in counts["tables"].values())
    )


def test_every_prefix_of_every_vector_ends_in_a_verdict() -> None:
    """On the sanitizer build this is the test that a read beyond the frame would fail."""
    for env in ("plain", "alt-four"):
        frames = sorted({bytes.fromhex(r["frame"])[:200] for r in corpus.packets() if r["env"] == env})
        cuts = [frame[:n] for frame in frames for n in range(len(frame) + 1)]
        for (verdict, sent), frame in zip(corpus.run(env, cuts), cuts, strict=True):
            assert (verdict == "forward") == (sent is not None), frame.hex()


def test_no_length_field_makes_a_tunnel_packet_longer_than_65535() -> None:
    plan = forwarding()
    frame = bytearray(bytes(ipv4() / TCP(dport=80) / Raw(bytes(65535 - 40))))
    assert int.from_bytes(frame[16:18], "big") == 65535
    assert plan.encapsulate([bytes(frame)], plan.new_counters())[0][0] == "too_big"


@pytest.mark.parametrize(
    ("rows", "stride", "message"),
    [
        ([0, 1], 3, "power of two"),
        ([0, 1, 1], 2, "power of two"),
        ([0, 1] * 3, 2, "power of two"),
        ([0, 9], 2, "row 0"),
    ],
)
def test_rows_that_no_builder_makes_are_refused(rows: list[int], stride: int, message: str) -> None:
    with pytest.raises(TableError, match=message):
        forwarding(rows, stride)


def test_checksum_is_right_for_every_length_and_many_hops() -> None:
    choose = random.Random(3)
    plan = forwarding()
    for _ in range(300):
        packet = ipv4() / TCP(dport=80) / Raw(bytes(choose.randrange(1400)))
        _, sent = run(plan, packet)
        assert sent is not None
        header = sent[14:34]
        total = sum(int.from_bytes(header[i : i + 2], "big") for i in range(0, 20, 2))
        while total >> 16:
            total = (total & 0xFFFF) + (total >> 16)
        assert total == 0xFFFF
