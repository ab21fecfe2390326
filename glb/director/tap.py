"""Copies packets out of a running datapath: a ring in every worker, and the capturing program in the plain one's place.

Where there is no Tap there is no code for it in the kernel, and one test a batch in a worker.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

from glb import _bpf
from glb._capture import ANY_TABLE, Captured, KernelTap, Wanted, WorkerTap
from glb._fastpath import Forwarding
from glb._xsk import Worker
from glb.errors import DeviceError

log = logging.getLogger(__name__)

# Every map of bpf/director.bpf.c: the capturing program goes on with what the plain one forwards by and counts into.
SHARED_MAPS = ("glb_generations", "glb_chunks", "glb_sockets", "glb_counters", "glb_backend_counts")


@dataclass(frozen=True, slots=True)
class Filter:
    """Which packets, and how much of each."""

    table: str | None = None  # by name; None: any, and packets that end before they have one
    client: IPv4Network | IPv6Network | None = None
    sample: int = 1  # one in so many, by chance
    snap_bytes: int = 2048  # of each as it was received


@dataclass(frozen=True, slots=True)
class Program:
    """An XDP program in force: its object, the link it is attached by, and the options it was loaded with."""

    object: _bpf.BpfObject
    name: str
    link: int
    options: bytes

    def put_in_force(self) -> None:
        """From the next frame on it is this program that runs."""
        _bpf.replace_program(self.link, self.object.program(self.name))


class Tap:
    """Takes packets from its making until `close`, by which everything is as it was before. DeviceError.

    `follow` must know of each Forwarding before it is published. One at a time.
    """

    def __init__(
        self, filter: Filter, plain: Program, path: Path, workers: Sequence[Worker], forwarding: Forwarding
    ) -> None:
        """`path`: the object of the capturing program."""
        self.is_behind = False  # there is more to take
        self._filter = filter
        self._plain = plain
        self._workers = workers
        self._names: dict[int, list[str]] = {}  # tables' names by bank
        self._wanted = Wanted(
            _bpf.SharedArrays, client=filter.client, sample=filter.sample, snap_bytes=filter.snap_bytes
        )
        for bank in range(2):
            self._wanted.want_table(bank, ANY_TABLE if filter.table is None else None)
        self.follow(forwarding)
        maps = {name: plain.object.map(name) for name in SHARED_MAPS}
        (maps["glb_capture"],) = self._wanted.memory.fds
        self._program = Program(_bpf.BpfObject(path, plain.options, maps), "glb_capturing", plain.link, plain.options)
        self._kernel_tap = KernelTap(self._program.object.map("glb_captured"))
        self._worker_taps = [WorkerTap(self._wanted) for _ in workers]
        self._program.put_in_force()
        for worker, tap in zip(workers, self._worker_taps, strict=True):
            worker.tap(tap.address)

    def follow(self, forwarding: Forwarding) -> None:
        """A generation of tables that is about to be published: the table wanted may have another index there."""
        names = list(dict.fromkeys(name for name, _ in forwarding.counter_index()))
        self._names[forwarding.bank] = names
        if self._filter.table is not None:
            index = names.index(self._filter.table) if self._filter.table in names else None
            self._wanted.want_table(forwarding.bank, index)

    def take(self, at_most: int, wait_ms: int) -> list[tuple[str | None, Captured]]:
        """(table's name, packet) of some of what was taken until `wait_ms` from now, by time."""
        packets = self._kernel_tap.take(at_most, wait_ms)
        for tap in self._worker_taps:
            packets += tap.take(at_most)
        self.is_behind = len(packets) >= at_most
        packets.sort(key=lambda packet: packet.at_ns)
        return [(self._name(packet), packet) for packet in packets]

    def _name(self, packet: Captured) -> str | None:
        names = self._names[packet.bank]
        # Two reloads within the time that a packet lay in a buffer: its table had an index that there is no more.
        return names[packet.table] if packet.table is not None and packet.table < len(names) else None

    @property
    def missed(self) -> int:
        """Packets that were wanted and could not be taken: a buffer was full."""
        return self._wanted.missed + sum(tap.missed for tap in self._worker_taps)

    def close(self) -> None:
        try:
            self._plain.put_in_force()
        except DeviceError as error:
            log.warning("the capturing program stays: %s", error)
        for worker in self._workers:
            worker.tap(0)
        self._program.object.close()
