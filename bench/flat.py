"""Whether the XDP program's time for a packet grows with backends, binds or tables; bench/plot.py draws it."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from typing import Any

from bench import samples
from bench.chain import Chain, Director
from bench.measure import Session, pinned, significant, spread

SUMMARY = "the XDP program's time by number of backends, binds and tables"

_REPEAT = 200_000  # some 20 ms: most of it after the rows have come into the caches
_QUICK_REPEAT = 20_000
_ALTERNATIONS = 15
_FEW = 8  # VIPs and clients that stay in the first-level cache: what is left is what the program does
_CLIENTS = 7  # a mask
_USUAL = samples.Fleet(n_backends=100, vips=64, cidrs=8, range_ports=1000)
# axis -> its sizes, as (what stands on the axis, the fleet); binds of both families count
AXES = {
    "backends": [(n, replace(_USUAL, n_backends=n)) for n in (2, 4, 16, 64, 256, 1024, 4096)],
    "binds": [(1, replace(_USUAL, vips=1, cidrs=0, range_ports=0, families=(4,)))]
    + [(n, replace(_USUAL, vips=n // 3, cidrs=n // 24)) for n in (12, 48, 96, 384, 999)],
    "tables": [(n, replace(_USUAL, vips=128, tables=n)) for n in (1, 2, 4, 8, 16, 32, 64)],
}


def run(session: Session) -> Iterator[dict[str, Any]]:
    for axis, sizes in AXES.items():
        for family, frame in ((4, samples.ipv4_frame(64, 0, 0)), (6, samples.ipv6_frame(78, 0, 0))):
            yield from _along(session, axis, family, frame, sizes)


def _along(
    session: Session, axis: str, family: int, frame: bytes, sizes: list[tuple[int, samples.Fleet]]
) -> Iterator[dict[str, Any]]:
    """A figure for each size; all of them take turns."""
    repeat = _QUICK_REPEAT if session.quick else _REPEAT
    sizes = [(n, fleet) for n, fleet in sizes if family in fleet.families]
    with ExitStack() as stack, pinned(session.cores.work):
        chains = {}
        for n, fleet in sizes:
            director = stack.enter_context(closing(Director(fleet.document())))
            vips = fleet.vips_of(family)
            some = vips[fleet.cidrs :: max(1, (len(vips) - fleet.cidrs) // _FEW)][:_FEW]
            for kind, to, clients in (("hot", some, _CLIENTS), ("spread", vips[fleet.cidrs :], 0xFFFFFFFF)):
                for side, program in (("ours", director), ("bare", None)):
                    chain = Chain(frame, to, program, clients=clients)
                    chains[n, kind, side] = stack.enter_context(closing(chain))
        taken = session.alternate(
            f"flat/{axis}-ipv{family}",
            {" ".join(map(str, key)): lambda chain=chain: chain.measure_ns(repeat) for key, chain in chains.items()},  # type: ignore[misc]
            session.times(_ALTERNATIONS),
        )
    for kind in ("hot", "spread"):
        yield from level(
            f"flat/{axis}",
            family,
            kind,
            {n: taken[f"{n} {kind} ours"] for n, _ in sizes},
            {n: min(taken[f"{n} {kind} bare"]) for n, _ in sizes},
            frame_bytes=len(frame),
            method="as xdp/alone; hot: 8 clients to 8 VIPs, so that nothing misses a cache; spread: random "
            "clients to all VIPs that are bound as whole addresses",
        )


def level(
    name: str,
    family: int,
    kind: str,
    taken: dict[int, list[float]],
    bare: dict[int, float],
    *,
    frame_bytes: int,
    method: str,
) -> Iterator[dict[str, Any]]:
    """A figure for each size of an axis, the least time net of `bare`, against the median over all sizes."""
    axis = name.partition("/")[2]
    least = {n: min(values) - bare[n] for n, values in taken.items()}
    usual = statistics.median(least.values())
    for n, ns in least.items():
        yield {
            "figure": f"{name}-{n}-ipv{family}-{kind}",
            "value": significant(ns),
            "unit": "ns/frame",
            "better": "lower",
            "baseline": significant(usual),
            "ratio": significant(ns / usual),
            "alternations": len(taken[n]),
            "spread": {"value": spread(taken[n]), "baseline": spread(list(least.values()))},
            "frame_bytes": [frame_bytes],
            "method": method,
            "baseline_is": f"the median over the numbers of {axis}",
            "not_included": "receiving and sending",
            axis: n,
        }
