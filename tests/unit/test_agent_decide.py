"""The verdict on each kind of tunnel packet, by rule (docs/protocol/gue.md, "Accept or bounce")."""

from __future__ import annotations

import random
import struct
import sys
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from scapy.layers.inet import IP

from glb.wire.checksum import udp_checksum
from glb.wire.gue import parse_tunnel
from proxy_agent._verdict import Settings, decide
from proxy_agent.decide import BY_NAME, REASONS, Action

sys.path.insert(0, str(Path(__file__).parent))
import agent_packets as p
from agent_packets import ACK, FIN, RST, SYN

SETTINGS = Settings([p.VIP4, p.VIP6], None, [p.ME, "127.0.0.1"])


def always(state: str):  # type: ignore[no-untyped-def]
    return lambda *flow: state


# name -> (inner packet, what the socket table says, expected reason with one hop left)
CASES: dict[str, tuple[bytes, str, str]] = {}
for family in (4, 6):
    error, other_error = (3, 12) if family == 4 else (2, 4)
    echo = 8 if family == 4 else 128
    v = f"ipv{family}"
    CASES |= {
        f"{v}-syn-is-accepted": (p.from_client(family, SYN), "none", "syn"),
        f"{v}-syn-ack-is-accepted": (p.from_client(family, SYN | ACK), "none", "syn"),
        f"{v}-syn-of-a-known-flow-is-still-a-syn": (p.from_client(family, SYN), "time_wait", "syn"),
        f"{v}-ack-unknown-bounces": (p.from_client(family, ACK), "none", "bounce"),
        f"{v}-ack-with-only-a-listener-bounces": (p.from_client(family, ACK), "listen", "bounce"),
        f"{v}-fin-unknown-bounces": (p.from_client(family, FIN | ACK), "none", "bounce"),
        f"{v}-rst-unknown-bounces": (p.from_client(family, RST), "none", "bounce"),
        f"{v}-unanswered-look-up-drops": (p.from_client(family, ACK), "unknown", "look_up_failed"),
        f"{v}-udp-is-accepted": (p.udp(family), "none", "udp"),
        f"{v}-echo-is-accepted": (p.icmp(family, echo, b"ping"), "none", "icmp"),
        f"{v}-error-about-a-known-flow": (p.icmp(family, error, p.quoted(family)), "established", "icmp_error"),
        f"{v}-error-about-an-unknown-flow-bounces": (p.icmp(family, error, p.quoted(family)), "none", "bounce"),
        f"{v}-error-of-the-other-kinds-too": (p.icmp(family, other_error, p.quoted(family)), "none", "bounce"),
        f"{v}-error-about-udp-is-accepted": (p.icmp(family, error, p.quoted(family, 17)), "none", "icmp"),
        f"{v}-error-with-3-bytes-of-ports": (p.icmp(family, error, p.quoted(family, 6, b"\0\x50\x12")), "none", "icmp"),
        f"{v}-error-that-quotes-nothing": (p.icmp(family, error, b""), "none", "icmp"),
        f"{v}-error-about-another-address-of-ours": (
            p.icmp(family, error, p.quoted(family, source="203.0.113.9" if family == 4 else "2001:db8::99")),
            "established",
            "not_vip",
        ),
        f"{v}-echo-type-that-looks-like-an-error": (
            p.icmp(family, 0 if family == 4 else 129, p.quoted(family)),
            "none",
            "icmp",
        ),
        f"{v}-gre-is-dropped": (p.ip(*p.addresses(family), 47, b"\0" * 8), "none", "unknown_protocol"),
        f"{v}-other-family's-icmp-is-dropped": (
            p.ip(*p.addresses(family), 58 if family == 4 else 1, b"\0" * 8),
            "none",
            "unknown_protocol",
        ),
        f"{v}-tcp-header-cut-short": (p.ip(*p.addresses(family), 6, p.tcp(SYN)[:19]), "none", "malformed"),
        f"{v}-udp-header-cut-short-is-udp": (p.ip(*p.addresses(family), 17, b"\0" * 3), "none", "udp"),
        f"{v}-icmp-cut-short-is-icmp": (p.ip(*p.addresses(family), 1 if family == 4 else 58, b"\x03"), "none", "icmp"),
        f"{v}-other-destination": (
            p.ip(p.CLIENT4, "10.0.0.2", 6, p.tcp(SYN)) if family == 4 else p.ip(p.CLIENT6, "fd00::2", 6, p.tcp(SYN)),
            "established",
            "not_vip",
        ),
    }
    for state in (
        "established",
        "syn_sent",
        "syn_recv",
        "fin_wait1",
        "fin_wait2",
        "time_wait",
        "close_wait",
        "last_ack",
        "closing",
    ):
        CASES[f"{v}-ack-with-a-socket-in-{state}"] = (p.from_client(family, ACK), state, "established")
CASES |= {
    "ipv4-options-are-skipped": (
        p.ip(p.CLIENT4, p.VIP4, 6, p.tcp(ACK), options=b"\1" * 40),
        "established",
        "established",
    ),
    "ipv4-first-fragment-is-as-if-whole": (p.ip(p.CLIENT4, p.VIP4, 6, p.tcp(ACK), offset=0x2000), "none", "bounce"),
    "ipv4-later-fragment-is-accepted": (p.ip(p.CLIENT4, p.VIP4, 6, p.tcp(ACK), offset=0x0001), "none", "fragment"),
    "ipv4-later-fragment-of-any-protocol": (p.ip(p.CLIENT4, p.VIP4, 47, b"x", offset=0x2010), "none", "fragment"),
    "ipv4-error-about-a-later-fragment": (
        p.icmp(4, 3, p.ip(p.VIP4, p.CLIENT4, 6, p.tcp(0), offset=0x0100)),
        "none",
        "icmp",
    ),
    "ipv4-error-quoting-options": (
        p.icmp(4, 11, p.ip(p.VIP4, p.CLIENT4, 6, p.tcp(0, source_port=80, port=4711), options=b"\1" * 8)),
        "none",
        "bounce",
    ),
    "ipv6-eight-extension-headers-are-walked": (p.ipv6_extensions(8, 6, p.tcp(SYN)), "none", "syn"),
    "ipv6-nine-are-too-many": (p.ipv6_extensions(9, 6, p.tcp(SYN)), "none", "unknown_protocol"),
    "ipv6-extension-header-cut-short": (p.ip(p.CLIENT6, p.VIP6, 0, bytes([6, 1]) + bytes(8)), "none", "malformed"),
    "ipv6-hop-by-hop-and-routing": (
        p.ip(p.CLIENT6, p.VIP6, 0, bytes([43, 1]) + bytes(14) + bytes([6, 0]) + bytes(6) + p.tcp(ACK)),
        "established",
        "established",
    ),
    "ipv6-no-next-header-is-dropped": (p.ip(p.CLIENT6, p.VIP6, 59, b""), "none", "unknown_protocol"),
    "ipv6-first-fragment-is-as-if-whole": (p.ipv6_fragment(0, True, p.tcp(ACK)), "none", "bounce"),
    "ipv6-later-fragment-is-accepted": (p.ipv6_fragment(1232, False, b"rest"), "none", "fragment"),
    "ipv6-error-quoting-an-extension-header": (
        p.icmp(6, 1, p.ip(p.VIP6, p.CLIENT6, 60, bytes([6, 0]) + bytes(6) + p.tcp(0, source_port=80, port=4711))),
        "none",
        "bounce",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_verdict(name: str) -> None:
    inner, state, expected = CASES[name]
    packet = p.tunnel(inner)
    verdict = decide(packet, SETTINGS, always(state))
    assert verdict.reason == expected
    if verdict.action is Action.ACCEPT:
        assert verdict.packet == inner
    elif verdict.action is Action.BOUNCE:
        assert parse_tunnel(verdict.packet).inner == inner
    else:
        assert verdict.packet == b""


@pytest.mark.parametrize("name", CASES)
def test_trailing_padding_changes_nothing(name: str) -> None:
    inner, state, _ = CASES[name]
    packet = p.tunnel(inner)
    assert decide(packet + b"\xff" * 60, SETTINGS, always(state)) == decide(packet, SETTINGS, always(state))


@pytest.mark.parametrize("name", CASES)
def test_packet_cut_at_any_byte_is_dropped(name: str) -> None:
    packet = p.tunnel(CASES[name][0])
    for length in range(len(packet)):
        assert decide(packet[:length], SETTINGS, always("established")).reason == "outer_malformed"


@pytest.mark.parametrize("name", CASES)
def test_packet_cut_at_any_byte_with_honest_outer_lengths_is_dropped(name: str) -> None:
    packet = p.tunnel(CASES[name][0])
    for length in range(28, len(packet)):
        verdict = decide(p.with_length(packet, length), SETTINGS, always("established"))
        assert verdict.reason == ("gue_malformed" if length < 40 else "malformed")


def test_look_up_is_asked_for_the_flow_as_this_host_sees_it() -> None:
    asked = []

    def sockets(*flow: object) -> str:
        asked.append(flow)
        return "none"

    for family in (4, 6):
        decide(p.tunnel(p.from_client(family, ACK)), SETTINGS, sockets)
        decide(p.tunnel(p.icmp(family, 3, p.quoted(family), source=p.addresses(family)[0])), SETTINGS, sockets)
    packed = {4: (bytes([198, 51, 100, 1]), bytes([192, 0, 2, 7])), 6: ()}
    assert asked[0] == asked[1] == (4, packed[4][0], 80, packed[4][1], 4711)
    assert asked[2] == asked[3]
    assert asked[2][0] == 6 and asked[2][2] == 80 and asked[2][4] == 4711


# -- outer headers -----------------------------------------------------------------------------------------------------

GOOD = p.tunnel(p.from_client(4, SYN))


def checksummed(packet: bytearray) -> bytes:
    return p.with_header_checksum(bytes(packet))


OUTER = {
    "empty": (0, b"", "outer_malformed"),
    "version-6": (0, b"\x65", "outer_malformed"),
    "header-length-16": (0, b"\x44", "outer_malformed"),
    "total-length-beyond-the-packet": (2, b"\xff\xff", "outer_malformed"),
    "total-length-below-the-headers": (2, b"\0\x1b", "outer_malformed"),
    "not-udp": (9, b"\x06", "outer_malformed"),
    "more-fragments": (6, b"\x20\0", "outer_fragment"),
    "later-fragment": (6, b"\0\x01", "outer_fragment"),
    "udp-length-7": (24, b"\0\x07", "outer_malformed"),
    "udp-length-beyond-the-packet": (24, b"\xff\xff", "outer_malformed"),
    "gue-version-1": (28, b"\x42", "gue_malformed"),
    "gue-control-bit": (28, b"\x22", "gue_malformed"),
    "gue-header-length-does-not-fit-hop-count": (28, b"\x03", "gue_malformed"),
    "gue-protocol-tcp": (29, b"\x06", "gue_malformed"),
    "gue-flags": (30, b"\0\x01", "gue_malformed"),
    "gue-private-type": (32, b"\x01\0", "gue_malformed"),
    "gue-next-hop-beyond-the-list": (34, b"\x02", "gue_malformed"),
    "gue-hop-count-without-hops": (35, b"\xff", "gue_malformed"),
    "protocol-says-ipv6": (29, b"\x29", "malformed"),
    "inner-header-length-16": (40, b"\x44", "malformed"),
    "inner-total-length-beyond-the-packet": (42, b"\xff\xff", "malformed"),
    "inner-total-length-below-its-header": (42, b"\0\x13", "malformed"),
}


@pytest.mark.parametrize("name", OUTER)
def test_outer_fault_is_dropped_for_its_reason(name: str) -> None:
    at, value, expected = OUTER[name]
    packet = bytearray(GOOD)
    packet[at : at + len(value)] = value
    damaged = b"" if name == "empty" else checksummed(packet)
    assert decide(damaged, SETTINGS).reason == expected


def test_wrong_outer_header_checksum_is_dropped() -> None:
    assert decide(GOOD[:10] + bytes([GOOD[10] ^ 1]) + GOOD[11:], SETTINGS).reason == "outer_checksum"


def test_outer_ipv4_options_are_read_past() -> None:
    header = bytearray(GOOD[:20] + b"\1\1\1\1")
    header[0] = 0x46
    header[2:4] = struct.pack(">H", len(GOOD) + 4)
    assert decide(checksummed(header) + GOOD[20:], SETTINGS).reason == "syn"
    bounced = decide(checksummed(header) + p.tunnel(p.from_client(4, ACK))[20:], SETTINGS)
    assert parse_tunnel(bounced.packet).gue.next_hop == 1


def test_source_is_checked_before_anything_else() -> None:
    settings = Settings([p.VIP4], ["10.0.0.0/30", "172.16.0.1"])
    assert decide(GOOD, settings).reason == "syn"
    for source in (b"\x0a\0\0\x04", b"\x09\xff\xff\xff", b"\xac\x10\0\0"):
        stranger = bytearray(GOOD)
        stranger[12:16] = source
        assert decide(checksummed(stranger), settings).reason == "not_allowed"
        stranger[29] = 99  # and malformed at that
        assert decide(bytes(stranger), settings).reason == "not_allowed"


@pytest.mark.parametrize(
    "vip, inside, outside",
    [
        ("198.51.100.0/24", ["198.51.100.0", "198.51.100.255"], ["198.51.99.255", "198.51.101.0"]),
        ("198.51.100.7/32", ["198.51.100.7"], ["198.51.100.6", "198.51.100.8"]),
        ("2001:db8:0:1::/64", ["2001:db8:0:1::", "2001:db8:0:1:ffff:ffff:ffff:ffff"], ["2001:db8::", "2001:db8:0:2::"]),
        ("2001:db8::/47", ["2001:db8:1:ffff::1"], ["2001:db8:2::", "2001:db7:ffff::"]),
        ("::/1", ["7fff::"], ["8000::"]),
    ],
)
def test_vips_may_be_prefixes(vip: str, inside: list[str], outside: list[str]) -> None:
    settings = Settings([vip, "203.0.113.1", "fd00::1"])
    client = p.CLIENT4 if "." in vip else p.CLIENT6
    for address in inside:
        assert decide(p.tunnel(p.ip(client, address, 6, p.tcp(SYN))), settings).reason == "syn"
    for address in outside:
        assert decide(p.tunnel(p.ip(client, address, 6, p.tcp(SYN))), settings).reason == "not_vip"


# -- bounce ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("udp", [False, True], ids=["no-udp-checksum", "udp-checksum"])
@pytest.mark.parametrize("next_hop", [0, 1, 2])
def test_bounce_readdresses_the_packet_and_changes_nothing_else(next_hop: int, udp: bool) -> None:
    inner = p.from_client(4, ACK)
    hops = (p.NEXT, p.LAST, "10.0.0.5")
    packet = p.tunnel(inner, hops, next_hop=next_hop, udp_checksum=udp, source_port=0xBEEF, ttl=9)
    verdict = decide(packet, SETTINGS)
    assert (verdict.reason, verdict.hop) == ("bounce", next_hop)
    before, after = parse_tunnel(packet), parse_tunnel(verdict.packet)  # checks both checksums
    assert (str(after.source), str(after.destination)) == (p.ME, hops[next_hop])
    assert after.gue.next_hop == next_hop + 1
    assert after.ttl == 9  # the kernel lowers it when it forwards
    assert (after.gue.hops, after.inner, after.source_port, after.udp_checksum) == (
        before.gue.hops,
        inner,
        0xBEEF,
        udp,
    )
    assert IP(verdict.packet).src == p.ME  # an independent decoder agrees


def test_wrong_udp_checksum_stays_wrong_by_as_much() -> None:
    """It is corrected for the change, not verified, and not made right either."""
    packet = bytearray(p.tunnel(p.from_client(4, ACK), udp_checksum=True))
    packet[-1] ^= 0xFF  # damaged on the way
    after = decide(bytes(packet), SETTINGS).packet
    right = udp_checksum(IPv4Address(after[12:16]), IPv4Address(after[16:20]), after[20:26] + b"\0\0" + after[28:])
    stored = struct.unpack_from(">H", after, 26)[0]
    assert (stored - right) % 0xFFFF in (0xFF, -0xFF % 0xFFFF)  # the last byte went from 0 to 0xff, or back


@pytest.mark.parametrize(
    "hops, next_hop, expected",
    [
        ((), 0, "last_resort"),
        ((p.NEXT,), 1, "last_resort"),
        ((p.ME,), 0, "last_resort"),
        ((p.ME, "127.0.0.1"), 0, "last_resort"),
        ((p.ME, p.NEXT), 0, p.NEXT),
        ((p.NEXT, p.ME, p.LAST), 1, p.LAST),
        ((p.NEXT, p.LAST), 2, "last_resort"),
    ],
)
def test_hops_of_this_host_are_skipped(hops: tuple[str, ...], next_hop: int, expected: str) -> None:
    inner = p.from_client(4, ACK)
    verdict = decide(p.tunnel(inner, hops, next_hop=next_hop), SETTINGS)
    if expected == "last_resort":
        assert (verdict.reason, verdict.packet) == ("last_resort", inner)
    else:
        after = parse_tunnel(verdict.packet)
        assert str(after.destination) == expected
        assert after.gue.next_hop == hops.index(expected) + 1


def test_thirty_hops_are_followed_to_the_end() -> None:
    hops = tuple(f"10.1.0.{i}" for i in range(30))
    packet = p.tunnel(p.from_client(6, ACK), hops)
    for hop in hops:
        packet = decide(packet, SETTINGS).packet
        assert str(parse_tunnel(packet).destination) == hop
    assert decide(packet, SETTINGS).reason == "last_resort"


@pytest.mark.parametrize("ttl, expected", [(0, "ttl"), (1, "ttl"), (2, "bounce")])
def test_ttl_that_has_run_out_is_not_bounced(ttl: int, expected: str) -> None:
    assert decide(p.tunnel(p.from_client(4, ACK), ttl=ttl), SETTINGS).reason == expected
    assert decide(p.tunnel(p.from_client(4, ACK), ttl=ttl), SETTINGS, always("established")).reason == "established"


# -- vocabulary and fuzz -----------------------------------------------------------------------------------------------


def test_every_reason_is_told_apart_and_explained() -> None:
    assert len(BY_NAME) == len(REASONS)
    assert all(reason.meaning and reason.name.isidentifier() for reason in REASONS)
    seen = {expected for _, _, expected in CASES.values()} | {expected for *_, expected in OUTER.values()}
    elsewhere = {"syn_cookie", "last_resort", "not_allowed", "ttl", "outer_checksum", "undelivered"}
    assert seen | elsewhere == set(BY_NAME)


def test_random_bytes_never_do_more_than_get_a_reason() -> None:
    rng = random.Random(7)
    for _ in range(5_000):
        assert decide(rng.randbytes(rng.randrange(120)), SETTINGS).action is Action.DROP
