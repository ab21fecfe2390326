"""The Internet checksum (RFC 1071) and headers that carry one. Pure functions over bytes."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address

Address = IPv4Address | IPv6Address


def internet_checksum(data: bytes) -> int:
    """One's complement of the one's-complement sum of 16-bit big-endian words; an odd last byte is a high half.

    Over data that holds its own right checksum the result is 0.
    """
    if len(data) % 2:
        data += b"\0"
    total: int = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def pseudo_header(source: Address, destination: Address, protocol: int, length: int) -> bytes:
    """What TCP, UDP and ICMPv6 checksums cover besides their segment (RFC 793, RFC 8200 section 8.1)."""
    if source.version == 4:
        return source.packed + destination.packed + struct.pack(">BBH", 0, protocol, length)
    return source.packed + destination.packed + struct.pack(">II", length, protocol)


def udp_checksum(source: Address, destination: Address, segment: bytes) -> int:
    """Checksum of a UDP segment whose checksum field is 0; never 0, which would mean "none" (RFC 768)."""
    return internet_checksum(pseudo_header(source, destination, 17, len(segment)) + segment) or 0xFFFF


def ipv4_header(
    source: IPv4Address,
    destination: IPv4Address,
    protocol: int,
    payload_length: int,
    *,
    ttl: int = 64,
    identification: int = 0,
    flags_and_offset: int = 0x4000,
    tos: int = 0,
    options: bytes = b"",
) -> bytes:
    """An IPv4 header with its checksum.

    `flags_and_offset` in wire form (0x4000 = don't fragment); `options`: a multiple of 4 bytes.
    """
    words = 5 + len(options) // 4
    front = struct.pack(
        ">BBHHHBBH",
        0x40 | words,
        tos,
        words * 4 + payload_length,
        identification,
        flags_and_offset,
        ttl,
        protocol,
        0,
    )
    header = front + source.packed + destination.packed + options
    return header[:10] + struct.pack(">H", internet_checksum(header)) + header[12:]
