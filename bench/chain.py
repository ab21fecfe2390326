"""The director's XDP program by itself: on frames that are made anew for every repetition (bench/chain.bpf.c)."""

from __future__ import annotations

import struct
import time
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from bench import compiled, samples
from bench.errors import BenchError
from glb import _bpf
from glb._capture import Wanted
from glb.director.config import Config
from glb.director.forwarding import Published, compile_forwarding
from glb.table.config import parse_tables
from glb.table.rows import RowBuilder

_XDP_TX = 3
_FIRST = bytes(4)
_MAX_VIPS = 1024
_ALL_CLIENTS = 0xFFFFFFFF


class Director:
    """bpf/director.bpf.c with tables to forward by, not attached to anything."""

    def __init__(self, tables: str, ifindex: int = 1, path: Path | None = None, capture: Wanted | None = None) -> None:
        """`ifindex`: where frames come in and tunnel packets leave, so by XDP_TX; 1 is that of test runs.

        `path`: another object than the installed one, to compare the two. `capture`: the capturing program.
        """
        self.published = _publish(tables)
        forwarding = self.published.forwarding
        path = path or Path(str(files("glb"))) / "bpf_objects" / f"{'capture' if capture else 'director'}.bpf.o"
        maps = {"glb_capture": capture.memory.fds[0]} if capture else {}
        self._object = _bpf.BpfObject(path, forwarding.options(accelerate=True, ifindex=ifindex), maps)
        for slot, fd in enumerate(forwarding.rows_memory.fds):
            _bpf.update_map(self._object.map("glb_chunks"), slot.to_bytes(4, "little"), fd.to_bytes(4, "little"))
        (fd,) = forwarding.generation_memory.fds
        _bpf.update_map(self._object.map("glb_generations"), _FIRST, fd.to_bytes(4, "little"))
        self.program = self._object.program("glb_capturing" if capture else "glb_director")

    def map(self, name: str) -> int:
        return self._object.map(name)

    def sent(self) -> int:
        """Tunnel packets so far."""
        n = len(self.published.forwarding.counter_index())
        return sum(packets for packets, _ in _bpf.read_counts(self._object.map("glb_backend_counts"), 0, n))

    def close(self) -> None:
        self._object.close()


def _publish(tables: str) -> Published:
    table_set = parse_tables(tables, source="bench")
    made = compile_forwarding(
        table_set,
        RowBuilder().build_all(table_set),
        Config(),
        source_ip=samples.DIRECTOR_IP,
        source_mac=samples.DIRECTOR_MAC,
        memory=_bpf.SharedArrays,
    )
    for address in made.backends():
        made.forwarding.set_next_hop(address.packed, samples.GATEWAY_MAC, samples.PATH_MTU_BYTES)
    return made


class Chain:
    """Frames like `frame`, each from another client and to another of `vips`, to a program; without one, to none."""

    def __init__(
        self, frame: bytes, vips: Sequence[bytes], director: Director | None, *, clients: int = _ALL_CLIENTS
    ) -> None:
        """`clients`: a mask of the source address's low bits that vary."""
        if len(vips) > _MAX_VIPS:
            raise BenchError(f"a chain takes {_MAX_VIPS} VIPs")
        self._frame = frame
        self._director = director
        self._object = _bpf.BpfObject(compiled.bpf_object("chain.bpf.c"))
        head = struct.pack("=4I80s", len(frame), len(vips), clients, samples.PORT, frame[:80])
        addresses = b"".join(vip.ljust(16, b"\0") for vip in vips).ljust(16 * _MAX_VIPS, b"\0")
        _bpf.update_map(self._object.map("settings"), _FIRST, head + addresses)
        program = director.program if director else self._object.program("stop")
        _bpf.update_map(self._object.map("programs"), _FIRST, program.to_bytes(4, "little"))
        self._program = self._object.program("reset_ipv6" if frame[12:14] == b"\x86\xdd" else "reset_ipv4")

    def measure_ns(self, repeat: int) -> float:
        """This thread's processor time for a repetition, in nanoseconds."""
        before = self._director.sent() if self._director else 0
        began = time.thread_time_ns()
        action, _, _ = _bpf.test_run(self._program, self._frame, repeat=repeat)
        taken = (time.thread_time_ns() - began) / repeat
        if action != _XDP_TX or (self._director and self._director.sent() - before != repeat):
            raise BenchError(f"the program did not encapsulate every frame (last action {action})")
        return taken

    def close(self) -> None:
        self._object.close()
