"""Inner packets for the agent's tests, small and with right lengths and header checksums."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, ip_address

from glb.wire.checksum import internet_checksum, ipv4_header
from glb.wire.gue import encapsulate

FIN, SYN, RST, ACK = 0x01, 0x02, 0x04, 0x10
CLIENT4, VIP4 = "192.0.2.7", "198.51.100.1"
CLIENT6, VIP6 = "2001:db8:c::7", "2001:db8:51::1"
DIRECTOR, ME, NEXT, LAST = "10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4"


def addresses(family: int) -> tuple[str, str]:
    """Client and VIP."""
    return (CLIENT4, VIP4) if family == 4 else (CLIENT6, VIP6)


def ip(source: str, destination: str, protocol: int, payload: bytes, *, offset: int = 0, options: bytes = b"") -> bytes:
    """An IPv4 or IPv6 packet; `offset` is IPv4's flags and fragment offset in wire form."""
    a, b = ip_address(source), ip_address(destination)
    if isinstance(a, IPv4Address) and isinstance(b, IPv4Address):
        return ipv4_header(a, b, protocol, len(payload), flags_and_offset=offset, options=options) + payload
    return struct.pack(">IHBB", 6 << 28, len(payload), protocol, 64) + a.packed + b.packed + payload


def tcp(flags: int, *, seq: int = 1000, ack: int = 2000, source_port: int = 4711, port: int = 80) -> bytes:
    return struct.pack(">HHIIBBHHH", source_port, port, seq, ack, 0x50, flags, 1024, 0, 0)


def from_client(family: int, flags: int, **fields: int) -> bytes:
    """A TCP segment of the client's flow to the VIP."""
    return ip(*addresses(family), 6, tcp(flags, **fields))


def udp(family: int) -> bytes:
    return ip(*addresses(family), 17, struct.pack(">HHHH", 4711, 80, 8, 0))


def icmp(family: int, kind: int, body: bytes, *, source: str | None = None) -> bytes:
    """An ICMP or ICMPv6 message from a router or the client to the VIP."""
    client, vip = addresses(family)
    message = struct.pack(">BBHI", kind, 0, 0, 0) + body
    message = message[:2] + struct.pack(">H", internet_checksum(message)) + message[4:]
    return ip(source or client, vip, 1 if family == 4 else 58, message)


def quoted(family: int, protocol: int = 6, payload: bytes | None = None, *, source: str | None = None) -> bytes:
    """What an ICMP error quotes: the start of a packet from the VIP to the client."""
    client, vip = addresses(family)
    ports = struct.pack(">HHI", 80, 4711, 0) if payload is None else payload
    return ip(source or vip, client, protocol, ports)


def tunnel(inner: bytes, hops: tuple[str, ...] = (NEXT,), **fields: object) -> bytes:
    """A tunnel packet to this host with further `hops`."""
    return encapsulate(inner, DIRECTOR, [ME, *hops], **fields)  # type: ignore[arg-type]


def ipv6_extensions(count: int, protocol: int, payload: bytes) -> bytes:
    """An IPv6 packet to the VIP with `count` destination options headers in front of the payload."""
    numbers = [60] * count + [protocol]
    chain = b"".join(bytes([number, 0, 1, 4, 0, 0, 0, 0]) for number in numbers[1:])
    return ip(CLIENT6, VIP6, numbers[0], chain + payload)


def ipv6_fragment(offset: int, more: bool, payload: bytes) -> bytes:
    header = struct.pack(">BBHI", 6, 0, offset | more, 77)
    return ip(CLIENT6, VIP6, 44, header + payload)


def with_length(packet: bytes, length: int) -> bytes:
    """A tunnel packet cut to `length` bytes whose outer IPv4 and UDP lengths and checksum say so."""
    cut = bytearray(packet[:length])
    cut[2:4] = struct.pack(">H", length)
    cut[24:26] = struct.pack(">H", length - 20)
    return with_header_checksum(bytes(cut))


def with_header_checksum(packet: bytes) -> bytes:
    """An IPv4 packet with the right header checksum; the length nibble is believed."""
    header = packet[: (packet[0] & 0x0F) * 4]
    checksum = internet_checksum(header[:10] + b"\0\0" + header[12:])
    return packet[:10] + struct.pack(">H", checksum) + packet[12:]
