"""What a director has counted since it started, across reloads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Counts:
    """Frames (and bytes) by verdict, table and backend; `lost` is what the kernel could not deliver to a worker."""

    verdicts: Counter[str] = field(default_factory=Counter)  # glb._fastpath.VERDICTS -> frames
    table_frames: Counter[str] = field(default_factory=Counter)  # table name -> frames forwarded
    table_bytes: Counter[str] = field(default_factory=Counter)  # table name -> bytes received of those
    drops: Counter[tuple[str, str]] = field(default_factory=Counter)  # (table name, or "" for none; reason) -> frames
    backends: Counter[tuple[str, str]] = field(default_factory=Counter)  # (table name, address) -> frames as primary
    lost: Counter[str] = field(default_factory=Counter)
    answers: Counter[str] = field(default_factory=Counter)  # to packets that are too big: sent, limited
    accelerated: int = 0  # of the frames forwarded, those that the kernel's program encapsulated

    def add(self, counted: Mapping[str, Mapping[Any, Any]]) -> None:
        """Add what glb._fastpath.Forwarding.counts returned. (Counter.update adds, and keeps zeros.)"""
        self.verdicts.update(counted["verdicts"])
        self.table_frames.update({name: frames for name, (frames, _) in counted["tables"].items()})
        self.table_bytes.update({name: n_bytes for name, (_, n_bytes) in counted["tables"].items()})
        self.drops.update(counted["drops"])
        self.backends.update(counted["backends"])
        self.answers.update(counted["answers"])

    def add_kernel(self, index: list[tuple[str, str]], counted: list[tuple[int, int]]) -> None:
        """Add what the kernel's program counted: (packets, bytes) per (table name, backend address)."""
        for (table, backend), (packets, n_bytes) in zip(index, counted, strict=True):
            self.backends[table, backend] += packets
            self.table_frames[table] += packets
            self.table_bytes[table] += n_bytes
            self.accelerated += packets

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
