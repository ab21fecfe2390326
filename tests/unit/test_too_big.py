"""Answers to packets that are too big for the tunnel: read by scapy, limited, and never sent to the wrong."""

from __future__ import annotations

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_NOP
from scapy.layers.inet6 import ICMPv6DestUnreach, ICMPv6EchoRequest, ICMPv6PacketTooBig, IPv6, IPv6ExtHdrFragment
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw
from scene import CLIENT, CLIENT6, OVERHEAD, VIP, VIP6, ethernet, forwarding, ipv4, ipv6

from glb._fastpath import Forwarding

BIG = Raw(bytes(range(256)) * 6)  # 1536 bytes


def answer_to(plan: Forwarding, packet: Packet) -> Packet | None:
    """What is sent to a packet that must be too big."""
    ((verdict, sent),) = plan.encapsulate([bytes(packet)], plan.new_counters())
    assert verdict == "too_big"
    return None if sent is None else Ether(sent)


def rebuilt(packet: Packet) -> bytes:
    """The packet with every checksum and length computed by scapy."""
    copy = packet.copy()
    fields = {IP: ("chksum", "len"), ICMP: ("chksum",), IPv6: ("plen",), ICMPv6PacketTooBig: ("cksum",)}
    for layer in fields.keys() & set(copy.layers()):
        for name in fields[layer]:
            copy[layer].delfieldval(name)
    return bytes(copy)


@pytest.mark.parametrize("flags", ["DF", 0])
def test_ipv4_is_answered_with_fragmentation_needed(flags: object) -> None:
    packet = ipv4(flags=flags, id=77) / TCP(sport=1234, dport=80) / BIG
    answer = answer_to(forwarding(), packet)
    assert answer is not None
    assert (answer.src, answer.dst, answer.type) == ("02:00:00:00:00:01", "02:00:00:00:00:02", 0x0800)
    assert (answer[IP].src, answer[IP].dst, answer[IP].proto, answer[IP].ttl) == (VIP, CLIENT, 1, 64)
    assert (answer[ICMP].type, answer[ICMP].code, answer[ICMP].nexthopmtu) == (3, 4, 1500 - OVERHEAD)
    assert answer[IP].len == 576 and len(answer) == 14 + 576
    assert bytes(answer)[14 + 28 :] == bytes(packet)[14 : 14 + 548], "the quote is the packet as it came"
    assert rebuilt(answer)[: 14 + 28] == bytes(answer)[: 14 + 28], "checksums"


def test_ipv6_is_answered_with_packet_too_big() -> None:
    packet = ipv6() / TCP(sport=1234, dport=80) / BIG
    answer = answer_to(forwarding(), packet)
    assert answer is not None
    assert (answer.src, answer.dst, answer.type) == ("02:00:00:00:00:01", "02:00:00:00:00:02", 0x86DD)
    assert (answer[IPv6].src, answer[IPv6].dst, answer[IPv6].nh, answer[IPv6].hlim) == (VIP6, CLIENT6, 58, 64)
    assert (answer[ICMPv6PacketTooBig].code, answer[ICMPv6PacketTooBig].mtu) == (0, 1500 - OVERHEAD)
    assert len(answer) == 14 + 1280
    assert bytes(answer)[14 + 48 :] == bytes(packet)[14 : 14 + 1232]
    assert rebuilt(answer)[: 14 + 48] == bytes(answer)[: 14 + 48], "checksums"


@pytest.mark.parametrize("size", [*range(101, 110), 547, 548, 549, 550])
def test_checksums_are_right_for_every_length_of_quote(size: int) -> None:
    packet = ipv4() / UDP(dport=80, sport=9) / Raw(bytes(range(7, 256)) * 3)
    packet[Raw].load = packet[Raw].load[: size - 28]
    answer = answer_to(forwarding(mtu_bytes=OVERHEAD + 100), packet)
    assert answer is not None and answer[IP].len == 28 + min(size, 548)
    assert rebuilt(answer)[:42] == bytes(answer)[:42]


def test_options_and_echo_requests_are_answered_and_padding_is_not_quoted() -> None:
    plan = forwarding(mtu_bytes=OVERHEAD + 100)
    for packet in (
        ipv4(options=[IPOption_NOP()] * 4) / TCP(dport=80) / Raw(bytes(100)),
        ipv4() / ICMP() / Raw(bytes(100)),
        ipv4(flags="MF") / UDP(dport=80) / Raw(bytes(100)),
    ):
        inner = bytes(packet)[14:]
        answer = answer_to(plan, Ether(bytes(packet) + b"\xee" * 9))
        assert answer is not None and bytes(answer)[42:] == inner
    assert answer_to(forwarding(), ipv6() / ICMPv6EchoRequest(data=bytes(1500))) is not None


def test_a_packet_that_just_fits_is_forwarded_and_one_byte_more_is_answered() -> None:
    plan = forwarding()
    fits = ipv4() / UDP(dport=80) / Raw(bytes(1500 - OVERHEAD - 28))
    assert plan.encapsulate([bytes(fits)], plan.new_counters())[0][0] == "forward"
    assert answer_to(plan, ipv4() / UDP(dport=80) / Raw(bytes(1500 - OVERHEAD - 27))) is not None


@pytest.mark.parametrize(
    "packet",
    [
        pytest.param(ipv4(frag=100, proto=17) / BIG, id="later fragment"),
        pytest.param(ipv6() / IPv6ExtHdrFragment(nh=17, offset=10) / BIG, id="later fragment of IPv6"),
        pytest.param(ipv4() / ICMP(type=3, code=4) / IP(src=VIP, dst=CLIENT) / TCP(sport=80) / BIG, id="ICMP error"),
        pytest.param(
            ipv6() / ICMPv6DestUnreach() / IPv6(src=VIP6, dst=CLIENT6) / TCP(sport=80) / BIG, id="ICMPv6 error"
        ),
        *(
            pytest.param(ipv4(src=source) / TCP(dport=80) / BIG, id=f"from {source}")
            for source in ("0.0.0.0", "0.1.2.3", "127.0.0.1", "224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255")
        ),
        *(
            pytest.param(ipv6(src=source) / TCP(dport=80) / BIG, id=f"from {source}")
            for source in ("::", "::1", "ff02::1")
        ),
        pytest.param(ethernet(dst="ff:ff:ff:ff:ff:ff") / IP(src=CLIENT, dst=VIP) / TCP(dport=80) / BIG, id="to all"),
        pytest.param(
            ethernet(dst="33:33:00:00:00:01") / IPv6(src=CLIENT6, dst=VIP6) / TCP(dport=80) / BIG, id="to many"
        ),
        pytest.param(ethernet(src="01:00:5e:00:00:01") / IP(src=CLIENT, dst=VIP) / TCP(dport=80) / BIG, id="from many"),
    ],
)
def test_never_answered(packet: Packet) -> None:
    plan = forwarding()
    assert answer_to(plan, packet) is None
    assert plan.counts()["answers"] == {"sent": 0, "limited": 0}


def test_no_sender_is_asked_for_packets_smaller_than_it_may_send() -> None:
    """RFC 791: 68 bytes; RFC 8200: 1280."""
    small = answer_to(forwarding(mtu_bytes=OVERHEAD + 50), ipv4() / UDP(dport=80) / Raw(bytes(100)))
    assert small is not None and small[ICMP].nexthopmtu == 68
    assert answer_to(forwarding(mtu_bytes=OVERHEAD + 50), ipv4() / UDP(dport=80) / Raw(bytes(68 - 28))) is None
    small = answer_to(forwarding(mtu_bytes=1280), ipv6() / UDP(dport=80) / Raw(bytes(1280 - 47)))
    assert small is not None and small[ICMPv6PacketTooBig].mtu == 1280
    assert answer_to(forwarding(mtu_bytes=1280), ipv6() / UDP(dport=80) / Raw(bytes(1280 - 48))) is None
    assert answer_to(forwarding(mtu_bytes=20), ipv4() / UDP(dport=80) / BIG) is not None


def test_of_a_path_whose_mtu_is_not_known_nothing_is_said() -> None:
    plan = forwarding(mtu_bytes=0xFFFF)
    assert answer_to(plan, ipv4() / UDP(dport=80) / Raw(bytes(65535 - 28))) is None


def test_the_limit_is_a_second_of_answers_and_then_their_rate() -> None:
    packet = bytes(ipv4() / UDP(dport=80) / BIG)
    plan = forwarding(answers_per_s=3)
    sent = [out for _, out in plan.encapsulate([packet] * 50, plan.new_counters()) if out is not None]
    assert len(sent) == 3
    assert plan.counts()["answers"] == {"sent": 3, "limited": 47}
    assert plan.counts()["verdicts"]["too_big"] == 50
    # Each worker has its own.
    assert plan.encapsulate([packet], plan.new_counters())[0][1] is not None
    # What is far apart at the rate is never limited.
    quick = forwarding(answers_per_s=1_000_000)
    assert all(out is not None for _, out in quick.encapsulate([packet] * 200, quick.new_counters()))


def test_a_limit_of_zero_answers_nothing() -> None:
    plan = forwarding(answers_per_s=0)
    assert answer_to(plan, ipv4() / UDP(dport=80) / BIG) is None
    assert plan.counts()["answers"] == {"sent": 0, "limited": 1}


def test_neighbours_in_the_batch_are_forwarded_as_ever() -> None:
    plan = forwarding()
    small, big = ipv4() / UDP(dport=80) / Raw(b"x"), ipv4() / UDP(dport=80) / BIG
    results = plan.encapsulate([bytes(small), bytes(big)] * 40, plan.new_counters())
    assert [verdict for verdict, _ in results] == ["forward", "too_big"] * 40
    assert len({sent for _, sent in results}) == 2
