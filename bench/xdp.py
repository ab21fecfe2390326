"""The XDP program that encapsulates in the kernel: by itself, and over veth against a bare MAC swap."""

from __future__ import annotations

import os
import socket
import statistics
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import Any

from pyroute2 import netns

from bench import compiled, samples
from bench.chain import Chain, Director
from bench.errors import BenchError
from bench.hosts import hosts
from bench.live import CASES, LoadClient, cpu_ns, ending
from bench.load import Order
from bench.measure import BASELINE, OURS, Session, figure, net_figure, pinned, significant, spread
from glb import _bpf

SUMMARY = "the XDP program alone, and over veth against a bare MAC swap + XDP_TX"

_LINK = "glbb-xdp"
_N_BACKENDS = 100
_FLEET = samples.Fleet(_N_BACKENDS, vips=252, cidrs=16)
_SECONDS = 0.5
_QUICK_SECONDS = 0.1
_ALTERNATIONS = 15
_REPEAT = 400_000  # some 40 ms: most of it after the rows have come into the caches
_QUICK_REPEAT = 20_000
_ALONE_ALTERNATIONS = 15
_ALONE_METHOD = (
    "BPF_PROG_TEST_RUN, one core; before each repetition bench/chain.bpf.c moves the head back and writes the headers "
    "of a random client, and goes on with the program by a tail call; least processor time less the least of the same "
    "chain with a program that only returns"
)
_LIVE_METHOD = (
    "a veth pair, native XDP, XDP_TX; TCP frames of random clients from BPF_PROG_TEST_RUN with live frames on the same "
    "core, as fast as it goes; tunnel packets counted by an XDP_DROP program at the other end; the two programs take "
    "turns on the same interface"
)


def run(session: Session) -> Iterator[dict[str, Any]]:
    yield from _alone(session)
    yield from _live(session)


# ---- the program by itself -----------------------------------------------------------------------------------------


def _alone(session: Session) -> Iterator[dict[str, Any]]:
    repeat = _QUICK_REPEAT if session.quick else _REPEAT
    with closing(Director(_FLEET.document())) as director:
        for family, frame in ((4, samples.ipv4_frame(64, 0, 0)), (6, samples.ipv6_frame(78, 0, 0))):
            vips = _FLEET.vips_of(family)
            by_bind = {"": vips[_FLEET.cidrs :], "-cidr": vips[: _FLEET.cidrs]}
            for suffix, some in by_bind.items():
                name = f"xdp/alone-ipv{family}{suffix}"
                with closing(Chain(frame, some, director)) as ours, closing(Chain(frame, some, None)) as bare:
                    sides = {OURS: lambda: ours.measure_ns(repeat), BASELINE: lambda: bare.measure_ns(repeat)}
                    with pinned(session.cores.work):
                        taken = session.alternate(name, sides, session.times(_ALONE_ALTERNATIONS))
                yield net_figure(
                    name,
                    taken,
                    frame_bytes=[len(frame)],
                    method=_ALONE_METHOD,
                    baseline="the chain alone, which is not in the value",
                    not_included="receiving and sending",
                    backends=_N_BACKENDS,
                    vips=_FLEET.vips,
                    destinations=len(some),
                )


# ---- over veth -----------------------------------------------------------------------------------------------------


class Contest:
    """One kind of frame through our program and through the swap, which take turns on one interface."""

    def __init__(
        self, load: LoadClient, link: int, programs: Mapping[str, int], tunnels: Container[str], order: Order, core: int
    ) -> None:
        """`link`: of the interface's program; `tunnels`: the sides from which tunnel packets come back."""
        self._load, self._link, self._order = load, link, order
        self._programs, self._tunnels = programs, tunnels
        self._ksoftirqd = _ksoftirqd(core)
        self.cpu_ns: dict[str, list[float]] = {side: [] for side in programs}  # of the core, per frame that came back

    def sample(self, side: str) -> float:
        """Frames that come back, a second."""
        _bpf.replace_program(self._link, self._programs[side])
        before = cpu_ns(self._ksoftirqd)
        report = self._load.run(self._order)
        if not report.total:
            raise BenchError(f"nothing came back from {side}")
        self.cpu_ns[side].append((report.cpu_ns + cpu_ns(self._ksoftirqd) - before) / report.total)
        kinds = (report.tunnel, report.other)
        return _only(*(kinds if side in self._tunnels else reversed(kinds)))

    def sides(self) -> dict[str, Callable[[], float]]:
        return {side: partial(self.sample, side) for side in self._programs}

    def cpu_ratio(self) -> float:
        """What `ratio` would be if only the processor counted: the swap's time for a frame to ours."""
        sides = zip(self.cpu_ns[BASELINE], self.cpu_ns[OURS], strict=True)
        return significant(statistics.median(other / mine for other, mine in sides))


def _only(wanted: float, other: float) -> float:
    if other > wanted / 1000:
        raise BenchError(f"{other:.0f} frames a second came back that are not of the kind expected")
    return wanted


def _live(session: Session) -> Iterator[dict[str, Any]]:
    seconds = _QUICK_SECONDS if session.quick else _SECONDS
    core = session.cores.load
    with hosts(_LINK) as (near, far):
        load = LoadClient(near, core, [_LINK])
        with ending(load.process), FarEnd(far.path) as far_end:
            for case, frame in CASES.items():
                programs = {OURS: far_end.director.program, BASELINE: far_end.swap}
                contest = Contest(load, far_end.link, programs, {OURS}, Order(_LINK, frame, 0.0, seconds), core)
                name = f"xdp/live-{case}"
                taken = session.alternate(name, contest.sides(), session.times(_ALTERNATIONS))
                yield figure(
                    name,
                    taken,
                    unit="frames/s",
                    better="higher",
                    frame_bytes=[len(frame)],
                    method=_LIVE_METHOD,
                    baseline="an XDP program that exchanges the MAC addresses and returns XDP_TX",
                    not_included="a network card; ours sends 40 bytes more a frame",
                    cpu_ratio=contest.cpu_ratio(),
                    cpu_ns_per_frame={side: spread(values) for side, values in contest.cpu_ns.items()},
                    backends=_N_BACKENDS,
                    seconds_each=seconds,
                )


class FarEnd:
    """The far host's interface, with a link that runs the swap or the director's program."""

    def __init__(self, namespace: str) -> None:
        netns.pushns(namespace)
        try:
            ifindex = socket.if_nametoindex(_LINK)
            self.director = Director(samples.document(_N_BACKENDS), ifindex)
            self._bare = _bpf.BpfObject(compiled.bpf_object("chain.bpf.c"))
            self.swap = self._bare.program("swap")
            self.link = _bpf.attach_xdp(self.swap, ifindex)
        finally:
            netns.popns()

    def __enter__(self) -> FarEnd:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.link)
        self._bare.close()
        self.director.close()


def _ksoftirqd(core: int) -> int:
    """Process id of the core's kernel thread that takes over when softirqs do not end."""
    for path in Path("/proc").glob("[0-9]*/comm"):
        with suppress(OSError):  # a process may end while we look
            if path.read_text() == f"ksoftirqd/{core}\n":
                return int(path.parent.name)
    raise BenchError(f"no ksoftirqd/{core}")
