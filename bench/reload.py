"""From the replacement of a table file to the first packet by its rows, under full load; and whether any is lost."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from pyroute2 import netns

from bench import compiled, samples
from bench.errors import BenchError
from bench.hosts import Host, hosts
from bench.live import LoadClient, director, ending, module_environment
from bench.load import Order, Report
from bench.measure import BASELINE, OURS, Session, figure, spread
from glb import _bpf
from glb.ctl.fleet import ask

SUMMARY = "a table of 256 backends replaced under load: time to the first packet by its rows, packets lost"

_LINK = "glbb-reload"
_N_BACKENDS = 256
_ALTERNATIONS = 9
_LOAD_S = 0.7  # and a warm-up before
_SETTLE_S = 0.4  # of load before a file is replaced
_SHARE = 0.5  # of what came back under full load, where nothing may be lost
_DEADLINE_S = 5.0
_POLL_S = 0.002
_CHANGING = 1  # the backend whose state changes: the low bits of its address
_CASES = {
    "state": "one of 256 backends, drained before, is filled again",
    "order": "the same, and another seed: every row is ordered anew",
}
_RUNS = (("xdp", "state"), ("cython", "state"), ("xdp", "order"))
_METHOD = (
    "glb-director run in a network namespace over veth, its worker on one core, its other threads on either; TCP "
    "frames of 64 bytes of random clients from the other core, as many as go; the table file is replaced by rename; "
    "value: until the first tunnel packet for the backend that it fills arrives, by the clock of an XDP program at the "
    "other end; paced: the same beside half of the load, and how many of all frames did not come back"
)
_BASELINE = "bench/reload_baseline.py: asyncio, inotify, read, json.loads; on the same cores, beside the same load"
_NOT_INCLUDED = "new backends, whose next hops have to be resolved first"


class Arrivals:
    """The program at the near host's end of the link, which sees what the director sends."""

    def __init__(self, host: Host) -> None:
        self._object = _bpf.BpfObject(compiled.bpf_object("arrivals.bpf.c"))
        netns.pushns(host.path)
        try:
            self._link = _bpf.attach_xdp(self._object.program("note_and_drop"), socket.if_nametoindex(_LINK))
        finally:
            netns.popns()

    def total(self) -> int:
        return int(_bpf.sum_per_cpu(self._object.map("total"), 0))

    def forget(self) -> None:
        _bpf.update_map(self._object.map("arrivals"), _CHANGING.to_bytes(4, "little"), bytes(8))

    def first_ns(self) -> int:
        """When the first packet for the backend that changes arrived since `forget`; 0: none has."""
        value = _bpf.lookup_map(self._object.map("arrivals"), _CHANGING.to_bytes(4, "little"), 8)
        assert value is not None
        return int.from_bytes(value, "little")

    def close(self) -> None:
        os.close(self._link)
        self._object.close()


class Tables:
    """The director's table file, in which one backend is filled and drained."""

    def __init__(self, home: Path, *, reorders: bool) -> None:
        self._path = home / "tables.json"
        self._admin = f"unix:{home}/admin.sock"
        self._reorders = reorders
        self._serial = 0

    def drain(self) -> None:
        """The backend has no packets any more when this returns."""
        _, text = self._replace("draining")
        version = hashlib.sha256(text.encode()).hexdigest()
        deadline = time.monotonic() + _DEADLINE_S
        while ask(self._admin)["table_version"] != version:
            if time.monotonic() > deadline:
                raise BenchError(f"the director did not publish its tables within {_DEADLINE_S:g} s")
            time.sleep(_POLL_S)

    def fill(self) -> int:
        """The moment at which the file was replaced, in ns."""
        return self._replace("active")[0]

    def _replace(self, state: str) -> tuple[int, str]:
        self._serial += 1
        document = json.loads(samples.document(_N_BACKENDS))
        table = document["tables"][0]
        table["backends"][0]["state"] = state
        if self._reorders:
            table["seed"] = f"{self._serial:032x}"
        text = json.dumps(document) + "\n" * self._serial  # so that each has a version of its own
        return replace_file(self._path, text), text


def replace_file(path: Path, text: str) -> int:
    """The moment at which it was replaced, in ns."""
    beside = path.with_suffix(".new")
    beside.write_text(text)
    began = time.monotonic_ns()
    beside.rename(path)
    return began


class Baseline:
    """bench/reload_baseline.py on the director's cores."""

    def __init__(self, host: Host, cores: str, path: Path) -> None:
        self._path = path
        argv = [sys.executable, "-m", "bench.reload_baseline", str(path)]
        self.process = host.start(argv, cores, environment=module_environment())
        if self._line() != "ready":
            raise BenchError("the baseline did not start")

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip()

    def notice_ms(self) -> float:
        began = replace_file(self._path, samples.document(_N_BACKENDS))
        return (int(self._line()) - began) / 1e6


class Reloads:
    """A director and the baseline beside it, with load."""

    def __init__(self, load: LoadClient, arrivals: Arrivals, tables: Tables, baseline: Baseline) -> None:
        self._load = load
        self._arrivals = arrivals
        self._tables = tables
        self._baseline = baseline
        self._rates: list[float] = []  # frames a second that came back under full load

    def ours_ms(self) -> float:
        self._tables.drain()
        return self._under_full_load(self._reload_ms)

    def baseline_ms(self) -> float:
        return self._under_full_load(self._baseline.notice_ms)

    def frames_per_s(self) -> float:
        """What came back under full load."""
        return statistics.median(self._rates)

    def paced(self, reloads: int) -> dict[str, Any]:
        """Reloads beside a load that does not overload: how long they took, and the frames that did not come back."""
        rate = _SHARE * self.frames_per_s()
        times: list[float] = []
        frames = lost = lost_without = 0
        for _ in range(reloads):
            self._tables.drain()
            taken, report, came_back = self._under_load(rate, self._reload_ms)
            times.append(taken)
            frames += report.made
            lost += report.made - came_back
            # What a busy machine loses anyway.
            _, report, came_back = self._under_load(rate, lambda: 0.0)
            lost_without += report.made - came_back
        return {
            "frames_per_s": round(rate),
            "ms": spread(times),
            "frames": frames,
            "frames_lost": lost,
            "frames_lost_without_reload": lost_without,
        }

    def _under_full_load(self, sample: Callable[[], float]) -> float:
        taken, report, came_back = self._under_load(0.0, sample)
        self._rates.append(came_back * report.offered / report.made)
        return taken

    def _under_load(self, rate: float, sample: Callable[[], float]) -> tuple[float, Report, int]:
        """What the sample gave, the load's report, and how many frames came back."""
        before = self._arrivals.total()
        order = Order(_LINK, samples.ipv4_frame(64, 0, 0), rate, _LOAD_S)
        with ThreadPoolExecutor(1) as pool:
            report = pool.submit(self._load.run, order)
            time.sleep(_SETTLE_S)
            taken = sample()
        return taken, report.result(), self._arrivals.total() - before

    def _reload_ms(self) -> float:
        """Milliseconds from the replacement of the file to the first packet for the backend that it fills."""
        self._arrivals.forget()
        began = self._tables.fill()
        deadline = time.monotonic() + _DEADLINE_S
        while time.monotonic() < deadline:
            first_ns = self._arrivals.first_ns()
            if first_ns:
                return (first_ns - began) / 1e6
            time.sleep(_POLL_S)
        raise BenchError(f"no packet by the new rows within {_DEADLINE_S:g} s")


def run(session: Session) -> Iterator[dict[str, Any]]:
    with hosts(_LINK) as (near, far):
        load = LoadClient(near, session.cores.load, [])
        with ending(load.process), closing(Arrivals(near)) as arrivals:
            for datapath, case in _RUNS[:1] if session.quick else _RUNS:
                yield _reload(session, far, load, arrivals, datapath, case)


def _reload(
    session: Session, far: Host, load: LoadClient, arrivals: Arrivals, datapath: str, case: str
) -> dict[str, Any]:
    home, name = compiled.directory(), f"reload/{datapath}-{case}"
    work, both = session.cores.work, f"{session.cores.load},{session.cores.work}"
    with ExitStack() as stack:
        document = samples.document(_N_BACKENDS)
        stack.enter_context(director(far, work, _LINK, datapath=datapath, document=document, daemon_cores=both))
        baseline = Baseline(far, both, home / "baseline.json")
        stack.enter_context(ending(baseline.process))
        reloads = Reloads(load, arrivals, Tables(home, reorders=case == "order"), baseline)
        sides = {OURS: reloads.ours_ms, BASELINE: reloads.baseline_ms}
        taken = session.alternate(name, sides, session.times(_ALTERNATIONS))
        paced = reloads.paced(session.times(_ALTERNATIONS))
    return figure(
        name,
        taken,
        unit="ms",
        better="lower",
        frame_bytes=[64],
        method=_METHOD,
        baseline=_BASELINE,
        not_included=_NOT_INCLUDED,
        change=_CASES[case],
        frames_per_s=round(reloads.frames_per_s()),
        paced=paced,
        backends=_N_BACKENDS,
    )
