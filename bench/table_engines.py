"""Table builds by each engine that this machine has, with weights, at the largest size; changes; `table check`."""

from __future__ import annotations

import itertools
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from bench import compiled, samples
from bench.measure import BASELINE, OURS, Session, figure, pinned
from bench.tables import baseline_s, check_same_work, drained, timed_s
from glb._rendezvous import ENGINES
from glb.table.config import Table
from glb.table.rows import N_ROWS, RowBuilder, order_of

SUMMARY = "rows of 256 and 4,096 backends by AVX-512, AVX2 and scalar, a change of weight, and glbctl table check"

_ALTERNATIONS = {256: 9, 4096: 3}
_CHECK_ALTERNATIONS = 9
_BASELINE = "C loop, -O3, scalar: SipHash-2-4 of every row and backend, the two lowest kept; a whole build"
_NOT_INCLUDED = "reading and checking the JSON file, the row rule (0.3 ms), publishing the rows to the datapath"
_CHANGE_NOT_INCLUDED = "reading and checking the JSON file, publishing the rows to the datapath"


def weighted(table: Table) -> Table:
    """The table with weights 1, 2, 3, 1, 2, 3..."""
    backends = tuple(
        msgspec.structs.replace(backend, weight=1 + number % 3) for number, backend in enumerate(table.backends)
    )
    return msgspec.structs.replace(table, backends=backends)


def with_weight(table: Table, index: int, weight: int) -> Table:
    backends = list(table.backends)
    backends[index] = msgspec.structs.replace(backends[index], weight=weight)
    return msgspec.structs.replace(table, backends=tuple(backends))


def run(session: Session) -> Iterator[dict[str, Any]]:
    with pinned(session.cores.work):
        check_same_work(samples.table(256))
        sizes = (256,) if session.quick else (256, 4096)
        for n_backends, engine in itertools.product(sizes, ENGINES):
            yield _build(session, samples.table(n_backends), engine)
        for engine in ENGINES:
            yield _build(session, weighted(samples.table(256)), engine, kind="weighted")
        for n_backends in sizes:
            yield from _changes(session, samples.table(n_backends))
        yield _check(session)


def _build(session: Session, table: Table, engine: str, *, kind: str = "build") -> dict[str, Any]:
    n_backends = len(table.backends)
    name = f"engines/{kind}-{n_backends}-{engine}"
    sides = {
        OURS: lambda: timed_s(lambda: order_of(table, engine=engine)) * 1e3,
        BASELINE: lambda: baseline_s(table)[0] * 1e3,
    }
    weights = ", weights 1 to 3" if kind == "weighted" else ""
    return figure(
        name,
        session.alternate(name, sides, session.times(_ALTERNATIONS[n_backends])),
        unit="ms",
        better="lower",
        method=f"the first 8 of the order of {N_ROWS:,} rows{weights}, one core, GLB_SIMD={engine}",
        baseline=_BASELINE + (" (which knows no weights)" if weights else ""),
        not_included=_NOT_INCLUDED,
        backends=n_backends,
        rows=N_ROWS,
    )


def _changes(session: Session, table: Table) -> Iterator[dict[str, Any]]:
    n_backends = len(table.backends)
    weights = itertools.cycle([1, 100, 50, 2])
    indexes = itertools.cycle(range(1, n_backends, 7))
    changes: dict[str, tuple[str, Callable[[Table], Table]]] = {
        "state": ("starts to drain", lambda each: drained(each, next(indexes))),
        "weight": ("gets another weight, up to 100", lambda each: with_weight(each, next(indexes), next(weights))),
    }
    for what, (words, change) in changes.items():
        name = f"engines/change-{what}-{n_backends}"
        builder = RowBuilder()
        before = weighted(table)
        builder.build(before)

        def change_ms(builder: RowBuilder = builder, before: Table = before, change: Any = change) -> float:
            after = change(before)
            return timed_s(lambda: builder.build(after)) * 1e3

        sides = {OURS: change_ms, BASELINE: lambda: baseline_s(table)[0] * 1e3}
        yield figure(
            name,
            session.alternate(name, sides, session.times(_ALTERNATIONS[n_backends])),
            unit="ms",
            better="lower",
            method=f"a RowBuilder that built the table (weights 1 to 3) before: one of {n_backends} backends {words}",
            baseline=_BASELINE,
            not_included=_CHANGE_NOT_INCLUDED,
            backends=n_backends,
            rows=N_ROWS,
        )


def _check(session: Session) -> dict[str, Any]:
    path = compiled.directory() / "tables.json"
    path.write_text(samples.document(3))

    def process_ms(*arguments: str) -> float:
        began = time.perf_counter()
        subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
        return (time.perf_counter() - began) * 1e3

    name = "engines/table-check"
    sides = {
        OURS: lambda: process_ms("-m", "glb.ctl.cli", "table", "check", str(path)),
        BASELINE: lambda: process_ms("-c", "pass"),
    }
    return figure(
        name,
        session.alternate(name, sides, session.times(_CHECK_ALTERNATIONS)),
        unit="ms",
        better="lower",
        method="glbctl table check of one table of 3 backends: a whole process, from start to end",
        baseline="python -c pass",
        not_included="nothing",
        backends=3,
    )
