"""Whose the kernel's counters are. A backend of a table keeps its counter, a *slot*, from generation to generation.

The ledger lies beside the counters and outlives the director with them (glb/director/kept.py). It is written whole, and
before a generation is published that counts by it. So it is true whenever a director is killed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import msgspec

N_SLOTS = 32768  # GLB_COUNT_SLOTS of bpf/glb_layout.h
_GONE = 1024  # entries beside two for each backend: more are not kept, as each is shown, and read for that

Name = tuple[str, str]  # of a table, address of its backend
Count = tuple[int, int]  # packets, bytes


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """A backend's slot, and what that had counted before, for others: setting it to zero would be a step of its own."""

    slot: int
    packets: int
    n_bytes: int


class Ledger(msgspec.Struct, frozen=True, array_like=True):
    """Pure: what is counted is given and asked by slot."""

    tables: dict[str, dict[str, Entry]] = {}
    past: dict[str, Count] = {}
    in_force: tuple[int, ...] = ()  # slots of all generations of which one may be in force when this is read
    n_used: int = 0  # slots from there on were never anybody's

    def assigned(self, wanted: Iterable[Name], in_force: Collection[int], counted: Sequence[Count]) -> Ledger:
        """With a slot for each backend wanted (16384 at most).

        `in_force`: slots that a program may count into meanwhile. `counted`: what the first `n_used` slots counted.
        A backend that is gone keeps its slot while its table stays and not too many are gone; its table's sum never
        shrinks.
        """
        in_force = frozenset(in_force)
        names = dict.fromkeys(wanted)
        tables = {table for table, _ in names}
        entries = {
            (table, address): entry for table, backends in self.tables.items() for address, entry in backends.items()
        }
        past = dict(self.past)
        new = [name for name in names if name not in entries]

        def forget(gone: Iterable[Name]) -> None:
            for name in gone:
                add(past, name[0], since(entries.pop(name), counted))

        def unused() -> list[Name]:
            return [name for name, entry in entries.items() if name not in names and entry.slot not in in_force]

        forget([name for name in unused() if name[0] not in tables])
        if len(entries) + len(new) > min(N_SLOTS, 2 * len(names) + _GONE):
            forget(unused())
        if len(entries) + len(new) > N_SLOTS:
            # Three generations or more, one of them in force, and nearly all of their backends differ: some of its last
            # packets may be counted for other backends.
            forget([name for name in entries if name not in names])
        used = {entry.slot for entry in entries.values()}
        free = (slot for slot in range(N_SLOTS) if slot not in used)
        for name in new:
            slot = next(free)
            entries[name] = Entry(slot, *(counted[slot] if slot < len(counted) else (0, 0)))
        by_table: dict[str, dict[str, Entry]] = {}
        for (table, address), entry in entries.items():
            by_table.setdefault(table, {})[address] = entry
        for table in [table for table in past if table and table not in by_table]:
            add(past, "", past.pop(table))
        slots = {entries[name].slot for name in names}
        n_used = max(self.n_used, *(slot + 1 for slot in slots), 0)
        return Ledger(by_table, past, tuple(sorted(slots.union(in_force))), n_used)

    def slots(self, names: Iterable[Name]) -> list[int]:
        """Of backends that have one."""
        return [self.tables[table][address].slot for table, address in names]

    def backends(self, counted: Sequence[Count]) -> dict[Name, Count]:
        """What was counted for each backend that has a slot."""
        return {
            (table, address): since(entry, counted)
            for table, backends in self.tables.items()
            for address, entry in backends.items()
        }


def since(entry: Entry, counted: Sequence[Count]) -> Count:
    """What a slot has counted for its backend."""
    packets, n_bytes = counted[entry.slot] if entry.slot < len(counted) else (0, 0)
    return packets - entry.packets, n_bytes - entry.n_bytes


def add(counts: dict[str, Count], table: str, count: Count) -> None:
    packets, n_bytes = counts.get(table, (0, 0))
    counts[table] = packets + count[0], n_bytes + count[1]
