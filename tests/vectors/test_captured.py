"""Our own vectors through a worker's tap: each is captured once, as it came, as it went, and with its verdict."""

from __future__ import annotations

import own
import pytest

from glb._capture import ANY_TABLE, Wanted, WorkerTap
from glb._fastpath import PlainMemory
from glb.director import captured


@pytest.mark.parametrize("file", own.FILES)
def test_vector_is_captured_as_it_came_and_went(file: str) -> None:
    wanted = Wanted(PlainMemory)
    wanted.want_table(0, ANY_TABLE)
    tap, plan = WorkerTap(wanted), own.forwarding(file)
    counters = plan.new_counters()
    for vector in own.vectors(file):
        tap.encapsulate(plan, counters, [bytes.fromhex(vector["input_hex"])])
        (seen,) = tap.take(2)
        assert seen.received.hex() == vector["input_hex"], vector["name"]
        assert (seen.sent.hex() if seen.sent is not None else None) == vector["output_hex"], vector["name"]
        # A worker cannot give a frame to the host.
        assert seen.verdict == {"host": "stale_bind"}.get(vector["verdict"], vector["verdict"]), vector["name"]
        assert captured.comment(None, seen)
