"""In-memory encapsulation: nanoseconds a frame through the packet path, without any device."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from bench import compiled, samples
from bench.errors import BenchError
from bench.measure import BASELINE, OURS, Sample, Session, figure, pinned
from glb._rendezvous import ENGINES
from glb.wire.checksum import ipv4_header

SUMMARY = "in-memory encapsulation by each SIMD engine, against a hash, a row load and a 54-byte write"

_N_BACKENDS = 100
_FRAME_BYTES = {4: 64, 6: 78}  # 78: IPv6 and TCP do not fit 64
# Frames lie 2 KiB apart. 64 of them stay in the first-level cache, 32,768 (64 MiB) in none of a core's own.
_WORKING_SETS = {"hot": 64, "warm": 1024, "cold": 32768}
_FRAMES_PER_RUN = 400_000  # some milliseconds: short enough to go through without being interrupted
_QUICK_FRAMES_PER_RUN = 32_768
_RUNS_PER_SAMPLE = 5  # the best counts
_ALTERNATIONS = 15
_BASELINE = "C loop, -O3, one frame at a time: SipHash-2-4 of the source address, row load, 54-byte front written"
_NOT_INCLUDED = "receiving and sending; in the baseline also parsing, bind look-up, checks and counters"
_FRONT_BYTES = 54
_HEADROOM = 128


class _Plan(ctypes.Structure):
    """struct plan of memory_baseline.c."""

    _fields_ = (
        ("hash_key", ctypes.c_uint8 * 16),
        ("front", ctypes.c_uint8 * 56),
        ("rows", ctypes.c_void_p),
        ("addresses", ctypes.c_void_p),
        ("row_mask", ctypes.c_uint32),
        ("is_ipv6", ctypes.c_uint32),
    )


class Baseline:
    """memory_baseline.c by the same table as ours."""

    def __init__(self, family: int) -> None:
        made = samples.published(_N_BACKENDS)
        [rows] = made.rows
        self._library = compiled.library("memory_baseline.c")
        self._library.measure_ns.restype = ctypes.c_double
        self._rows = ctypes.create_string_buffer(made.forwarding.table_rows(0))
        self._addresses = ctypes.create_string_buffer(b"".join(each.packed for each in made.backends()))
        self._plan = _Plan(
            hash_key=(ctypes.c_uint8 * 16)(*samples.HASH_KEY),
            front=(ctypes.c_uint8 * 56)(*_shared_front(family)),
            rows=ctypes.addressof(self._rows),
            addresses=ctypes.addressof(self._addresses),
            row_mask=rows.n_rows - 1,
            is_ipv6=family == 6,
        )

    def encapsulate(self, frame: bytes) -> bytes:
        growth = _FRONT_BYTES - 14
        buffer = ctypes.create_string_buffer(bytes(_HEADROOM) + frame, _HEADROOM + len(frame))
        self._library.encapsulate(ctypes.byref(self._plan), ctypes.byref(buffer, _HEADROOM))
        return buffer.raw[_HEADROOM - growth :]

    def measure_ns(self, frames: list[bytes], rounds: int) -> float:
        joined = b"".join(frames)
        result = self._library.measure_ns(ctypes.byref(self._plan), joined, len(frames[0]), len(frames), rounds)
        if result < 0:
            raise MemoryError
        return float(result)


def _shared_front(family: int) -> bytes:
    """54 bytes with lengths, checksum, ports and addresses of proxies left 0; docs/protocol/gue.md has the layout."""
    ethernet = samples.GATEWAY_MAC + samples.DIRECTOR_MAC + b"\x08\x00"
    ip = bytearray(ipv4_header(samples.DIRECTOR_IP, samples.DIRECTOR_IP, 17, 0))
    ip[2:4] = ip[10:12] = b"\0\0"
    ip[6:8] = b"\x40\0"
    ip[16:20] = bytes(4)
    udp = b"\0\0" + (19523).to_bytes(2, "big") + bytes(4)
    gue = bytes([2, 4 if family == 4 else 41, 0, 0]) + bytes([0, 0, 0, 1]) + bytes(4)
    front = ethernet + bytes(ip) + udp + gue
    return front.ljust(56, b"\0")


def check_same_work(family: int, frames: list[bytes]) -> None:
    """BenchError unless both sides make the same tunnel packets of the frames."""
    forwarding = samples.published(_N_BACKENDS).forwarding
    baseline = Baseline(family)
    for frame, (verdict, sent) in zip(frames, forwarding.encapsulate(frames, forwarding.new_counters()), strict=True):
        if verdict != "forward" or sent != baseline.encapsulate(frame):
            raise BenchError(f"the baseline writes another packet than ours for {frame.hex()} ({verdict})")


def _best_ns(measure_ns: Callable[[list[bytes], int], float], frames: list[bytes], rounds: int) -> float:
    return min(measure_ns(frames, rounds) for _ in range(_RUNS_PER_SAMPLE))


def run(session: Session) -> Iterator[dict[str, Any]]:
    forwarding = samples.published(_N_BACKENDS).forwarding
    per_run = _QUICK_FRAMES_PER_RUN if session.quick else _FRAMES_PER_RUN
    for family, frame_bytes in _FRAME_BYTES.items():
        baseline = Baseline(family)
        check_same_work(family, samples.flows(family, frame_bytes, 1024))
        for temperature, n_frames in _WORKING_SETS.items():
            name = f"memory/ipv{family}-{temperature}"
            frames = samples.flows(family, frame_bytes, n_frames)
            rounds = max(1, per_run // n_frames)
            sides: dict[str, Sample] = {
                engine: partial(_best_ns, partial(forwarding.measure_ns, engine=engine), frames, rounds)
                for engine in ENGINES
            }
            sides[BASELINE] = partial(_best_ns, baseline.measure_ns, frames, rounds)
            with pinned(session.cores.work):
                taken = session.alternate(name, sides, session.times(_ALTERNATIONS))
            for engine in ENGINES:
                yield figure(
                    name if engine == ENGINES[0] else f"{name}-{engine}",
                    {OURS: taken[engine], BASELINE: taken[BASELINE]},
                    unit="ns/frame",
                    better="lower",
                    frame_bytes=[frame_bytes],
                    method=f"packet path of glb/_fastpath.pyx in batches of 64, flow hashes by {engine}, one core; "
                    f"{n_frames} TCP flows from random addresses over 65,536 rows of {_N_BACKENDS} backends, each "
                    f"{rounds} times, the best of {_RUNS_PER_SAMPLE} such runs; the 14 bytes of the frame that the "
                    "front replaces are written back before each round, on both sides",
                    baseline=_BASELINE,
                    not_included=_NOT_INCLUDED,
                    flows=n_frames,
                    engine=engine,
                )
