"""A fleet of a few proxies, one row and its flows, as SPEC says they behave; nothing comes from the code under test.

A flow lives at the proxy that accepted its SYN; every later packet walks the row's hops, first to last, until it meets
that proxy. A proxy that is dead swallows what is sent to it; after the last hop comes a reset.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

ABSENT, ACTIVE, DRAINING, ACTIVE_DOWN, DRAINING_DOWN = "-ADad"

# What may be done to a proxy, by what it is: the name of the event -> what it is then.
EVENTS = {
    ABSENT: {"add": ACTIVE},
    ACTIVE: {"drain": DRAINING, "remove": ABSENT, "fail": ACTIVE_DOWN},
    DRAINING: {"fill": ACTIVE, "remove": ABSENT, "fail": DRAINING_DOWN},
    ACTIVE_DOWN: {"drain": DRAINING_DOWN, "remove": ABSENT, "recover": ACTIVE},
    DRAINING_DOWN: {"fill": ACTIVE_DOWN, "remove": ABSENT, "recover": DRAINING},
}


@dataclass(frozen=True, slots=True)
class Event:
    name: str
    proxy: int


@lru_cache(None)
def hops_of(fleet: str, n_hops: int) -> tuple[int, ...]:
    """The row rule first_usable on the order 0, 1, 2...; docs/protocol/table.md word by word."""
    present = [proxy for proxy, kind in enumerate(fleet) if kind != ABSENT]
    primary = next((proxy for proxy in present if fleet[proxy] == ACTIVE), present[0])
    before = [proxy for proxy in present if proxy < primary]
    living = [proxy for proxy in before if fleet[proxy] == DRAINING]
    others = [proxy for proxy in before if fleet[proxy] != DRAINING]
    after = [proxy for proxy in present if proxy > primary]
    return (primary, *living, *others, *after)[:n_hops]


def is_down(kind: str) -> bool:
    """Whether a health check says so; it may be wrong."""
    return kind in (ACTIVE_DOWN, DRAINING_DOWN)


@lru_cache(None)
def events_of(fleet: str) -> tuple[tuple[Event, str], ...]:
    """Every event that can happen, with the fleet after it. One proxy is always there."""
    found = []
    for proxy, kind in enumerate(fleet):
        for name, then in EVENTS[kind].items():
            after = fleet[:proxy] + then + fleet[proxy + 1 :]
            if after.strip(ABSENT):
                found.append((Event(name, proxy), after))
    return tuple(found)


# Which proxies hold live flows of the row, and which are dead: two sets of bits.
World = tuple[int, int]


def first_world(fleet: str, n_hops: int) -> World:
    """A settled fleet under load: the primary has flows."""
    return 1 << hops_of(fleet, n_hops)[0], 0


@lru_cache(None)
def step(world: World, event: Event, dies: bool, hops: tuple[int, ...]) -> tuple[World, bool]:
    """The world after an event, each flow having sent a packet and new flows having begun; and whether a flow was lost.

    Flows that die with the proxy that holds them are nobody's fault and not counted.
    """
    holders, dead = world
    bit = 1 << event.proxy
    if event.name == "fail" and dies:
        holders, dead = holders & ~bit, dead | bit
    elif event.name in ("recover", "remove"):  # one that is added later under this number is another machine
        dead &= ~bit
    reached = 0
    for owner in _bits(holders):
        if _arrives(owner, hops, dead):
            reached |= 1 << owner
    lost = reached != holders
    if not dead >> hops[0] & 1:
        reached |= 1 << hops[0]  # a SYN is accepted by the first
    return (reached, dead), lost


def possible_worlds(
    alive: World, others: frozenset[World], event: Event, hops: tuple[int, ...]
) -> tuple[frozenset[World], bool]:
    """The worlds in which some failure was real, after an event; and whether a flow was lost in any of them.

    alive: the world in which every failure so far was a false alarm; others: all that are as possible.
    """
    fails = event.name == "fail"
    results = [step(world, event, dies, hops) for world in others for dies in ((False, True) if fails else (False,))]
    if fails:
        results.append(step(alive, event, True, hops))
    return frozenset(world for world, _ in results), any(lost for _, lost in results)


def _arrives(owner: int, hops: tuple[int, ...], dead: int) -> bool:
    for hop in hops:
        if dead >> hop & 1:
            return False
        if hop == owner:
            return True
    return False


def _bits(value: int) -> Iterator[int]:
    return (place for place in range(value.bit_length()) if value >> place & 1)
