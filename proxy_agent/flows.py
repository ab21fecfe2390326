"""How many live TCP flows each VIP has on this proxy: a drain is done when the numbers are zero."""

from __future__ import annotations

from proxy_agent._verdict import Settings, live_flows
from proxy_agent.vips import text


def flows_by_vip(settings: Settings) -> dict[str, int]:
    """Live flows by VIP as written in the configuration, every VIP present.

    Live means that something may still be delivered: established, closing with data on the way (FIN_WAIT1, CLOSE_WAIT,
    LAST_ACK, CLOSING), or FIN_WAIT2 while a process holds the socket. TIME_WAIT and half-open ones do not count.
    Costs one dump of the kernel's TCP sockets, about 2 us each. DeviceError if the kernel refuses it.
    """
    return dict(zip(map(text, settings.vips), live_flows(settings), strict=True))
