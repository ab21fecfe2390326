"""Copies packets out of a running datapath: a ring in every worker, and the capturing program in the plain one's place.

Where there is no Tap there is no code for it in the kernel, and one test a batch in a worker.
"""

from __future__ import annotations

import logging
import time
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

UNREAD_NS = 5_000_000_000  # nobody takes packets for so long: none is captured, until somebody does

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


class Names:
    """Names of captured packets' tables, though these may have changed while a packet lay in a buffer."""

    def __init__(self) -> None:
        self._since: dict[int, list[tuple[int, list[str]]]] = {0: [], 1: []}  # by bank: from when on (ns), and what

    def follow(self, bank: int, names: list[str], at_ns: int) -> None:
        """The bank's tables from now on. No packet is on its way by the ones that it had."""
        known = self._since[bank]
        if not known or known[-1][1] != names:
            known.append((at_ns, names))

    def of(self, packet: Captured) -> str | None:
        """The name of its table; None: it ended before it had one."""
        if packet.table is None:
            return None
        return next(names[packet.table] for since, names in reversed(self._since[packet.bank]) if since <= packet.at_ns)


class Tap:
    """Takes packets from `open` until `close`, by which everything is as it was before. DeviceError.

    `follow` must know of each Forwarding before it is published. One at a time.
    """

    def __init__(self, filter: Filter, plain: Program, path: Path, workers: Sequence[Worker]) -> None:
        """`path`: the object of the capturing program."""
        self.is_behind = False  # there is more to take
        self._filter = filter
        self._plain = plain
        self._workers = workers
        self._names = Names()
        self._wanted = Wanted(
            _bpf.SharedArrays, client=filter.client, sample=filter.sample, snap_bytes=filter.snap_bytes
        )
        for bank in range(2):
            self._wanted.want_table(bank, ANY_TABLE if filter.table is None else None)
        maps = {name: plain.object.map(name) for name in SHARED_MAPS}
        (maps["glb_capture"],) = self._wanted.memory.fds
        self._program = Program(_bpf.BpfObject(path, plain.options, maps), "glb_capturing", plain.link, plain.options)
        self._kernel_tap = KernelTap(self._program.object.map("glb_captured"))
        self._worker_taps = [WorkerTap(self._wanted) for _ in workers]

    def open(self, forwarding: Forwarding) -> None:
        """Begin, while this Forwarding is in force."""
        self.follow(forwarding)
        self._go_on()
        self._program.put_in_force()
        for worker, tap in zip(self._workers, self._worker_taps, strict=True):
            worker.tap(tap.address)

    def follow(self, forwarding: Forwarding) -> None:
        """A generation of tables that is about to be published: the table wanted may have another index there."""
        names = list(dict.fromkeys(name for name, _ in forwarding.counter_index()))
        self._names.follow(forwarding.bank, names, time.monotonic_ns())
        if self._filter.table is not None:
            index = names.index(self._filter.table) if self._filter.table in names else None
            self._wanted.want_table(forwarding.bank, index)

    def take(self, at_most: int, wait_ms: int) -> list[tuple[str | None, Captured]]:
        """(table's name, packet) of some of what was taken until `wait_ms` from now, by time."""
        self._go_on()
        packets = self._kernel_tap.take(at_most, wait_ms)
        for tap in self._worker_taps:
            packets += tap.take(at_most)
        self.is_behind = len(packets) >= at_most
        packets.sort(key=lambda packet: packet.at_ns)
        return [(self._names.of(packet), packet) for packet in packets]

    def _go_on(self) -> None:
        """Somebody reads. Should that end (this process is killed, or its client stuck), so do the costs."""
        self._wanted.want_until(time.monotonic_ns() + UNREAD_NS)

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
