"""One VIP of each family on two backends, and packets to it, for the tests of the packet path."""

from __future__ import annotations

from array import array
from ipaddress import ip_network

from scapy.layers.inet import IP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from glb._fastpath import Forwarding
from glb.table.binds import compile_binds
from glb.table.config import Bind

BACKENDS = [bytes([10, 0, 0, n]) for n in (1, 2)]
GATEWAY = bytes.fromhex("02005e000001")
VIP, VIP6, CLIENT, CLIENT6 = "203.0.113.10", "2001:db8::10", "198.51.100.7", "2001:db8:1::7"
OVERHEAD = 40  # two hops


def forwarding(mtu_bytes: int = 1500, **options: object) -> Forwarding:
    binds = [Bind(ip_network(vip), proto, 80, 80) for vip in (VIP, VIP6) for proto in (6, 17)]
    plan = ("web", bytes(16), array("H", [0, 1]), 2, BACKENDS, False)
    result = Forwarding([plan], compile_binds([binds]), source_ip=bytes([192, 0, 2, 1]), **options)  # type: ignore[arg-type]
    for backend in BACKENDS:
        result.set_next_hop(backend, GATEWAY, mtu_bytes)
    return result


def ethernet(**fields: str) -> Packet:
    return Ether(**({"src": "02:00:00:00:00:02", "dst": "02:00:00:00:00:01"} | fields))


def ipv4(**fields: object) -> Packet:
    return ethernet() / IP(**({"src": CLIENT, "dst": VIP} | fields))


def ipv6(**fields: object) -> Packet:
    return ethernet() / IPv6(**({"src": CLIENT6, "dst": VIP6} | fields))
