"""What a director has counted, across reloads; the kernel's part also across restarts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

ACCELERATED, CYTHON = ENGINES = ("accelerated", "cython")  # who encapsulated: the kernel's program, or a worker


@dataclass(slots=True)
class Counts:
    """Frames (and bytes) by verdict, table and backend; `lost` is what the kernel could not deliver to a worker."""

    verdicts: Counter[str] = field(default_factory=Counter)  # glb._fastpath.VERDICTS -> frames
    table_frames: Counter[tuple[str, str]] = field(default_factory=Counter)  # (table name, engine) -> frames forwarded
    table_bytes: Counter[tuple[str, str]] = field(default_factory=Counter)  # (table name, engine) -> their bytes
    drops: Counter[tuple[str, str]] = field(default_factory=Counter)  # (table name, or "" for none; reason) -> frames
    backends: Counter[tuple[str, str, str]] = field(default_factory=Counter)  # (table, address, engine) -> as primary
    lost: Counter[str] = field(default_factory=Counter)
    answers: Counter[str] = field(default_factory=Counter)  # to packets that are too big: sent, limited
    accelerated: int = 0  # frames that the kernel's program encapsulated, also for tables that are gone

    def add(self, counted: Mapping[str, Mapping[Any, Any]]) -> None:
        """Add what glb._fastpath.Forwarding.counts returned. (Counter.update adds, and keeps zeros.)"""
        self.verdicts.update(counted["verdicts"])
        self.table_frames.update({(name, CYTHON): frames for name, (frames, _) in counted["tables"].items()})
        self.table_bytes.update({(name, CYTHON): n_bytes for name, (_, n_bytes) in counted["tables"].items()})
        self.drops.update(counted["drops"])
        self.backends.update({(*name, CYTHON): frames for name, frames in counted["backends"].items()})
        self.answers.update(counted["answers"])

    def add_kernel(
        self, backends: Mapping[tuple[str, str], tuple[int, int]], past: Mapping[str, tuple[int, int]]
    ) -> None:
        """Add what glb.director.kept.KernelCounters.read returned."""
        for (table, address), (packets, _) in backends.items():
            self.backends[table, address, ACCELERATED] += packets
        by_table = [(table, count) for (table, _), count in backends.items()]
        for table, (packets, n_bytes) in (*by_table, *past.items()):
            self.accelerated += packets
            if table:
                self.table_frames[table, ACCELERATED] += packets
                self.table_bytes[table, ACCELERATED] += n_bytes

    def copy(self) -> Counts:
        return Counts(
            Counter(self.verdicts),
            Counter(self.table_frames),
            Counter(self.table_bytes),
            Counter(self.drops),
            Counter(self.backends),
            Counter(self.lost),
            Counter(self.answers),
            self.accelerated,
        )
