"""The load of a live benchmark: ``python -m bench.load OBJECT INTERFACE...``, started on a host by bench/live.py.

stdin: one `Order` a line, in JSON; stdout: ``ready``, then one `Report` a line. It counts on every INTERFACE what comes
back. Ends at the end of stdin.
"""

from __future__ import annotations

import signal
import socket
import struct
import sys
import threading
import time

import msgspec

from glb import _bpf
from glb.errors import DeviceError

_WARM_UP_S = 0.3
_STOP_S = 0.05
_DRAIN_S = 0.02  # what still lies in rings comes back
_ENDLESS = (1 << 31) - 1  # runs of the generating program: some minutes even if all it does is wait
_KEY = bytes(4)
_PACE_BYTES = 24
_COUNT_TUNNEL, _COUNT_OTHER = 0, 1


class Order(msgspec.Struct):
    """Frames like this one, from random clients, for so long."""

    interface: str
    frame: bytes  # a TCP segment over IPv4 or IPv6
    frames_per_s: float  # 0: as fast as it goes
    seconds: float


class Report(msgspec.Struct):
    """What happened between the warm-up and the end, per second."""

    offered: float
    tunnel: float  # tunnel packets that came back
    other: float
    total: int  # frames that came back, warm-up and end included
    made: int  # frames that were sent, likewise
    cpu_ns: int  # processor time of this process for all of them, the softirqs that its system calls ran included


class Load:
    def __init__(self, path: str, interfaces: list[str]) -> None:
        self._object = _bpf.BpfObject(path)
        counter = self._object.program("count_and_drop")
        self._links = [_bpf.attach_xdp(counter, socket.if_nametoindex(name)) for name in interfaces]

    def run(self, order: Order) -> Report:
        is_ipv6 = order.frame[12:14] == b"\x86\xdd"
        program = self._object.program("generate_ipv6" if is_ipv6 else "generate_ipv4")
        _bpf.update_map(self._object.map("settings"), _KEY, _settings(order, is_ipv6))
        _bpf.update_map(self._object.map("pace"), _KEY, bytes(_PACE_BYTES))
        empty = self._counts()
        cpu_ns = time.process_time_ns()
        thread = threading.Thread(target=_generate, args=(program, order.frame), daemon=True)
        thread.start()
        time.sleep(_WARM_UP_S)
        before = self._counts()
        began = time.monotonic()
        time.sleep(order.seconds)
        after = self._counts()
        elapsed = time.monotonic() - began
        while thread.is_alive():
            assert thread.ident is not None
            signal.pthread_kill(thread.ident, signal.SIGUSR1)
            thread.join(_STOP_S)
        offered, tunnel, other = ((last - first) / elapsed for last, first in zip(after, before, strict=True))
        time.sleep(_DRAIN_S)
        made, *came_back = self._counts()
        total = sum(came_back) - sum(empty[1:])
        return Report(offered, tunnel, other, total, made, time.process_time_ns() - cpu_ns)

    def _counts(self) -> tuple[int, int, int]:
        pace = _bpf.lookup_map(self._object.map("pace"), _KEY, _PACE_BYTES)
        assert pace is not None
        counts = self._object.map("counts")
        return (
            struct.unpack("3Q", pace)[2],
            _bpf.sum_per_cpu(counts, _COUNT_TUNNEL),
            _bpf.sum_per_cpu(counts, _COUNT_OTHER),
        )


def _generate(program: int, frame: bytes) -> None:
    """Until a signal arrives. One system call: its set-up waits for an RCU grace period, some 10 ms without load."""
    try:
        _bpf.test_run(program, frame, repeat=_ENDLESS, flags=_bpf.LIVE_FRAMES)
    except DeviceError as error:
        if "EINTR" not in str(error):
            raise


def _settings(order: Order, is_ipv6: bool) -> bytes:
    """struct settings of load.bpf.c."""
    header = order.frame[: 74 if is_ipv6 else 54]
    words = struct.unpack("!10H", order.frame[14:34])
    without = words[:5] + words[8:]  # the checksum itself and the source address
    rate = round(order.frames_per_s * (1 << 32) / 1e9)
    return struct.pack("=IIQ80s", socket.if_nametoindex(order.interface), sum(without), rate, header)


def main() -> None:
    load = Load(sys.argv[1], sys.argv[2:])
    signal.signal(signal.SIGUSR1, lambda *_: None)  # only to interrupt the system call
    print("ready", flush=True)
    for line in sys.stdin:
        report = load.run(msgspec.json.decode(line, type=Order))
        print(msgspec.json.encode(report).decode(), flush=True)


if __name__ == "__main__":
    main()
