"""The vocabulary of the second chance: what can happen to a tunnel packet, and why. Pure data.

The per-packet code is `proxy_agent/_verdict.pyx`; counters, docs/operate/agent.md and the tests read this table, and a
test holds the two together. The rules themselves: docs/protocol/gue.md, "Accept or bounce".
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple


class Action(Enum):
    """What is done with a tunnel packet."""

    ACCEPT = "accept"  # tunnel headers off, the inner packet goes to the host's stack
    BOUNCE = "bounce"  # sent on to the next hop
    DROP = "drop"  # silently


class Reason(NamedTuple):
    """One row of the table: each tunnel packet bumps the counter of exactly one."""

    name: str  # label of the counter
    action: Action
    meaning: str  # what happened, and for drops the operator's likely cause


# The order is that of `Why` in _tunnel.pxd.
REASONS: tuple[Reason, ...] = (
    Reason("syn", Action.ACCEPT, "TCP with SYN: a new flow belongs to whoever sees it first"),
    Reason("established", Action.ACCEPT, "TCP of a flow that has a socket here, in any state but LISTEN"),
    Reason("syn_cookie", Action.ACCEPT, "TCP ACK that answers a SYN cookie, and the flow's segments in the next 2 s"),
    Reason("udp", Action.ACCEPT, "UDP: a datagram carries no sign of whose flow it is"),
    Reason("icmp_error", Action.ACCEPT, "ICMP error about a TCP flow that has a socket here"),
    Reason("icmp", Action.ACCEPT, "ICMP echo, and errors about anything but a readable TCP header"),
    Reason("fragment", Action.ACCEPT, "later fragment: it has no ports to look up"),
    Reason("last_resort", Action.ACCEPT, "TCP or ICMP error that nobody knew: the local stack answers, a RST for TCP"),
    Reason("bounce", Action.BOUNCE, "not of a flow here: sent to the next hop"),
    Reason(
        "not_allowed",
        Action.DROP,
        "outer source not in allowed_sources: a director or proxy missing there, or a forger",
    ),
    Reason("not_vip", Action.DROP, "inner destination not in vips: director and agent disagree about the VIPs"),
    Reason("ttl", Action.DROP, "to be bounced, but its outer TTL has run out: a loop of bounces or routes"),
    Reason("unknown_protocol", Action.DROP, "inner protocol is not TCP, UDP or ICMP of its family"),
    Reason("malformed", Action.DROP, "inner packet cut short or with lengths that do not fit the tunnel packet"),
    Reason("outer_malformed", Action.DROP, "outer IPv4 or UDP header with lengths that do not fit the packet"),
    Reason("outer_checksum", Action.DROP, "outer IPv4 header checksum is wrong: damaged on the way"),
    Reason("outer_fragment", Action.DROP, "tunnel packet fragmented on the way: the core's MTU is too small"),
    Reason("gue_malformed", Action.DROP, "not a GUE header of this protocol: another program uses the port"),
    Reason("look_up_failed", Action.DROP, "the kernel did not answer whether the flow has a socket; TCP sends again"),
    Reason(
        "undelivered",
        Action.DROP,
        "accepted, but could not be handed on: the TUN device is full, or a driver spread the headers",
    ),
)

BY_NAME = {reason.name: reason for reason in REASONS}


class Decision(NamedTuple):
    """The verdict on one tunnel packet."""

    reason: str  # a name of REASONS
    packet: bytes  # inner packet (accept), tunnel packet to send (bounce, TTL not yet lowered), b"" (drop)
    hop: int  # bounce: position in the GUE header's list of the hop it goes to, from 0; else -1

    @property
    def action(self) -> Action:
        return BY_NAME[self.reason].action
