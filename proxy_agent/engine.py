"""What an engine is to the agent: xdp (xdp.py) or netfilter (nfqueue.py). Both give the same verdicts."""

from __future__ import annotations

import contextlib
from typing import NamedTuple, Protocol

from proxy_agent.config import Network

# What the kernel needs to send a bounced packet on: its source is our own address, and it leaves where it came in. The
# xdp engine asks for the route as if the packet were forwarded, and leaves to the host's stack what it cannot send.
ENGINE_SYSCTLS = (
    ("net/ipv4/conf/{}/forwarding", "1"),
    ("net/ipv4/conf/{}/accept_local", "1"),
    ("net/ipv4/conf/{}/send_redirects", "0"),
    ("net/ipv4/conf/all/send_redirects", "0"),  # redirects are sent if either says so
)


class Guard(NamedTuple):
    """What packets are checked against."""

    vips: tuple[Network, ...]  # do not overlap
    allowed_sources: tuple[Network, ...] | None  # None: any
    own_addresses: tuple[str, ...]  # IPv4 addresses of this host
    socket_namespaces: tuple[str, ...] = ()  # names or paths; the xdp engine looks for sockets there too


class Engine(Protocol):
    """In the order of use: `prepare`, `start`, then any number of `adopt`; what they set up is undone by the stack."""

    name: str
    cookie_judge: str  # of SYN cookies, once prepared: "kernel", or "memory" (netfilter where eBPF is refused)

    async def prepare(self, stack: contextlib.AsyncExitStack) -> None:
        """Find out whether it works here: DeviceError, with the reason, before any packet depends on it."""

    async def start(self, stack: contextlib.AsyncExitStack, guard: Guard) -> None:
        """Judge packets from now on."""

    async def adopt(self, guard: Guard) -> None:
        """Judge by this from now on; no packet sees a gap."""

    def settle(self) -> None:
        """The agent is complete; from now on the engine may outlive it."""

    @property
    def mode(self) -> str | None:
        """How the xdp engine's program is attached: native, generic or offload; None of the other engine."""

    @property
    def judging(self) -> bool:
        """Whether packets are judged."""

    def counters(self) -> dict[str, int]:
        """Packets by reason, every name of decide.REASONS."""

    def bounced_by_hop(self) -> dict[int, int]:
        """Bounced packets by position in the GUE header's list, from 0; positions never used are left out."""

    def last_source(self, reason: str) -> str | None:
        """Outer source address of the last packet dropped for the reason."""

    def internals(self) -> dict[str, int]:
        """Counters of the engine itself: the same names in each."""

    def queue(self) -> dict[str, int]:
        """The kernel's numbers of the queue; empty where there is none."""
