"""How large packets may be: what the tunnel adds to them, and the MSS that leaves room for it (docs/operate/mtu.md)."""

from __future__ import annotations

from glb.wire.gue import GUE_BASE_BYTES, GUE_PRIVATE_BYTES, IPV4_BYTES, UDP_BYTES

HEADER_BYTES = {4: 40, 6: 60}  # IP and TCP headers without options, by address family: what an MSS does not count
LEAST_MSS_BYTES = 88  # below this segments are mostly headers: the lowest value that Linux lets a route have
MOST_MSS_BYTES = 65495


def overhead_bytes(hops: int) -> int:
    """What the tunnel adds to a packet: outer IPv4, UDP, GUE, and each of the `hops` (at least 1) after the first."""
    return IPV4_BYTES + UDP_BYTES + GUE_BASE_BYTES + GUE_PRIVATE_BYTES + 4 * (hops - 1)


def fitting_mss(mtu_bytes: int, hops: int, family: int) -> int:
    """The largest MSS whose segments, in tunnel packets with so many hops, fit a path of this MTU. `family`: 4 or 6."""
    return min(max(mtu_bytes - overhead_bytes(hops) - HEADER_BYTES[family], LEAST_MSS_BYTES), MOST_MSS_BYTES)
