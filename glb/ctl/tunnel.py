"""The bytes in front of a packet that a director sends, with every field named (docs/protocol/gue.md)."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address

from glb.table.explain import Explanation, Flow
from glb.table.fields import Address
from glb.wire.gue import (
    GUE_BASE_BYTES,
    GUE_PRIVATE_BYTES,
    IPV4_BYTES,
    PROTO_IPIP,
    SOURCE_PORT_BASE,
    UDP_BYTES,
    encapsulate,
    parse_tunnel,
)

_SHORTEST_L4_BYTES = {6: 20, 17: 8, 1: 8, 58: 8}  # TCP, UDP, ICMP, ICMPv6
_SHORTEST_IP_BYTES = {4: 20, 6: 40}


@dataclass(frozen=True, slots=True)
class FrontField:
    """Some bytes of the front, and what they say."""

    offset: int  # from the outer IPv4 header on
    bytes: bytes
    name: str
    value: str


def shortest_inner(flow: Flow) -> int:
    """Bytes of the smallest packet of a flow, its IP header included: no options, no payload."""
    return _SHORTEST_IP_BYTES[flow.destination.version] + _SHORTEST_L4_BYTES[flow.proto]


def front_of(found: Explanation, flow: Flow, source: IPv4Address, inner_bytes: int) -> bytes | None:
    """Outer IPv4, UDP and GUE headers as a director sends them; None where a hop has no IPv4 address.

    source: the director's outbound_src_ip; inner_bytes: length of the received packet from its IP header on. The UDP
    source port of an echo request, which depends on each packet, is left at its lowest.
    """
    hops = [hop.address for hop in found.hops]
    if not all(isinstance(hop, IPv4Address) for hop in hops):
        return None
    inner = bytes([flow.destination.version << 4]) + bytes(inner_bytes - 1)
    port = SOURCE_PORT_BASE if found.source_port is None else found.source_port
    packet = encapsulate(inner, source, [str(hop) for hop in hops], source_port=port)
    return packet[: len(packet) - inner_bytes]


def front_fields(front: bytes, inner_bytes: int) -> list[FrontField]:
    """The front, field by field."""
    packet = parse_tunnel(front + bytes(inner_bytes))
    inside = "IPv4" if packet.gue.protocol == PROTO_IPIP else "IPv6"
    n_hops = len(packet.gue.hops)
    udp, gue = IPV4_BYTES, IPV4_BYTES + UDP_BYTES
    private = gue + GUE_BASE_BYTES
    spans: list[tuple[int, int, str, str]] = [
        (0, 2, "IPv4 version, header length, TOS", "4, 5 words, 0"),
        (2, 2, "IPv4 total length", str(len(front) + inner_bytes)),
        (4, 4, "IPv4 identification, flags, offset", "0, do not fragment, 0"),
        (8, 1, "IPv4 TTL", str(packet.ttl)),
        (9, 1, "IPv4 protocol", "UDP"),
        (10, 2, "IPv4 header checksum", "correct"),  # parse_tunnel has verified it
        (12, 4, "IPv4 source", f"{packet.source} (outbound_src_ip)"),
        (16, 4, "IPv4 destination", f"{packet.destination} (the primary)"),
        (udp, 2, "UDP source port", str(packet.source_port)),
        (udp + 2, 2, "UDP destination port", str(packet.port)),
        (udp + 4, 2, "UDP length", str(len(front) + inner_bytes - udp)),
        (udp + 6, 2, "UDP checksum", "none"),
        (gue, 1, "GUE version, C bit, header length", f"0, 0, {1 + n_hops} words"),
        (gue + 1, 1, "GUE protocol", f"{inside} inside"),
        (gue + 2, 2, "GUE flags", "none"),
        (private, 2, "private data type", "0, a list of hops"),
        (private + 2, 1, "next hop", str(packet.gue.next_hop)),
        (private + 3, 1, "hop count", str(n_hops)),
    ]
    at = private + GUE_PRIVATE_BYTES
    spans += [(at + 4 * place, 4, f"hop {place}", str(hop)) for place, hop in enumerate(packet.gue.hops)]
    return [FrontField(offset, front[offset : offset + length], name, value) for offset, length, name, value in spans]


def hashed_fields(flow: Flow, names: tuple[str, ...]) -> list[tuple[str, str, bytes]]:
    """(field, its value, its bytes), in the order in which they are hashed."""
    from glb.table.explain import hash_input

    values: dict[str, Address | int] = {
        "src_addr": flow.source,
        "dst_addr": flow.destination,
        "src_port": flow.source_port,
        "dst_port": flow.destination_port,
    }
    return [(name, str(values[name]), hash_input(flow, [name])) for name in names]
