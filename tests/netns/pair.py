"""Both engines on one packet at a time, without a network: the xdp program and the netfilter engine's decision."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from ipaddress import IPv4Address
from pathlib import Path
from typing import NamedTuple

from glb import _bpf
from proxy_agent import xdp
from proxy_agent._verdict import Recollection, Settings, decide
from proxy_agent.decide import REASONS, Action, Decision
from proxy_agent.engine import Guard

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
import agent_corpus as corpus

XDP_DROP, XDP_PASS = 1, 2
ETHERNET = bytes.fromhex("02000000000a02000000000b0800")
MINIMUM_BYTES = 14  # the kernel runs nothing shorter, Ethernet header included
_INDEX = {reason.name: i for i, reason in enumerate(REASONS)}


class Outcome(NamedTuple):
    """What the program did with a frame."""

    action: int
    frame: bytes


class Pair:
    """Loaded in the network namespace of the calling thread, whose sockets the program asks; `sockets` and
    `answers_cookie` are what the decision asks (see _verdict.decide). `namespaces`: ids of further ones."""

    def __init__(
        self,
        guard: Guard,
        sockets: Callable[..., str] | None = None,
        answers_cookie: Callable[[bytes], bool] | None = None,
        namespaces: Sequence[int] = (),
    ) -> None:
        # Ifindex 0: the host's stack sends what bounces, so the frame comes back readdressed, its TTL as it was.
        self.program = xdp.Program(xdp.options(corpus.PORT, 0, by_redirect=False))
        self._sockets = sockets
        self._answers_cookie = answers_cookie
        self._namespaces = namespaces
        self._recollection = Recollection(n_sets=1024)
        self._judged: Counter[str] = Counter()
        self.adopt(guard)

    def adopt(self, guard: Guard) -> None:
        self.program.adopt(guard, self._namespaces)
        self.settings = Settings(guard.vips, guard.allowed_sources, guard.own_addresses)
        self.own = [IPv4Address(address).packed for address in guard.own_addresses]

    def run(self, packet: bytes) -> Outcome:
        action, frame, _ = _bpf.test_run(self.program.fd, ETHERNET + packet)
        return Outcome(action, frame)

    def compare(self, packet: bytes) -> Decision | None:
        """Both verdicts, held against each other (AssertionError); None: no tunnel packet, and passed untouched."""
        outcome = self.run(packet)
        if not corpus.is_tunnel_packet(packet, self.own):
            assert outcome == (XDP_PASS, ETHERNET + packet), packet.hex()
            return None
        decision = decide(
            packet,
            self.settings,
            self._sockets,
            recollection=self._recollection,
            answers_cookie=self._answers_cookie,
            now_ms=time.monotonic_ns() // 1_000_000 & 0xFFFFFFFF,
        )
        self._judged[decision.reason] += 1
        if self.program.count(_INDEX[decision.reason]) != self._judged[decision.reason]:
            raise AssertionError(f"decided {decision.reason}, but the program counted otherwise: {packet.hex()}")
        if decision.action is Action.DROP:
            assert outcome.action == XDP_DROP, packet.hex()
            return decision
        assert outcome.action == XDP_PASS, packet.hex()
        front = ETHERNET
        if decision.action is Action.ACCEPT:
            front = ETHERNET[:12] + (b"\x08\0" if decision.packet[0] >> 4 == 4 else b"\x86\xdd")
        assert outcome.frame[:14] == front, packet.hex()
        assert outcome.frame[14 : 14 + len(decision.packet)] == decision.packet, packet.hex()
        return decision

    def recount(self) -> None:
        """What was counted until now is right."""
        self._judged = Counter({name: n for name, n in self.program.counters().items() if n})

    def check(self) -> None:
        """The program counted what was decided, and nothing besides."""
        decided = self._judged
        self.recount()
        assert self._judged == decided
