"""The Internet checksum against RFC 1071's example and scapy."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6

from glb.wire.checksum import internet_checksum, ipv4_header, udp_checksum


def test_example_of_rfc_1071() -> None:
    assert internet_checksum(bytes.fromhex("0001f203f4f5f6f7")) == 0xFFFF - 0xDDF2


def test_carry_is_folded_until_none_is_left() -> None:
    assert internet_checksum(bytes.fromhex("ffff") * 0x8000 + bytes.fromhex("0001")) == 0xFFFE


def test_odd_last_byte_is_a_high_half() -> None:
    assert internet_checksum(b"\x12\x34\x56") == internet_checksum(b"\x12\x34\x56\x00")


@pytest.mark.parametrize("options", [b"", b"\x01" * 4, b"\x01" * 40], ids=["none", "one-word", "ten-words"])
def test_ipv4_header_is_what_scapy_builds(options: bytes) -> None:
    source, destination = IPv4Address("192.0.2.1"), IPv4Address("198.51.100.7")
    ours = ipv4_header(source, destination, 17, 100, ttl=3, identification=77, tos=0xB8, options=options)
    theirs = bytes(
        IP(src=str(source), dst=str(destination), proto=17, ttl=3, id=77, tos=0xB8, flags="DF", options=options)
        / bytes(100)
    )
    assert ours == theirs[: len(ours)]
    assert internet_checksum(ours) == 0


@pytest.mark.parametrize("source, destination", [("192.0.2.1", "192.0.2.2"), ("2001:db8::1", "2001:db8::2")])
def test_udp_checksum_is_what_scapy_computes(source: str, destination: str) -> None:
    ip = IPv6 if ":" in source else IP
    address = IPv6Address if ":" in source else IPv4Address
    segment = bytes(ip(bytes(ip(src=source, dst=destination) / UDP(sport=1, dport=2) / b"odd"))[UDP])
    blank = segment[:6] + b"\0\0" + segment[8:]
    assert udp_checksum(address(source), address(destination), blank) == int.from_bytes(segment[6:8], "big")


def test_udp_checksum_is_never_zero() -> None:
    zero = IPv4Address(0)
    assert udp_checksum(zero, zero, bytes.fromhex("ffea000000080000") + b"\0\0") != 0
    sums_to_all_ones = next(
        segment
        for n in range(0x10000)
        if internet_checksum((segment := n.to_bytes(2, "big") + bytes(6)) + b"\0\x11\0\x08") == 0
    )
    assert udp_checksum(zero, zero, sums_to_all_ones) == 0xFFFF
