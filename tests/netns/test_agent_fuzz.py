"""Mutated tunnel packets get one verdict from both engines, with real sockets in every state; `make fuzz` goes on."""

from __future__ import annotations

import sys
from contextlib import closing
from itertools import islice
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
from fuzz import agent
from fuzz.errors import Disagreement

pytestmark = [pytest.mark.netns, pytest.mark.bpf]

ROUNDS = 10


@pytest.mark.parametrize("seed", [20261, 20262, 20263])
def test_no_mutated_packet_gets_two_verdicts(seed: int) -> None:
    with closing(agent.with_sockets(seed * agent.ROUND * ROUNDS)) as rounds:
        assert sum(islice(rounds, ROUNDS)) == ROUNDS * agent.ROUND


def test_engine_that_knows_no_sockets_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent, "Sockets", lambda ifindex: lambda *flow: "none")
    with (
        closing(agent.with_sockets(1)) as rounds,
        pytest.raises(Disagreement, match="but the program counted otherwise"),
    ):
        next(rounds)
