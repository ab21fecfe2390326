"""The live datapath: the XDP program on the interface, one AF_XDP worker per receive queue, and their counters.

The program is attached by a link that is pinned in a BPF file system: it, its maps and the accelerated traffic outlive
this process. The next one loads its own program with its own tables on the sockets and counters that are there
(glb/director/kept.py), and puts it in the place of the old one without a gap.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterable, Sequence
from importlib.resources import files
from pathlib import Path

from glb import _bpf, hook, pin
from glb._fastpath import Forwarding
from glb._xsk import Worker
from glb.director import kept
from glb.director.counts import Counts
from glb.director.interface import Interface
from glb.director.status import QueueStatus
from glb.director.tap import Filter, Program, Tap
from glb.errors import DeviceError

log = logging.getLogger(__name__)

_FIRST = (0).to_bytes(4, "little")
_COUNT_NO_SOCKET = 1  # enum counter of bpf/director.bpf.c
_BANK_CHUNKS = 512  # GLB_BANK_CHUNKS of bpf/glb_layout.h


class Datapath:
    """Forwards from `start` on; `close` ends the workers, and the program stays if it could be pinned. DeviceError."""

    def __init__(
        self,
        interface: Interface,
        *,
        accelerate: bool,
        pin_dir: Path | None,
        cores: Sequence[int] = (),
        busy_poll: bool = False,
    ) -> None:
        self._interface = interface
        self.accelerate = accelerate
        self._pin_dir = pin_dir
        self._object: _bpf.BpfObject | None = None
        self._counters: kept.KernelCounters | None = None
        self._link: int | None = None
        self._options = b""
        self._tap: Tap | None = None
        self._threads: list[threading.Thread] = []
        self._current: Forwarding | None = None
        self._memory: dict[tuple[int, str], _bpf.SharedArrays] = {}  # by bank and name
        self._in_slots: dict[int, _bpf.SharedArrays] = {}  # whose map is in which of the kernel's slots for rows
        # What workers counted before the current generation, and that generation: replaced together, read together.
        self._counted: tuple[Counts, Forwarding | None] = (Counts(), None)
        available = os.sched_getaffinity(0)
        if missing := sorted(set(cores) - available):
            raise DeviceError(f"worker_cores: this process may not use {listed(missing)}, only {listed(available)}")
        self._cores = tuple(cores)
        self._workers = [Worker(interface.name, queue, busy_poll=busy_poll) for queue in range(interface.rx_queues)]

    @property
    def next_bank(self) -> int:
        """Which half of the kernel's slots the next Forwarding has to take."""
        return 0 if self._current is None else 1 - self._current.bank

    def memory(self, name: str, value_bytes: int, n_maps: int = 1) -> _bpf.SharedArrays:
        """Memory of the next Forwarding: that of the last but one, which nobody reads any more, if it is large enough.

        So it is not always zeroed. A new map for rows has to enter its slot, and the kernel takes its time for that: it
        waits for every program that may still use the slot, some 10 ms.
        """
        place = self.next_bank, name
        found = self._memory.get(place)
        if found is None or len(found.fds) < n_maps:
            found = self._memory[place] = _bpf.SharedArrays(name, value_bytes, n_maps)
        return found

    def start(self, forwarding: Forwarding) -> None:
        """Forward by `forwarding` from now on: the first packet is taken when this returns."""
        # To take what XDP_TX sends, a veth's peer needs an XDP program too; for what is redirected, GRO will do.
        direct = 0 if self._interface.kind == "veth" else self._interface.index
        self._options = forwarding.options(accelerate=self.accelerate, ifindex=direct)
        if self._pin_dir:
            self._link = pin.find(self._pin_dir, self._interface.name, self._interface.index)
        adopted = self._load()
        assert self._object is not None
        self.publish(forwarding)
        for worker in self._workers:
            thread = threading.Thread(target=self._work, args=(worker,), name=f"queue-{worker.queue}", daemon=True)
            thread.start()
            self._threads.append(thread)
            worker.start_receiving(self._object.map("glb_sockets"))
        self._attach(adopted)

    def _load(self) -> bool:
        """Load the program, on what an earlier director has left if that can be; whether it could."""
        path, name = _object_path("director.bpf.o"), self._interface.name
        if self._pin_dir and self._link is not None:
            try:
                self._object, self._counters = kept.adopt(path, self._options, self._pin_dir, name)
                return True
            except DeviceError as error:
                log.warning("the maps of an earlier director on %s are not used, counters begin at 0: %s", name, error)
        self._object, self._counters = kept.load(path, self._options)
        return False

    def _work(self, worker: Worker) -> None:
        """The body of a worker's thread. With fewer cores than queues they are used in turn."""
        if self._cores:
            os.sched_setaffinity(0, {self._cores[worker.queue % len(self._cores)]})  # of this thread alone
        worker.run()

    def _attach(self, adopted: bool) -> None:
        """Take over the link that an earlier director has left, or make one."""
        assert self._object is not None and self._counters is not None
        program, name = self._object.program("glb_director"), self._interface.name
        if self._link is None:
            self._link = hook.attach(program, name, self._interface.index)
            if self._pin_dir is None or not pin.keep(self._link, self._pin_dir, name):
                return
        else:
            if self._pin_dir and not adopted:
                # Before the program is: whenever we are killed, maps that are pinned are those of the program in force.
                pin.forget_maps(self._pin_dir, name)
            # From the next frame on it is our program that runs, by our tables.
            _bpf.replace_program(self._link, program)
            what = "program, sockets and counters" if adopted else "program"
            log.info("took over the %s of an earlier director on %s", what, name)
        if self._pin_dir and not adopted:
            kept.keep(self._object, self._counters, self._pin_dir, name)

    def publish(self, forwarding: Forwarding) -> None:
        """Replace what is forwarded by; no packet sees a mixture, none is lost. DeviceError: nothing is replaced."""
        assert self._object is not None and self._counters is not None
        slots = self._counters.assign(forwarding.counter_index())
        forwarding.use_slots(slots)
        # The bank that the generation in force does not name: nobody reads these slots yet.
        for i, fd in enumerate(forwarding.rows_memory.fds):
            slot = forwarding.bank * _BANK_CHUNKS + i
            if self._in_slots.get(slot) is not forwarding.rows_memory:
                _bpf.update_map(self._object.map("glb_chunks"), slot.to_bytes(4, "little"), fd.to_bytes(4, "little"))
                self._in_slots[slot] = forwarding.rows_memory
        if self._tap is not None:
            self._tap.follow(forwarding)
        (generation,) = forwarding.generation_memory.fds
        try:
            # The workers first: what the kernel hands over by a new bind must find it there.
            for worker in self._workers:
                worker.publish(forwarding)
            # The new tables are live in the kernel after this call, which waits for the last packet by the old ones.
            _bpf.update_map(self._object.map("glb_generations"), _FIRST, generation.to_bytes(4, "little"))
        except DeviceError:
            self._take_back(forwarding)
            raise
        self._counted = (self._sum(*self._counted), forwarding)
        self._current = forwarding
        self._counters.in_force = slots

    def _take_back(self, refused: Forwarding) -> None:
        """The workers forward by what is in force again, so that the memory of what was refused can be used."""
        if self._current is None:
            return
        for worker in self._workers:
            worker.publish(self._current)
        before, current = self._counted
        counted = before.copy()
        counted.add(refused.counts())
        self._counted = (counted, current)

    def make_tap(self, filter: Filter) -> Tap:
        """For `open_tap`; loads its program, which takes some 0.3 s."""
        assert self._object is not None and self._link is not None
        plain = Program(self._object, "glb_director", self._link, self._options)
        return Tap(filter, plain, _object_path("capture.bpf.o"), self._workers)

    def open_tap(self, tap: Tap) -> None:
        """Copy packets until `close_tap`; neither while `publish` runs."""
        assert self._current is not None
        tap.open(self._current)
        self._tap = tap

    def close_tap(self) -> None:
        tap, self._tap = self._tap, None
        if tap is not None:
            tap.close()

    @property
    def mode(self) -> str:
        """native, generic or offload: how the XDP program is attached."""
        return str(_bpf.attached_xdp(self._interface.index)[1])

    @property
    def zero_copy(self) -> bool:
        return all(worker.zero_copy for worker in self._workers)

    def queues(self) -> list[QueueStatus]:
        """Each receive queue's worker, as the kernel has it."""
        return [
            QueueStatus(
                queue=worker.queue,
                zero_copy=worker.zero_copy,
                busy_poll=worker.busy_poll,
                cores=sorted(os.sched_getaffinity(thread.native_id or 0))
                if self._cores and thread.is_alive()
                else None,
                packets=worker.received,
            )
            for worker, thread in zip(self._workers, self._threads, strict=False)
        ]

    def alive(self) -> bool:
        """Whether every worker runs."""
        return bool(self._threads) and all(thread.is_alive() for thread in self._threads)

    def counts(self) -> Counts:
        """Sums: the workers' since the start, the kernel's since the maps were made."""
        total = self._sum(*self._counted)
        if self._object is not None and self._counters is not None:
            total.add_kernel(*self._counters.read())
            total.lost["no_socket"] += _bpf.sum_per_cpu(self._object.map("glb_counters"), _COUNT_NO_SOCKET)
        for worker in self._workers:
            total.lost.update(worker.lost())
        return total

    def _sum(self, before: Counts, forwarding: Forwarding | None) -> Counts:
        total = before.copy()
        if forwarding is not None:
            total.add(forwarding.counts())
        return total

    def close(self) -> None:
        """Stop the workers. Pinned, the program goes on with what it forwards by; else it goes too."""
        self.close_tap()
        if self._link is not None:
            os.close(self._link)
            self._link = None
        for worker in self._workers:
            worker.stop()
        for thread in self._threads:
            thread.join(timeout=2)
        self._workers = []
        if self._object is not None:
            self._object.close()
            self._object = None
        if self._counters is not None:
            self._counters.close()
            self._counters = None


def listed(cores: Iterable[int]) -> str:
    return ", ".join(str(core) for core in sorted(cores))


def _object_path(name: str) -> Path:
    return Path(str(files("glb"))) / "bpf_objects" / name
