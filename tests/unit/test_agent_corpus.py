"""The decision agrees with the corpus, told what the sockets are; test_agent_verdicts.py has real ones."""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import pytest

from proxy_agent._verdict import STATES, Recollection, Settings, decide
from proxy_agent.decide import Action

sys.path.insert(0, str(Path(__file__).parent))
import agent_corpus as corpus
import agent_packets as p

SETTINGS = Settings([p.VIP4, p.VIP6], None, corpus.OWN)
NUMBERS = corpus.Numbers(4711, 815)


def is_cookie(question: bytes) -> bool:
    """A kernel whose cookie is the right number."""
    return struct.unpack_from(">I", question, 48)[0] == NUMBERS.ack


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("situation", corpus.SITUATIONS)
def test_decision_is_that_of_the_corpus(situation: str, family: int) -> None:
    at = corpus.SITUATIONS[situation]
    memory = Recollection(n_slots=0)
    for case in corpus.cases(situation, family, NUMBERS):
        verdict = decide(
            case.packet,
            SETTINGS,
            lambda *flow: at.state,
            recollection=memory,
            answers_cookie=is_cookie if situation == "syn-cookie" else None,
        )
        assert verdict.reason == case.reason, case.name
        if verdict.action is Action.BOUNCE:
            assert case.sent is not None
            # The kernel lowers the TTL when it forwards.
            assert p.with_header_checksum(verdict.packet[:8] + case.sent[8:9] + verdict.packet[9:]) == case.sent
        elif verdict.action is Action.ACCEPT:
            assert case.delivered in (verdict.packet, None)


def test_corpus_has_every_state_that_a_socket_can_be_in_here() -> None:
    """All but that of a connection that this host opens itself, and of no answer."""
    states = {situation.state for situation in corpus.SITUATIONS.values()}
    assert states == set(STATES) - {"syn_sent", "unknown"}
