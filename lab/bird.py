"""BIRD 2: its configuration on the router and the directors, and what it says of routes and sessions."""

from __future__ import annotations

from lab import plan

ANNOUNCE_DEVICE = "glb0"  # glb-director's TUN device: there, and up, exactly while it forwards

# A session that is lost is back in about a second; a dead peer is noticed in three.
_TIMERS = """\
    hold time 3; keepalive time 1; startup hold time 10;
    connect delay time 1; connect retry time 1; error wait time 1, 2; error forget time 3;"""

_FAMILIES = (4, 6)


def router_config() -> str:
    """The router: one session per director and family; equal routes merge into one ECMP route of the kernel."""
    sessions = "\n".join(
        f"""
protocol bgp {director.name}_v{family} {{
    local as {plan.ROUTER_AS};
    neighbor {director.v4 if family == 4 else director.v6} as {plan.DIRECTOR_AS};
{_TIMERS}
    ipv{family} {{ import where net ~ [ {_announced(family)}+ ]; export none; }};
}}"""
        for director in plan.DIRECTORS
        for family in _FAMILIES
    )
    kernels = "\n".join(
        f"protocol kernel kernel{family} {{\n    merge paths on;\n"
        f"    ipv{family} {{ import none; export where source = RTS_BGP; }};\n}}"
        for family in _FAMILIES
    )
    return f"""\
log stderr all;
router id 10.0.0.1;
protocol device {{ scan time 1; }}
{kernels}
{sessions}
"""


def director_config(director: plan.Host) -> str:
    """A director: announces the VIPs while its glb-director's device is there, and never puts them in the kernel."""
    statics = "\n".join(
        f"protocol static vips_v{address.version} {{\n    ipv{address.version};\n"
        f'    route {address}/{address.max_prefixlen} via "{ANNOUNCE_DEVICE}";\n}}'
        for address in plan.GLB_VIP.addresses
    )
    sessions = "\n".join(
        f"""
protocol bgp router_v{family} {{
    local as {plan.DIRECTOR_AS};
    neighbor {director.gateway4 if family == 4 else director.gateway6} as {plan.ROUTER_AS};
{_TIMERS}
    ipv{family} {{ import none; export where source = RTS_STATIC; next hop self; }};
}}"""
        for family in _FAMILIES
    )
    return f"""\
log stderr all;
router id {director.v4};
protocol device {{ scan time 1; }}
{statics}
{sessions}
"""


def _announced(family: int) -> str:
    return str(plan.ANNOUNCED_V4 if family == 4 else plan.ANNOUNCED_V6)


def established(show_protocols: str) -> int:
    """How many BGP sessions are up, from the text of ``birdc show protocols``."""
    return sum(1 for line in show_protocols.splitlines() if " BGP " in line and "Established" in line)
