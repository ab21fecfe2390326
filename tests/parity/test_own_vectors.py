"""Our own vectors through the eBPF program: what it sends is right, and the rest is left to who should have it."""

from __future__ import annotations

import own
import pytest
from classifier import MINIMUM_BYTES, Program

from glb import _bpf

pytestmark = pytest.mark.bpf


@pytest.mark.parametrize("accelerate", [False, True])
@pytest.mark.parametrize("file", own.FILES)
def test_vector_is_sent_as_it_says_or_left_to_its_owner(file: str, accelerate: bool) -> None:
    sent = 0
    with Program(own.forwarding(file, _bpf.SharedArrays), accelerate=accelerate) as program:
        for vector in own.vectors(file):
            frame = bytes.fromhex(vector["input_hex"])
            if len(frame) < MINIMUM_BYTES:
                continue
            result = program.run(frame)
            if isinstance(result, bytes):
                assert vector["verdict"] == "forward" and result.hex() == vector["output_hex"], vector["name"]
                sent += 1
            else:
                assert (result == "host") == (vector["verdict"] == "host"), vector["name"]
    assert sent == 0 or accelerate
    assert sent or not accelerate or file not in ("plain", "too_big")
