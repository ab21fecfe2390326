"""The tunnel packet in Python: the same bytes as the reference's, and refusals that name the field."""

from __future__ import annotations

import json
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from glb.wire.checksum import ipv4_header
from glb.wire.gue import (
    MAX_GUE_HOPS,
    PROTO_IPIP,
    PROTO_IPV6,
    GueError,
    GueHeader,
    TunnelPacket,
    encapsulate,
    parse_gue,
    parse_tunnel,
)

VECTORS = Path(__file__).parents[1] / "vectors" / "reference" / "packets.jsonl"
INNER4 = ipv4_header(IPv4Address("192.0.2.7"), IPv4Address("198.51.100.1"), 6, 4) + b"data"
INNER6 = bytes([0x60]) + bytes(39)


def reference_packets() -> list[tuple[str, bytes]]:
    """Every tunnel packet that the reference's XDP program made, from the outer IPv4 header on."""
    found = []
    for line in VECTORS.read_text().splitlines():
        vector = json.loads(line)
        if vector["xdp"]["action"] == "tx":
            outer, received = bytes.fromhex(vector["xdp"]["outer"]), bytes.fromhex(vector["frame"])
            found.append((vector["id"], (outer + received[14:])[14:]))
    return found


def test_reference_packets_parse_and_pack_to_the_same_bytes() -> None:
    n_whole = 0
    for name, packet in reference_packets():
        try:
            parsed = parse_tunnel(packet)
        except GueError:
            continue  # lengths that lie, and the checksum that the reference folds once only
        n_whole += 1
        assert parsed.pack() == packet[: len(parsed.pack())], name
    assert n_whole > 500


@pytest.mark.parametrize("n_hops", [1, 2, 3, 4, 1 + MAX_GUE_HOPS])
@pytest.mark.parametrize("inner", [INNER4, INNER6], ids=["ipv4", "ipv6"])
@pytest.mark.parametrize("udp_checksum", [False, True], ids=["plain", "checksum"])
def test_what_is_packed_parses_to_the_same_values(inner: bytes, n_hops: int, udp_checksum: bool) -> None:
    hops = [f"10.0.0.{i}" for i in range(1, n_hops + 1)]
    packet = encapsulate(inner, "10.0.9.9", hops, source_port=0x8123, udp_checksum=udp_checksum)
    assert len(packet) == 36 + 4 * (n_hops - 1) + len(inner)
    protocol = PROTO_IPIP if inner is INNER4 else PROTO_IPV6
    gue = GueHeader(protocol, tuple(map(IPv4Address, hops[1:])))
    parsed = TunnelPacket(IPv4Address("10.0.9.9"), IPv4Address(hops[0]), 0x8123, gue, inner, udp_checksum=udp_checksum)
    assert parse_tunnel(packet) == parsed
    assert parse_tunnel(packet + b"padding") == parsed


def test_every_cut_is_refused() -> None:
    packet = encapsulate(INNER4, "10.0.0.1", ["10.0.0.2", "10.0.0.3"])
    for length in range(len(packet)):
        with pytest.raises(GueError):
            parse_tunnel(packet[:length])


@pytest.mark.parametrize(
    "at, value, message",
    [
        (0, 0x22, "version and C bit are 001"),
        (0, 0x42, "version and C bit are 010"),
        (0, 0x03, "header length is 3 words: expected 2 for 1 hops"),
        (1, 0x06, "protocol is 6"),
        (2, 0x80, "flags are 0x8000"),
        (5, 0x01, "private data type is 1"),
        (6, 0x02, "next hop is 2: there are 1 hops"),
        (7, 0x02, "header length is 2 words: expected 3 for 2 hops"),
    ],
)
def test_header_that_is_not_ours_is_refused_by_field(at: int, value: int, message: str) -> None:
    header = bytearray(GueHeader(PROTO_IPIP, (IPv4Address("10.0.0.3"),)).pack() + INNER4)
    header[at] = value
    with pytest.raises(GueError, match=message):
        parse_gue(bytes(header))


@pytest.mark.parametrize(
    "at, message", [(0, "no IPv4"), (10, "checksum"), (20, None), (22, "port"), (26, "UDP checksum")]
)
def test_damaged_outer_headers_are_refused(at: int, message: str | None) -> None:
    packet = bytearray(encapsulate(INNER4, "10.0.0.1", ["10.0.0.2"], udp_checksum=True))
    packet[at] ^= 0x10
    with pytest.raises(GueError, match=message):
        parse_tunnel(bytes(packet))


def test_values_that_no_header_can_hold_are_refused() -> None:
    hop = IPv4Address("10.0.0.1")
    with pytest.raises(GueError, match="room for 30"):
        GueHeader(PROTO_IPIP, (hop,) * 31)
    with pytest.raises(GueError, match="next hop is 2"):
        GueHeader(PROTO_IPIP, (hop,), 2)
    with pytest.raises(GueError, match="neither IPv4 nor IPv6"):
        encapsulate(b"\x50", "10.0.0.1", ["10.0.0.2"])
    with pytest.raises(GueError, match="at most 65535"):
        encapsulate(INNER4 + bytes(65500), "10.0.0.1", ["10.0.0.2"])
