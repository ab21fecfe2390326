"""Inner packets that a proxy's own stack answers, of any size: for finding out how large tunnel packets may be.

An *echo* is answered by the first hop: agents accept ICMP. A *stray* is a TCP segment of a flow that nobody has: it is
bounced along its hops, and the last one's stack answers with a reset. Both carry a key that their answer repeats.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Literal

from glb.wire.checksum import Address, internet_checksum, ipv4_header, pseudo_header
from glb.wire.gue import IPV4_BYTES, PROTO_ICMP, PROTO_ICMPV6, PROTO_TCP, PROTO_UDP

IPV6_BYTES = 40
LEAST_INNER_BYTES = 100  # room for every header and key here, and small enough for every link

_MAGIC = b"glb?"
_ICMP_BYTES = 8
_TCP_BYTES = 20
_ECHO_REQUEST = {4: (PROTO_ICMP, 8, 0), 6: (PROTO_ICMPV6, 128, 129)}  # version -> protocol, request, reply
_UNREACHABLE, _TOO_BIG = 3, 4  # ICMPv4 type and code
_ACK, _RST = 0x10, 0x04


@dataclass(frozen=True, slots=True)
class Answer:
    """A packet that came back. `key`: of the probe; of an error about one, the proxy that it was sent to."""

    kind: Literal["echo", "reset", "too_big"]
    source: Address  # a VIP; of an error the router
    key: int = 0
    destination: Address | None = None
    mtu_bytes: int = 0  # that the router states; 0 from a very old one


def echo(source: Address, vip: Address, key: int, length: int) -> bytes:
    """An echo request from `source` to `vip` of `length` bytes, IP header included. `key`: 32 bits."""
    protocol, request, _ = _ECHO_REQUEST[vip.version]
    header = IPV4_BYTES if vip.version == 4 else IPV6_BYTES
    payload = (_MAGIC + struct.pack(">I", key)).ljust(length - header - _ICMP_BYTES, b"\0")
    message = struct.pack(">BBHHH", request, 0, 0, key >> 16, key & 0xFFFF) + payload
    covered = message if vip.version == 4 else pseudo_header(source, vip, protocol, len(message)) + message
    message = message[:2] + struct.pack(">H", internet_checksum(covered)) + message[4:]
    return _packet(source, vip, protocol, message)


def stray(source: Address, vip: Address, port: int, key: int, length: int) -> bytes:
    """A TCP segment of `length` bytes with ACK, from `source` to a port of `vip`; it acknowledges the number `key`."""
    header = IPV4_BYTES if vip.version == 4 else IPV6_BYTES
    front = struct.pack(">HHIIBBHHH", 0x8000 | key & 0x7FFF, port, key, key, _TCP_BYTES << 2, _ACK, 1024, 0, 0)
    segment = front.ljust(length - header, b"\0")
    checksum = internet_checksum(pseudo_header(source, vip, PROTO_TCP, len(segment)) + segment)
    segment = segment[:16] + struct.pack(">H", checksum) + segment[18:]
    return _packet(source, vip, PROTO_TCP, segment)


def read_answer(packet: bytes) -> Answer | None:
    """Bytes from an IP header on, perhaps cut short, into the answer that they are; None for anything else."""
    try:
        return _read_ipv4(packet) if packet[0] >> 4 == 4 else _read_ipv6(packet)
    except (struct.error, IndexError, ValueError):
        return None


def _packet(source: Address, destination: Address, protocol: int, payload: bytes) -> bytes:
    if isinstance(source, IPv4Address) and isinstance(destination, IPv4Address):
        return ipv4_header(source, destination, protocol, len(payload)) + payload
    return struct.pack(">IHBB", 6 << 28, len(payload), protocol, 64) + source.packed + destination.packed + payload


def _read_ipv4(packet: bytes) -> Answer | None:
    at = (packet[0] & 0x0F) * 4
    source = IPv4Address(packet[12:16])
    if struct.unpack_from(">H", packet, 6)[0] & 0x1FFF:
        return None  # a later fragment
    if packet[9] == PROTO_ICMP and packet[at : at + 2] == bytes((_UNREACHABLE, _TOO_BIG)):
        quoted = packet[at + _ICMP_BYTES :]
        if quoted[9] != PROTO_UDP:
            return None
        (mtu,) = struct.unpack_from(">H", packet, at + 6)
        return Answer("too_big", source, destination=IPv4Address(quoted[16:20]), mtu_bytes=mtu)
    return _read_transport(packet, at, packet[9], source)


def _read_ipv6(packet: bytes) -> Answer | None:
    return _read_transport(packet, IPV6_BYTES, packet[6], IPv6Address(packet[8:24]))


def _read_transport(packet: bytes, at: int, protocol: int, source: Address) -> Answer | None:
    echo_protocol, _, reply = _ECHO_REQUEST[source.version]
    if protocol == echo_protocol and packet[at] == reply:
        magic, key = struct.unpack_from(">4sI", packet, at + _ICMP_BYTES)
        return Answer("echo", source, key) if magic == _MAGIC else None
    if protocol == PROTO_TCP and packet[at + 13] & _RST:
        return Answer("reset", source, struct.unpack_from(">I", packet, at + 4)[0])
    return None
