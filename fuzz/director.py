"""The director's two datapaths on mutated frames: the Cython path and the eBPF program."""

from __future__ import annotations

from collections.abc import Iterator

import corpus
import own
from classifier import MINIMUM_BYTES, Program, shared_forwarding

from fuzz.errors import Disagreement
from fuzz.mutations import mutated

ROUND = 2000


def rounds(seed: int, *, bpf: bool) -> Iterator[int]:
    """Without end: the number of frames done since the last. Without `bpf` the Cython path is alone."""
    frames = [bytes.fromhex(record["frame"]) for record in corpus.packets()]
    frames += [bytes.fromhex(vector["input_hex"]) for file in own.FILES for vector in own.vectors(file)]
    forwarding = shared_forwarding("plain") if bpf else corpus.forwarding("plain")
    counters = forwarding.new_counters()
    program = Program(forwarding, accelerate=True) if bpf else None
    while True:
        batch = [f for f in mutated(frames, seed, ROUND) if len(f) >= MINIMUM_BYTES]
        for frame, (verdict, sent) in zip(batch, forwarding.encapsulate(batch, counters), strict=True):
            result = program.run(frame) if program is not None else "over"
            if isinstance(result, bytes):
                agree = result == sent
            else:
                agree = program is None or (result == "host") == (verdict == "host")
            if not agree:
                raise Disagreement(f"Cython says {verdict}, the program {result!r}: {frame.hex()}")
        seed += ROUND
        yield len(batch)
