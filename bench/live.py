"""A real director over a veth pair, against a bare AF_XDP echo: frames that come back a second."""

from __future__ import annotations

import os
import socket
import statistics
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import msgspec

from bench import compiled, samples
from bench.errors import BenchError
from bench.hosts import Host, hosts
from bench.load import Order, Report
from bench.measure import BASELINE, OURS, Session, figure, significant, spread

SUMMARY = "glb-director over veth, datapath cython, against a bare AF_XDP echo"

_ROOT = Path(__file__).parents[1]
_LINKS = {OURS: "glbb-ours", BASELINE: "glbb-echo"}
_N_BACKENDS = 100
_ALTERNATIONS = 9
_SECONDS = 1.25
_QUICK_SECONDS = 0.3
# More load than either can take, so that neither waits for frames, but not so much that dropping them decides.
_OVERLOAD = 1.5
_CALIBRATIONS = 3
_CALIBRATION_S = 0.2
_READY_S = 20.0
CASES = {
    "ipv4-64": samples.ipv4_frame(64, 0, 0),
    "ipv4-1400": samples.ipv4_frame(1400, 0, 0),
    "ipv6-78": samples.ipv6_frame(78, int(samples.CLIENT6), 0),
}
_METHOD = (
    "glb-director run in a network namespace, one queue of a veth pair, native XDP, AF_XDP copy mode; TCP frames of "
    "random clients from BPF_PROG_TEST_RUN with live frames on another core, paced; tunnel packets counted by an "
    "XDP_DROP program at the other end"
)
_BASELINE = "bench/echo.c: AF_XDP, MAC addresses exchanged, the same rings, batches and wake-ups; the same load"
_NOT_INCLUDED = "a network card; ours sends 40 bytes more a frame than the echo"


def module_environment() -> dict[str, str]:
    """For `python -m bench.something`, wherever this process was started."""
    return {"PYTHONPATH": os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")]))}


class LoadClient:
    """bench/load.py on a host."""

    def __init__(self, host: Host, core: int, links: Iterable[str]) -> None:
        """`links`: the interfaces on which it counts what comes back."""
        argv = [sys.executable, "-m", "bench.load", str(compiled.bpf_object("load.bpf.c")), *links]
        self.process = host.start(argv, core, stdin=subprocess.PIPE, environment=module_environment())
        self._expect_ready()

    def _expect_ready(self) -> None:
        if self._line() != "ready":
            raise BenchError("the load generator did not start")

    def _line(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise BenchError(f"the load generator ended by itself ({self.process.wait()})")
        return line.rstrip()

    def run(self, order: Order) -> Report:
        assert self.process.stdin is not None
        self.process.stdin.write(msgspec.json.encode(order).decode() + "\n")
        self.process.stdin.flush()
        return msgspec.json.decode(self._line(), type=Report)


@contextmanager
def ending(process: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


@contextmanager
def echo(host: Host, core: int) -> Iterator[int]:
    """The baseline, forwarding; its process id."""
    argv = [str(compiled.program("echo.c", "xdp", "bpf")), _LINKS[BASELINE], str(compiled.bpf_object("echo.bpf.c"))]
    with ending(host.start(argv, core)) as process:
        assert process.stdout is not None
        if process.stdout.readline() != "ready\n":
            raise BenchError(f"the echo did not start ({process.wait()})")
        yield process.pid


@contextmanager
def director(
    host: Host,
    core: int,
    link: str = _LINKS[OURS],
    *,
    datapath: str = "cython",
    document: str | None = None,
    daemon_cores: str | None = None,
) -> Iterator[int]:
    """A `glb-director run`, forwarding by tables.json in the directory of products; its process id.

    `daemon_cores`: where all but its worker may run; else on the worker's core.
    """
    home = compiled.directory()
    (home / "tables.json").write_text(document or samples.document(_N_BACKENDS))
    (home / "director.toml").write_text(
        f"""\
interface = "{link}"
datapath = "{datapath}"
pin_dir = ""
worker_cores = [{core}]
table = "{home}/tables.json"
outbound_src_ip = "{samples.DIRECTOR_IP}"
outbound_gateway_mac = "{samples.GATEWAY_MAC.hex(":")}"
admin = "unix:{home}/admin.sock"
"""
    )
    argv = [sys.executable, "-m", "glb.director.cli", "run", "--config", str(home / "director.toml")]
    with ExitStack() as stack:
        log = stack.enter_context((home / "director.log").open("wb"))
        notified = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        address = home / "notify.sock"
        address.unlink(missing_ok=True)
        notified.bind(str(address))
        notified.settimeout(0.1)
        process = stack.enter_context(
            ending(host.start(argv, daemon_cores or core, stderr=log, environment={"NOTIFY_SOCKET": str(address)}))
        )
        await_ready(notified, process, home / "director.log")
        notified.close()  # nobody would read what reloads say
        yield process.pid


def await_ready(notified: socket.socket, process: subprocess.Popen[str], log: Path) -> None:
    for _ in range(int(_READY_S * 10)):
        try:
            if b"READY=1" in notified.recv(4096):
                return
        except TimeoutError:
            if process.poll() is not None:
                break
    raise BenchError(f"glb-director did not start:\n{log.read_text(errors='replace')}")


def cpu_ns(pid: int) -> int:
    """What the threads of a process have run so far, the softirqs that their system calls ran included."""
    return sum(int(path.read_text().split()[0]) for path in Path(f"/proc/{pid}/task").glob("*/schedstat"))


class Contest:
    """One kind of frame through both programs."""

    def __init__(self, load: LoadClient, pids: Mapping[str, int], frame: bytes, seconds: float) -> None:
        self._load = load
        self._pids = pids
        self._frame = frame
        self._seconds = seconds
        self.frames_per_s = 0.0  # offered
        self.cpu_ns: dict[str, list[float]] = {OURS: [], BASELINE: []}  # of the process, per frame that came back

    def calibrate(self) -> None:
        """Find the load: the better side's rate under all the load there is, and somewhat more."""
        self.frames_per_s = 0.0
        reports = [self._run(side, _CALIBRATION_S) for _ in range(_CALIBRATIONS) for side in (OURS, BASELINE)]
        self.frames_per_s = max(report.tunnel + report.other for report in reports) * _OVERLOAD
        for taken in self.cpu_ns.values():
            taken.clear()

    def ours(self) -> float:
        report = self._run(OURS, self._seconds)
        if report.other > report.tunnel / 1000:
            raise BenchError(f"{report.other:.0f} frames a second came back that are no tunnel packets")
        return report.tunnel

    def baseline(self) -> float:
        return self._run(BASELINE, self._seconds).other

    def cpu_ratio(self) -> float:
        """What `ratio` would be if only the processor counted: the echo's time for a frame to ours."""
        sides = zip(self.cpu_ns[BASELINE], self.cpu_ns[OURS], strict=True)
        return significant(statistics.median(other / mine for other, mine in sides))

    def _run(self, side: str, seconds: float) -> Report:
        before = cpu_ns(self._pids[side])
        report = self._load.run(Order(_LINKS[side], self._frame, self.frames_per_s, seconds))
        if not report.tunnel + report.other:
            raise BenchError(f"nothing came back from {side}")
        self.cpu_ns[side].append((cpu_ns(self._pids[side]) - before) / report.total)
        return report


def run(session: Session) -> Iterator[dict[str, Any]]:
    seconds = _QUICK_SECONDS if session.quick else _SECONDS
    work = session.cores.work
    with hosts(*_LINKS.values()) as (near, far):
        load = LoadClient(near, session.cores.load, _LINKS.values())
        with ending(load.process):
            for case, frame in CASES.items():
                # New processes for each case: where their memory happens to lie should not decide all of them.
                with echo(far, work) as echo_pid, director(far, work) as director_pid:
                    contest = Contest(load, {OURS: director_pid, BASELINE: echo_pid}, frame, seconds)
                    contest.calibrate()
                    name = f"live/{case}"
                    sides = {OURS: contest.ours, BASELINE: contest.baseline}
                    taken = session.alternate(name, sides, session.times(_ALTERNATIONS))
                yield figure(
                    name,
                    taken,
                    unit="frames/s",
                    better="higher",
                    frame_bytes=[len(frame)],
                    method=_METHOD,
                    baseline=_BASELINE,
                    not_included=_NOT_INCLUDED,
                    offered_frames_per_s=round(contest.frames_per_s),
                    # If so the figure is of the load, not of what was measured.
                    limited_by_load=max(taken[OURS] + taken[BASELINE]) > 0.98 * contest.frames_per_s,
                    cpu_ratio=contest.cpu_ratio(),
                    cpu_ns_per_frame={side: spread(values) for side, values in contest.cpu_ns.items()},
                    backends=_N_BACKENDS,
                    seconds_each=seconds,
                )
