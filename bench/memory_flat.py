"""Whether the Cython path's time for a packet grows with backends, binds or tables; bench/plot.py draws it."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from bench import samples
from bench.flat import AXES, level
from bench.measure import Session, pinned
from glb.director.forwarding import Published
from glb.table.config import parse_tables

SUMMARY = "the Cython path's time by number of backends, binds and tables"

_FRAMES_PER_RUN = 200_000  # some milliseconds
_QUICK_FRAMES_PER_RUN = 2048
_ALTERNATIONS = 31  # each a single run
_FEW = 8  # VIPs, and clients of each, that stay in the first-level cache with all that is read for them
_SPREAD_FRAMES = 1024
_METHOD = (
    "as memory/ipv4-warm, the least of single runs; hot: 8 clients to 8 VIPs, so that only frames miss a cache; "
    "spread: 1,024 clients to all VIPs, those bound by a prefix included"
)


def run(session: Session) -> Iterator[dict[str, Any]]:
    for axis, sizes in AXES.items():
        published = {n: samples.publish(parse_tables(fleet.document(), source="bench")) for n, fleet in sizes}
        for family in (4, 6):
            yield from _along(session, axis, family, [size for size in sizes if family in size[1].families], published)


def _along(
    session: Session,
    axis: str,
    family: int,
    sizes: Sequence[tuple[int, samples.Fleet]],
    published: dict[int, Published],
) -> Iterator[dict[str, Any]]:
    """A figure for each size; all of them take turns."""
    per_run = _QUICK_FRAMES_PER_RUN if session.quick else _FRAMES_PER_RUN
    runs = {}
    for n, fleet in sizes:
        vips = fleet.vips_of(family)
        few = vips[fleet.cidrs :: max(1, (len(vips) - fleet.cidrs) // _FEW)][:_FEW]
        for kind, frames in (
            ("hot", _frames(family, few, 64, _FEW)),
            ("spread", _frames(family, vips, _SPREAD_FRAMES)),
        ):
            runs[f"{n} {kind}"] = partial(published[n].forwarding.measure_ns, frames, max(1, per_run // len(frames)))
    with pinned(session.cores.work):
        taken = session.alternate(f"memory-flat/{axis}-ipv{family}", runs, session.times(_ALTERNATIONS))
    for kind in ("hot", "spread"):
        yield from level(
            f"memory-flat/{axis}",
            family,
            kind,
            {n: taken[f"{n} {kind}"] for n, _ in sizes},
            {n: 0.0 for n, _ in sizes},
            frame_bytes={4: 64, 6: 78}[family],
            method=_METHOD,
        )


def _frames(family: int, vips: Sequence[bytes], count: int, clients: int | None = None) -> list[bytes]:
    """`count` frames by turns to the VIPs, each from a client of its own, or from one of so many."""
    chance = random.Random(count)
    sources = [chance.getrandbits(32) for _ in range(clients or count)]
    frames = []
    for i in range(count):
        source, vip = sources[i // len(vips) % len(sources) if clients else i], vips[i % len(vips)]
        if family == 4:
            frames.append(samples.ipv4_frame(64, source, 1024 + i, vip))
        else:
            frames.append(samples.ipv6_frame(78, int(samples.CLIENT6) | source, 1024 + i, vip))
    return frames
