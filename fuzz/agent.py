"""The second chance on mutated tunnel packets: the netfilter engine's decision and the xdp engine's program.

The program runs by BPF_PROG_TEST_RUN in a network namespace with real sockets in every state, and both ask those.
Without eBPF the decision is alone, and is told of sockets at random.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from ipaddress import ip_network

import agent_corpus as corpus
import agent_packets as p

from fuzz.errors import Disagreement
from fuzz.tunnels import mutated_tunnels
from proxy_agent import syncookie
from proxy_agent._verdict import STATES, Recollection, Settings, Sockets, decide
from proxy_agent.decide import Action
from proxy_agent.engine import Guard
from tests.netns import situations
from tests.netns.pair import Pair
from tests.netns.topology import Switch

ROUND = 2000
SOCKETS_LAST_S = 30.0  # a minute in TIME_WAIT and SYN_RECV, then the kernel forgets
# A cookie's two seconds end by two clocks that differ by a few ms: who disagrees then agrees a moment later.
MOMENT_S = 0.05


def tunnels(numbers: dict[tuple[str, int], corpus.Numbers] | None = None) -> list[bytes]:
    """The corpus to start from."""
    return [
        case.packet
        for name, situation in corpus.SITUATIONS.items()
        for family in situation.families
        for case in corpus.cases(name, family, (numbers or {}).get((name, family)))
    ]


def rounds(seed: int, *, bpf: bool) -> Iterator[int]:
    """Without end: the number of packets done since the last. Disagreement names the packet."""
    while True:
        for n in with_sockets(seed) if bpf else alone(seed):
            seed += n
            yield n


def alone(seed: int) -> Iterator[int]:
    """The decision, which reads from buffers of exactly a packet's size: a sanitized build ends at a byte too many."""
    settings = Settings([p.VIP4, p.VIP6], None, corpus.OWN)
    memory = Recollection()
    start = tunnels()
    states = sorted(set(STATES) - {"unknown"})
    tell = random.Random(seed)
    while True:
        for packet in mutated_tunnels(start, seed, ROUND):
            verdict = decide(
                packet,
                settings,
                lambda *flow: tell.choice(states),
                recollection=memory,
                answers_cookie=lambda question: tell.random() < 0.5,
            )
            check_output(packet, verdict.action, verdict.packet)
        seed += ROUND
        yield ROUND


def check_output(packet: bytes, action: Action, output: bytes) -> None:
    """What comes out is a piece of what came in, or the packet readdressed, or nothing."""
    if action is Action.ACCEPT:
        sound = output in packet
    elif action is Action.BOUNCE:
        header = (packet[0] & 0x0F) * 4
        behind = header + 16  # the GUE header
        same_length = int.from_bytes(packet[2:4], "big") == len(output)
        sound = same_length and output[behind:] == packet[behind : len(output)]
    else:
        sound = not output
    if not sound:
        raise Disagreement(f"{action.value} makes {output.hex()} of {packet.hex()}")


def with_sockets(seed: int) -> Iterator[int]:
    """Both engines in a new network namespace, as long as its sockets stay as they are."""
    with ExitStack() as stack:
        host = stack.enter_context(Switch("proxy"))["proxy"]
        standing = situations.Sockets(host, stack)
        until = time.monotonic() + SOCKETS_LAST_S
        with host.inside():
            cookies = stack.enter_context(closing(syncookie.Program(0)))
            vips = tuple(ip_network(vip) for vip in (p.VIP4, p.VIP6))
            pair = Pair(Guard(vips, None, corpus.OWN), Sockets(0), cookies.is_valid)
        start = tunnels(standing.numbers)
        while time.monotonic() < until:
            with host.inside():
                for packet in mutated_tunnels(start, seed, ROUND):
                    _compare(pair, packet)
                pair.check()
            seed += ROUND
            yield ROUND


def _compare(pair: Pair, packet: bytes) -> None:
    try:
        pair.compare(packet)
    except AssertionError:
        time.sleep(MOMENT_S)
        pair.recount()
        try:
            pair.compare(packet)
        except AssertionError as error:
            raise Disagreement(str(error)) from error
