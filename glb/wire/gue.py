"""The tunnel packet (outer IPv4, UDP, GUE with the hop list, inner packet), built from values and parsed to values.

The format is drawn in docs/protocol/gue.md. This is the plain version for probes, tests and explanations; packets in
bulk are built by `glb/_fastpath.pyx` and read by `proxy_agent/_tunnel.pxd`.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address

from glb.wire.checksum import internet_checksum, ipv4_header, udp_checksum

# The same numbers as bpf/glb_protocol.h; tests/unit/test_constants.py holds the two together.
GUE_PORT = 19523  # UDP destination port
GUE_BASE_BYTES = 4  # version/control/hlen, protocol, flags
GUE_PRIVATE_BYTES = 4  # private data type, next hop, hop count
SOURCE_PORT_BASE = 0x8000  # UDP source ports are 0x8000 | 15 bits of hash
OUTER_TTL = 64
MAX_HOPS = 4  # of one row of a table, the outer destination included
MAX_GUE_HOPS = 30  # that the header can list: hlen is 5 bits
PROTO_ICMP = 1
PROTO_IPIP = 4
PROTO_TCP = 6
PROTO_UDP = 17
PROTO_IPV6 = 41
PROTO_ICMPV6 = 58
ETH_P_IP = 0x0800
ETH_P_IPV6 = 0x86DD
ETH_P_8021Q = 0x8100  # VLAN tag
ETH_P_8021AD = 0x88A8  # outer one of two

IPV4_BYTES = 20
UDP_BYTES = 8


class GueError(ValueError):
    """The bytes are not a tunnel packet of this protocol; the message names the field."""


@dataclass(frozen=True)
class GueHeader:
    """GUE header with our private data. `hops`: those after the outer destination; `next_hop` indexes the next one."""

    protocol: int  # PROTO_IPIP or PROTO_IPV6
    hops: tuple[IPv4Address, ...] = ()
    next_hop: int = 0

    def __post_init__(self) -> None:
        if self.protocol not in (PROTO_IPIP, PROTO_IPV6):
            raise GueError(f"protocol is {self.protocol}: expected {PROTO_IPIP} (IPv4) or {PROTO_IPV6} (IPv6)")
        if len(self.hops) > MAX_GUE_HOPS:
            raise GueError(f"{len(self.hops)} hops: the header has room for {MAX_GUE_HOPS}")
        if not 0 <= self.next_hop <= len(self.hops):
            raise GueError(f"next hop is {self.next_hop}: there are {len(self.hops)} hops")

    def pack(self) -> bytes:
        """Wire form: 8 bytes and 4 for each hop."""
        n = len(self.hops)
        front = struct.pack(">BBHHBB", 1 + n, self.protocol, 0, 0, self.next_hop, n)
        return front + b"".join(hop.packed for hop in self.hops)


@dataclass(frozen=True)
class TunnelPacket:
    """A whole tunnel packet as values."""

    source: IPv4Address
    destination: IPv4Address
    source_port: int
    gue: GueHeader
    inner: bytes  # IPv4 or IPv6 packet, by gue.protocol
    port: int = GUE_PORT
    ttl: int = OUTER_TTL
    udp_checksum: bool = False  # send one (the director sends none)

    def pack(self) -> bytes:
        """Bytes from the outer IPv4 header on. GueError when they would not fit an IPv4 packet."""
        payload = self.gue.pack() + self.inner
        length = UDP_BYTES + len(payload)
        if IPV4_BYTES + length > 0xFFFF:
            raise GueError(f"{IPV4_BYTES + length} bytes: an IPv4 packet has at most 65535")
        udp = struct.pack(">HHHH", self.source_port, self.port, length, 0)
        if self.udp_checksum:
            checksum = udp_checksum(self.source, self.destination, udp + payload)
            udp = udp[:6] + struct.pack(">H", checksum)
        return ipv4_header(self.source, self.destination, PROTO_UDP, length, ttl=self.ttl) + udp + payload


def encapsulate(
    inner: bytes,
    source: str | IPv4Address,
    hops: Sequence[str | IPv4Address],
    *,
    source_port: int = SOURCE_PORT_BASE,
    next_hop: int = 0,
    port: int = GUE_PORT,
    ttl: int = OUTER_TTL,
    udp_checksum: bool = False,
) -> bytes:
    """A tunnel packet with `inner` to the first of `hops`, the others listed in it: what a director sends.

    `inner`: an IPv4 or IPv6 packet. `hops`: at least one address. Returns the bytes from the outer IPv4 header on.
    """
    if not inner or inner[0] >> 4 not in (4, 6):
        raise GueError("the inner packet is neither IPv4 nor IPv6")
    first, *rest = (IPv4Address(hop) for hop in hops)
    protocol = PROTO_IPIP if inner[0] >> 4 == 4 else PROTO_IPV6
    header = GueHeader(protocol, tuple(rest), next_hop)
    return TunnelPacket(
        IPv4Address(source), first, source_port, header, inner, port=port, ttl=ttl, udp_checksum=udp_checksum
    ).pack()


def parse_gue(payload: bytes) -> tuple[GueHeader, bytes]:
    """A UDP payload into the GUE header and the bytes after it. GueError names what is not ours."""
    if len(payload) < GUE_BASE_BYTES + GUE_PRIVATE_BYTES:
        raise GueError(f"{len(payload)} bytes: the GUE header has at least {GUE_BASE_BYTES + GUE_PRIVATE_BYTES}")
    front, protocol, flags, private_type, next_hop, n_hops = struct.unpack_from(">BBHHBB", payload)
    if front >> 5:
        raise GueError(f"version and C bit are {front >> 5:03b}: expected 000")
    if flags:
        raise GueError(f"flags are {flags:#06x}: expected 0")
    if private_type:
        raise GueError(f"private data type is {private_type}: expected 0")
    if front & 0x1F != 1 + n_hops:
        raise GueError(f"header length is {front & 0x1F} words: expected {1 + n_hops} for {n_hops} hops")
    end = GUE_BASE_BYTES + GUE_PRIVATE_BYTES + 4 * n_hops
    if len(payload) < end:
        raise GueError(f"{len(payload)} bytes: {n_hops} hops need {end}")
    hops = tuple(IPv4Address(payload[at : at + 4]) for at in range(8, end, 4))
    return GueHeader(protocol, hops, next_hop), payload[end:]


def parse_tunnel(packet: bytes, port: int = GUE_PORT) -> TunnelPacket:
    """Bytes from the outer IPv4 header on into values; padding behind the packet is left out.

    A UDP checksum that is sent is verified. GueError says what is wrong.
    """
    if len(packet) < IPV4_BYTES or packet[0] >> 4 != 4:
        raise GueError("no IPv4 header")
    header_length = (packet[0] & 0x0F) * 4
    (total,) = struct.unpack_from(">H", packet, 2)
    if header_length < IPV4_BYTES or total > len(packet) or total < header_length + UDP_BYTES:
        raise GueError(f"header of {header_length} and packet of {total} bytes do not fit in {len(packet)}")
    if internet_checksum(packet[:header_length]):
        raise GueError("wrong IPv4 header checksum")
    if struct.unpack_from(">H", packet, 6)[0] & 0x3FFF:
        raise GueError("a fragment")
    if packet[9] != PROTO_UDP:
        raise GueError(f"protocol {packet[9]}: expected UDP")
    source_port, destination_port, length, checksum = struct.unpack_from(">HHHH", packet, header_length)
    if destination_port != port:
        raise GueError(f"UDP port {destination_port}: expected {port}")
    if not UDP_BYTES <= length <= total - header_length:
        raise GueError(f"UDP length {length} in {total - header_length} bytes")
    source, destination = IPv4Address(packet[12:16]), IPv4Address(packet[16:20])
    segment = packet[header_length : header_length + length]
    if checksum and udp_checksum(source, destination, segment[:6] + b"\0\0" + segment[8:]) != checksum:
        raise GueError("wrong UDP checksum")
    gue, inner = parse_gue(segment[UDP_BYTES:])
    return TunnelPacket(source, destination, source_port, gue, inner, port, packet[8], bool(checksum))
