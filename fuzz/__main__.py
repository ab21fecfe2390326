"""`make fuzz`: mutated frames through the Cython path and the eBPF program until Ctrl-C or a disagreement.

It starts from the tests' corpus: `tests/vectors` and `tests/parity` must be on PYTHONPATH, as the Makefile puts them.
On a build with GLB_CYTHON_DEBUG=1 every read beyond a frame ends the run as well (docs/develop/testing.md).
"""

from __future__ import annotations

import random
import sys
import time

import click
import corpus
import own
from classifier import MINIMUM_BYTES, Program, shared_forwarding

from fuzz.mutations import mutated

_ROUND = 2000


@click.command()
@click.option("--seed", type=int, help="start of the sequence; random where left out, and printed")
@click.option("--seconds", type=float, help="stop after so long; without end where left out")
@click.option("--no-bpf", is_flag=True, help="the Cython path alone (no root needed)")
def main(seed: int | None, seconds: float | None, no_bpf: bool) -> None:
    """Look for a frame on which the two engines disagree."""
    seed = random.randrange(2**32) if seed is None else seed
    frames = [bytes.fromhex(record["frame"]) for record in corpus.packets()]
    frames += [bytes.fromhex(vector["input_hex"]) for file in own.FILES for vector in own.vectors(file)]
    forwarding = corpus.forwarding("plain") if no_bpf else shared_forwarding("plain")
    counters = forwarding.new_counters()
    program = None if no_bpf else Program(forwarding, accelerate=True)
    began, done = time.monotonic(), 0
    click.echo(f"fuzz: seed {seed}, {len(frames)} frames to start from", err=True)
    try:
        while seconds is None or time.monotonic() - began < seconds:
            batch = [f for f in mutated(frames, seed + done, _ROUND) if len(f) >= MINIMUM_BYTES]
            for frame, (verdict, sent) in zip(batch, forwarding.encapsulate(batch, counters), strict=True):
                result = program.run(frame) if program is not None else "over"
                if isinstance(result, bytes):
                    agree = result == sent
                else:
                    agree = program is None or (result == "host") == (verdict == "host")
                if not agree:
                    raise SystemExit(f"fuzz: Cython says {verdict}, the program {result!r}: {frame.hex()}")
            done += _ROUND
            if sys.stderr.isatty():
                click.echo(
                    f"\rfuzz: {done} frames, {done / (time.monotonic() - began):.0f} a second", nl=False, err=True
                )
    except KeyboardInterrupt:
        pass
    click.echo(f"\nfuzz: {done} frames, no disagreement", err=True)


if __name__ == "__main__":
    main()
