"""Which MSS clients are told, so that what they send fits the tunnel. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from glb.wire.mtu import HEADER_BYTES, fitting_mss

FAMILIES = {4: "ipv4", 6: "ipv6"}  # address family -> its name in files and metrics
assert FAMILIES.keys() == HEADER_BYTES.keys()


@dataclass(frozen=True)
class MssRule:
    """The key `mss`: computed, or a fixed value for each family (0: not clamped)."""

    automatic: bool = True
    ipv4: int = 0
    ipv6: int = 0

    def values(self, mtu_bytes: int, hops: int) -> dict[int, int]:
        """MSS by address family (4, 6), 0 for none. `mtu_bytes`: of the tunnel's path; `hops`: most of one packet."""
        if not self.automatic:
            return {4: self.ipv4, 6: self.ipv6}
        return {family: fitting_mss(mtu_bytes, hops, family) for family in FAMILIES}


AUTOMATIC = MssRule()
