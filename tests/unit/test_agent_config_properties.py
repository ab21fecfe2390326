"""Overlaps of VIPs, for any list of them."""

from __future__ import annotations

import json
from ipaddress import ip_network

from hypothesis import given
from hypothesis import strategies as st

from glb.errors import ConfigError
from proxy_agent import config
from proxy_agent.config import Network

BITS = {"198.51.100.": 32, "2001:db8::": 128}


@st.composite
def prefixes(draw: st.DrawFn) -> Network:
    """Of one, two, four or eight of eight addresses, in either family."""
    start = draw(st.sampled_from(list(BITS)))
    n_free = draw(st.integers(0, 3))
    return ip_network(f"{start}{draw(st.integers(0, 7)) >> n_free << n_free}/{BITS[start] - n_free}")


def problems(vips: list[Network]) -> list[str]:
    try:
        config.parse(json.dumps({"interface": "eth0", "vips": list(map(str, vips))}).encode(), "agent.json")
    except ConfigError as error:
        return [str(problem) for problem in error.problems]
    return []


@given(st.lists(prefixes(), min_size=1))
def test_each_vip_is_told_all_earlier_ones_that_it_covers_or_is_covered_by(vips: list[Network]) -> None:
    assert problems(vips) == [
        f"$.vips[{i}]: {vip} is already covered by or covers {earlier}"
        for i, vip in enumerate(vips)
        for earlier in vips[:i]
        if vip.version == earlier.version and vip.overlaps(earlier)
    ]
