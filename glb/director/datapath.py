"""The live datapath: the XDP classifier on the interface, one AF_XDP worker per receive queue, and their counters."""

from __future__ import annotations

import logging
import os
import threading
from importlib.resources import files
from pathlib import Path

from glb import _bpf
from glb._fastpath import Forwarding
from glb._xsk import Worker
from glb.director.counts import Counts
from glb.director.interface import Interface
from glb.errors import DeviceError

log = logging.getLogger(__name__)

_FIRST = (0).to_bytes(4, "little")
_COUNT_NO_SOCKET = 1  # enum counter of bpf/director.bpf.c


class Datapath:
    """Attached and forwarding from `start` to `close`. Raises DeviceError."""

    def __init__(self, interface: Interface) -> None:
        self._interface = interface
        self._object = _bpf.BpfObject(_object_path("director.bpf.o"))
        self._link: int | None = None
        self._threads: list[threading.Thread] = []
        self._current: Forwarding | None = None
        self._retired = Counts()
        try:
            self._workers = [Worker(interface.name, queue) for queue in range(interface.rx_queues)]
        except DeviceError:
            self._object.close()
            raise

    def start(self, forwarding: Forwarding) -> None:
        """Forward by `forwarding` from now on: the first packet is taken when this returns."""
        self.publish(forwarding)
        for worker in self._workers:
            thread = threading.Thread(target=worker.run, name=f"queue-{worker.queue}", daemon=True)
            thread.start()
            self._threads.append(thread)
            worker.start_receiving(self._object.map("glb_sockets"))
        self._link = self._attach()

    def _attach(self) -> int:
        program = self._object.program("glb_director")
        try:
            return int(_bpf.attach_xdp(program, self._interface.index))
        except DeviceError as error:
            if _bpf.attached_xdp(self._interface.index)[0]:
                raise  # somebody else's program: refuse, whatever the mode
            log.warning("native XDP refused on %s (%s); trying generic mode", self._interface.name, error)
            return int(_bpf.attach_xdp(program, self._interface.index, generic=True))

    def publish(self, forwarding: Forwarding) -> None:
        """Replace what is forwarded by; no batch sees a mixture, and nothing is lost."""
        for worker in self._workers:
            worker.publish(forwarding)
        # Only now the classifier hands over packets of new binds.
        block = forwarding.binds_block
        generation = _bpf.create_array("glb_binds", len(block))
        try:
            _bpf.update_map(generation, _FIRST, block)
            _bpf.update_map(self._object.map("glb_generation"), _FIRST, generation.to_bytes(4, "little"))
        finally:
            os.close(generation)
        if self._current is not None:
            self._retired.add(self._current.counts())
        self._current = forwarding

    @property
    def mode(self) -> str:
        """native, generic or offload: how the XDP program is attached."""
        return str(_bpf.attached_xdp(self._interface.index)[1])

    @property
    def zero_copy(self) -> bool:
        return all(worker.zero_copy for worker in self._workers)

    def alive(self) -> bool:
        """Whether every worker runs."""
        return bool(self._threads) and all(thread.is_alive() for thread in self._threads)

    def counts(self) -> Counts:
        """Sums since the start."""
        total = self._retired.copy()
        if self._current is not None:
            total.add(self._current.counts())
        for worker in self._workers:
            total.lost.update(worker.lost())
        total.lost["no_socket"] += _bpf.sum_per_cpu(self._object.map("glb_counters"), _COUNT_NO_SOCKET)
        return total

    def close(self) -> None:
        """Detach, then stop: nothing is handed over any more when the workers go."""
        if self._link is not None:
            os.close(self._link)
            self._link = None
        for worker in self._workers:
            worker.stop()
        for thread in self._threads:
            thread.join(timeout=2)
        self._workers = []
        self._object.close()


def _object_path(name: str) -> Path:
    return Path(str(files("glb"))) / "bpf_objects" / name
