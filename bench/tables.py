"""Table build: a table in memory to its 65,536 rows, and one backend's change of state."""

from __future__ import annotations

import ctypes
import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from bench import compiled, samples
from bench.errors import BenchError
from bench.measure import BASELINE, OURS, Session, figure, pinned
from glb.table.config import State, Table
from glb.table.rows import N_ROWS, RowBuilder, build_rows

SUMMARY = "rows of 16, 100 and 256 backends, new and after a change of state, against a plain loop"

_SIZES = (16, 100, 256)
_ALTERNATIONS = 9
_CHANGES_PER_SAMPLE = 8
_BASELINE = "C loop, -O3, scalar: SipHash-2-4 of every row and backend, the two lowest kept; a whole build"
_NOT_INCLUDED = "reading and checking the JSON file, publishing the rows to the datapath"


def baseline_s(table: Table) -> tuple[float, list[int]]:
    """tables_baseline.c: (seconds, two backend indexes per row)."""
    library = compiled.library("tables_baseline.c")
    library.build_s.restype = ctypes.c_double
    rows = (ctypes.c_uint16 * (2 * N_ROWS))()
    addresses = b"".join(backend.address.packed for backend in table.backends)
    return library.build_s(table.seed, addresses, len(table.backends), N_ROWS, rows), list(rows)


def check_same_work(table: Table) -> None:
    """BenchError unless both sides come to the same rows."""
    if list(build_rows(table).indexes) != baseline_s(table)[1]:
        raise BenchError(f"the baseline builds other rows than ours for {len(table.backends)} backends")


def timed_s(work: Callable[[], object]) -> float:
    """Seconds of processor time, as the baseline counts them: it is one thread's work, and nothing in it waits."""
    began = time.thread_time()
    work()
    return time.thread_time() - began


def drained(table: Table, index: int) -> Table:
    """The table with one backend draining."""
    backends = list(table.backends)
    backends[index] = msgspec.structs.replace(backends[index], state=State.draining)
    return msgspec.structs.replace(table, backends=tuple(backends))


def run(session: Session) -> Iterator[dict[str, Any]]:
    with pinned(session.cores.work):
        for n_backends in _SIZES:
            yield _full_build(session, samples.table(n_backends))
        for n_backends in _SIZES:
            yield _change(session, samples.table(n_backends))


def _full_build(session: Session, table: Table) -> dict[str, Any]:
    n_backends = len(table.backends)
    name = f"tables/build-{n_backends}"
    check_same_work(table)
    sides = {OURS: lambda: timed_s(lambda: build_rows(table)) * 1e3, BASELINE: lambda: baseline_s(table)[0] * 1e3}
    taken = session.alternate(name, sides, session.times(_ALTERNATIONS))
    return figure(
        name,
        taken,
        unit="ms",
        better="lower",
        method=f"glb.table.rows.RowBuilder without memory: {n_backends} backends, {N_ROWS:,} rows, 2 hops, one core",
        baseline=_BASELINE,
        not_included=_NOT_INCLUDED,
        backends=n_backends,
        rows=N_ROWS,
    )


def _change(session: Session, table: Table) -> dict[str, Any]:
    n_backends = len(table.backends)
    name = f"tables/change-{n_backends}"
    builder = RowBuilder()
    builder.build(table)
    changed = itertools.cycle([drained(table, index) for index in range(n_backends)])

    def change_ms() -> float:
        tables = list(itertools.islice(changed, _CHANGES_PER_SAMPLE))
        return timed_s(lambda: [builder.build(each) for each in tables]) * 1e3 / _CHANGES_PER_SAMPLE

    taken = session.alternate(
        name, {OURS: change_ms, BASELINE: lambda: baseline_s(table)[0] * 1e3}, session.times(_ALTERNATIONS)
    )
    return figure(
        name,
        taken,
        unit="ms",
        better="lower",
        method=f"glb.table.rows.RowBuilder that has built the table before: one of {n_backends} backends starts to "
        f"drain, another one each time, mean of {_CHANGES_PER_SAMPLE} changes",
        baseline=_BASELINE,
        not_included=_NOT_INCLUDED,
        backends=n_backends,
        rows=N_ROWS,
    )
