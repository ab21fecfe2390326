"""`make fuzz`: mutated packets through two implementations of one thing until Ctrl-C or a disagreement.

It starts from the tests' corpora: `tests/vectors`, `tests/parity` and `tests/unit` must be on PYTHONPATH, as the
Makefile puts them. On a build with GLB_CYTHON_DEBUG=1 every read beyond a packet ends the run as well
(docs/develop/testing.md).
"""

from __future__ import annotations

import random
import sys
import time

import click

from fuzz import agent, director
from fuzz.errors import Disagreement

PARTS = {"director": director.rounds, "agent": agent.rounds}


@click.command()
@click.option("--what", type=click.Choice([*PARTS, "all"]), default="all", show_default=True)
@click.option("--seed", type=int, help="start of the sequence; random where left out, and printed")
@click.option("--seconds", type=float, help="stop after so long; without end where left out")
@click.option("--no-bpf", is_flag=True, help="the Cython code alone (no root needed)")
def main(what: str, seed: int | None, seconds: float | None, no_bpf: bool) -> None:
    """Look for a packet on which two engines disagree."""
    seed = random.randrange(2**32) if seed is None else seed
    names = list(PARTS) if what == "all" else [what]
    parts = [PARTS[name](seed, bpf=not no_bpf) for name in names]
    began, done = time.monotonic(), 0
    click.echo(f"fuzz: seed {seed}, {' and '.join(names)}", err=True)
    try:
        while seconds is None or time.monotonic() - began < seconds:
            done += sum(next(part) for part in parts)
            if sys.stderr.isatty():
                click.echo(
                    f"\rfuzz: {done} packets, {done / (time.monotonic() - began):.0f} a second", nl=False, err=True
                )
    except KeyboardInterrupt:
        pass
    except Disagreement as error:
        raise SystemExit(f"fuzz: {error}") from error
    finally:
        for part in parts:
            part.close()  # network namespaces go
    click.echo(f"\nfuzz: {done} packets, no disagreement", err=True)


if __name__ == "__main__":
    main()
