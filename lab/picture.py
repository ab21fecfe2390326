"""The lab's picture: hosts, addresses, MTUs and what runs where, drawn from ``lab.plan``; and what to try in it."""

from __future__ import annotations

from lab import plan

_COLUMN = 27  # characters of a host's box, borders included
_GAP = " "
_ABOVE = (plan.CLIENT, *plan.DIRECTORS, plan.OPS)
_BELOW = plan.PROXIES
_WIDTH = 4 * _COLUMN + 3 * len(_GAP)

_WHAT_IT_IS = {
    "client": [f"from {plan.CLIENTS_V4}", f"and {plan.CLIENTS_V6}"],
    "director": ["glb-director", "BIRD: announces by BGP"],
    "ops": ["glbctl", ""],
    "proxy": ["nginx", "glb-proxy-agent"],
}


def _rule(left: str, right: str, width: int, joints: dict[int, str]) -> str:
    """A horizontal line with corners, and other characters at some columns."""
    line = [left, *"─" * (width - 2), right]
    for column, joint in joints.items():
        line[column] = joint
    return "".join(line)


def _box(lines: list[str], width: int, above: dict[int, str], below: dict[int, str]) -> list[str]:
    body = [f"│ {line:<{width - 4}} │" for line in lines]
    return [_rule("┌", "┐", width, above), *body, _rule("└", "┘", width, below)]


def _hosts(hosts: tuple[plan.Host, ...], *, joint_above: bool) -> list[str]:
    middle = {_COLUMN // 2: "┴" if joint_above else "┬"}
    boxes = []
    for host in hosts:
        note = " (spare)" if host == plan.SPARE_PROXY else ""
        lines = [host.name + note, str(host.v4), str(host.v6), *_WHAT_IT_IS[host.role]]
        boxes.append(_box(lines, _COLUMN, *((middle, {}) if joint_above else ({}, middle))))
    return [_GAP.join(row) for row in zip(*boxes, strict=True)]


def _middles() -> list[int]:
    return [number * (_COLUMN + len(_GAP)) + _COLUMN // 2 for number in range(4)]


def _wires(hosts: tuple[plan.Host, ...]) -> str:
    line = [" "] * _WIDTH
    for middle, host in zip(_middles(), hosts, strict=True):
        label = f"│ MTU {host.mtu_bytes}"
        line[middle : middle + len(label)] = label
    return "".join(line).rstrip()


def draw() -> str:
    """The picture: box-drawing characters, 111 columns."""
    glb, ecmp = plan.GLB_VIP, plan.ECMP_VIP
    router = [
        f"router (on every link .1 and ::1)   BIRD: BGP, AS {plan.ROUTER_AS}; the directors are AS {plan.DIRECTOR_AS}",
        f"{glb.v4}, {glb.v6}   GLB: ECMP over the directors that announce it;",
        f"{'':{len(str(glb.v4)) + len(str(glb.v6)) + 4}} they tunnel to the proxies (GUE, UDP port {plan.GUE_PORT})",
        f"{ecmp.v4}, {ecmp.v6}   plain ECMP straight to the proxies, for contrast",
        "Replies go from the proxies by the router to the client, past the directors (DSR).",
    ]
    return "\n".join(
        [
            *_hosts(_ABOVE, joint_above=False),
            _wires(_ABOVE),
            *_box(router, _WIDTH, dict.fromkeys(_middles(), "┴"), dict.fromkeys(_middles(), "┬")),
            _wires(_BELOW),
            *_hosts(_BELOW, joint_above=True),
        ]
    )


def invitation(prefix: str) -> str:
    """How to enter each host, and what to try there."""
    lab = ".venv/bin/python -m lab"
    vip4, vip6 = plan.GLB_VIP.addresses
    return f"""\
Enter a host    {lab} enter client     (or any name above; its namespace is {prefix}-client)
Run one command {lab} exec client curl -s http://{vip4}/
Try also        exec client curl -sg --interface 2001:db8:c::7 http://[{vip6}]/
                exec router tcpdump -ni any -c 5 udp port {plan.GUE_PORT}
                exec ops glbctl status
                exec ops glbctl drain web {plan.PROXIES[1].v4}     (then fill and activate it; --dry-run only shows)
                exec router birdc show route
                exec ops curl -s http://{plan.DIRECTORS[0].v4}:{plan.DIRECTOR_ADMIN_PORT}/metrics
"""
