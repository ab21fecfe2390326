"""The decision on mutated tunnel packets: nothing is made that is not in the packet, and every reason is reached.

Run on the sanitized build too (tests/repo/test_sanitizers.py).
"""

from __future__ import annotations

import sys
from itertools import islice
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import agent_corpus as corpus
import agent_packets as p

from fuzz import agent
from fuzz.tunnels import front_bytes, mutated_tunnels
from proxy_agent._verdict import Settings, decide
from proxy_agent.decide import BY_NAME

ROUNDS = 10
NOT_BY_ITSELF = {"look_up_failed", "undelivered", "not_allowed"}  # of an engine, or of a guard that has sources


@pytest.mark.parametrize("seed", [1])
def test_mutated_packet_is_passed_on_as_it_is_or_not_at_all(seed: int) -> None:
    assert sum(islice(agent.alone(seed * agent.ROUND * ROUNDS), ROUNDS)) == ROUNDS * agent.ROUND


def test_mutations_reach_every_reason() -> None:
    settings = Settings([p.VIP4, p.VIP6], None, corpus.OWN)
    states = {situation.port: situation.state for situation in corpus.SITUATIONS.values()}

    def sockets(family: int, local: bytes, local_port: int, remote: bytes, remote_port: int) -> str:
        return states.get(local_port, "none")

    seen = {
        decide(packet, settings, sockets, answers_cookie=lambda question: True).reason
        for packet in mutated_tunnels(agent.tunnels(), 7, 5000)
    }
    assert seen == set(BY_NAME) - NOT_BY_ITSELF


def test_same_seed_gives_the_same_packets_and_another_one_others() -> None:
    start = agent.tunnels()
    first = list(mutated_tunnels(start, 3, 200))
    assert first == list(mutated_tunnels(start, 3, 200)) != list(mutated_tunnels(start, 4, 200))


def test_front_of_a_tunnel_packet_ends_where_its_inner_packet_begins() -> None:
    inner = p.from_client(4, p.ACK)
    for hops in (0, 1, 30):
        packet = p.tunnel(inner, ("10.1.0.1",) * hops)
        assert packet[front_bytes(packet) :] == inner
