"""The director's two datapaths, Cython and eBPF, on mutated frames: by another configuration each round."""

from __future__ import annotations

import random
from collections.abc import Iterator

import corpus
import own
from classifier import MINIMUM_BYTES, Program, shared_forwarding

from fuzz.errors import Disagreement
from fuzz.mutations import mutated
from glb._fastpath import Forwarding

ROUND = 2000
ENVS = ("plain", "two-fields", "four-fields", "alt", "alt-four", "no-ping")  # of tests/vectors/reference
MTUS_BYTES = (0xFFFF, 1500, 100)
_OTHER = (77, bytes.fromhex("020000000077"))  # an interface that only the configuration knows
EGRESSES = (None, (*_OTHER, True), (*_OTHER, False))


def rounds(seed: int, *, bpf: bool) -> Iterator[int]:
    """Without end: the number of frames done since the last. Without `bpf` the Cython path is alone."""
    frames = [bytes.fromhex(record["frame"]) for record in corpus.packets()]
    frames += [bytes.fromhex(vector["input_hex"]) for file in own.FILES for vector in own.vectors(file)]
    while True:
        batch = [f for f in mutated(frames, seed, ROUND) if len(f) >= MINIMUM_BYTES]
        choose = random.Random(seed)
        env, mtu_bytes, egress = choose.choice(ENVS), choose.choice(MTUS_BYTES), choose.choice(EGRESSES)
        by = f"{env}, MTU {mtu_bytes}, egress {egress}"
        if bpf:
            forwarding = shared_forwarding(env, mtu_bytes=mtu_bytes, egress=egress)
            with Program(forwarding, accelerate=True) as program:
                _compare(forwarding, program, batch, by)
        else:
            forwarding = corpus.forwarding(env, mtu_bytes=mtu_bytes, egress=egress)
            forwarding.encapsulate(batch, forwarding.new_counters())
        seed += ROUND
        yield len(batch)


def _compare(forwarding: Forwarding, program: Program, batch: list[bytes], by: str) -> None:
    """Disagreement; or AssertionError if the program sent nothing, which would compare nothing."""
    n_sent = 0
    for frame, (verdict, sent) in zip(batch, forwarding.encapsulate(batch, forwarding.new_counters()), strict=True):
        result = program.run(frame)
        n_sent += isinstance(result, bytes)
        agree = result == sent if isinstance(result, bytes) else (result == "host") == (verdict == "host")
        if not agree:
            raise Disagreement(f"Cython says {verdict}, the program {result!r} ({by}): {frame.hex()}")
    assert n_sent, f"the program has sent none of {len(batch)} frames ({by})"
