"""Whose the kernel's counters are: over any sequence of tables nothing is counted twice, or for another, or lost."""

from __future__ import annotations

from collections import Counter

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glb.director import ledger as ledgers
from glb.director.ledger import N_SLOTS, Ledger, Name


class Kernel:
    """A program that counts by the slots of the generation in force, and what it counted really, by backend."""

    def __init__(self) -> None:
        self.ledger = Ledger()
        self.counted: list[tuple[int, int]] = []
        self.sent: Counter[Name] = Counter()
        self.in_force: dict[Name, int] = {}

    def assign(self, names: list[Name]) -> dict[Name, int]:
        """As a director that publishes `names`, up to the moment before it does."""
        counted = self.counted[: self.ledger.n_used]
        made = self.ledger.assigned(names, self.ledger.in_force, counted)
        self.ledger = msgspec.msgpack.decode(msgspec.msgpack.encode(made), type=Ledger)
        return dict(zip(names, self.ledger.slots(names), strict=True))

    def publish(self, names: list[Name]) -> None:
        self.in_force = self.assign(names)

    def settle(self) -> None:
        """As a director that knows what is in force: no slot of another generation has to be kept free."""
        self.ledger = msgspec.structs.replace(self.ledger, in_force=tuple(self.in_force.values()))

    def forward(self) -> None:
        """Packets to every backend."""
        for name, slot in self.in_force.items():
            self.counted += [(0, 0)] * (slot + 1 - len(self.counted))
            packets, n_bytes = self.counted[slot]
            self.counted[slot] = packets + 1 + slot % 3, n_bytes + 64
            self.sent[name] += 1 + slot % 3

    def check(self) -> None:
        shown = self.ledger.backends(self.counted)
        for name in self.in_force:
            assert shown[name][0] <= self.sent[name], "nobody else's packets"
        by_table = Counter({table: packets for table, (packets, _) in self.ledger.past.items()})
        for (table, _), (packets, n_bytes) in shown.items():
            assert packets >= 0 and n_bytes >= 0
            by_table[table] += packets
        assert by_table.total() == self.sent.total(), "every packet is in one sum"
        for table in {table for table, _ in self.in_force}:
            assert by_table[table] <= sum(n for (t, _), n in self.sent.items() if t == table)


backends = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("123456")), min_size=1, max_size=8, unique=True)


@settings(max_examples=200)
@given(st.lists(st.tuples(backends, st.booleans()), max_size=20))
def test_every_packet_is_counted_once_over_reloads_and_kills(steps: list[tuple[list[Name], bool]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ledgers, "N_SLOTS", 16)  # so that they run out: two generations of at most eight
        kernel = Kernel()
        for names, is_killed in steps:
            if is_killed:  # in the middle of its publication
                kernel.assign(names)
                kernel.forward()
                kernel.check()
                kernel.settle()  # else the hypothetical generations add up, as they do in no test of three
            kernel.publish(names)
            kernel.forward()
            kernel.check()
            kernel.settle()


def test_a_backend_keeps_its_slot_and_what_it_counted_while_it_is_gone() -> None:
    kernel = Kernel()
    kernel.publish([("web", "1"), ("web", "2")])
    kernel.forward()
    before = kernel.in_force
    kernel.publish([("web", "2"), ("web", "3")])
    kernel.settle()
    kernel.forward()
    kernel.publish([("web", "1"), ("web", "2"), ("web", "3")])
    assert {name: kernel.in_force[name] for name in before} == before
    assert kernel.ledger.backends(kernel.counted) == {
        name: (kernel.sent[name], 64 * times)
        for name, times in ((("web", "1"), 1), (("web", "2"), 2), (("web", "3"), 1))
    }


def test_slots_of_what_may_be_in_force_are_nobody_elses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledgers, "N_SLOTS", 4)
    kernel = Kernel()
    kernel.publish([("web", "1"), ("web", "2")])
    kernel.forward()
    refused = kernel.assign([("web", "2"), ("web", "3")])
    assert refused["web", "3"] not in kernel.in_force.values()
    other = kernel.assign([("mail", "1")])
    assert not {*other.values()} & {*kernel.in_force.values(), *refused.values()}


def test_where_every_slot_may_be_in_force_the_wanted_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledgers, "N_SLOTS", 4)
    kernel = Kernel()
    kernel.publish([("web", "1"), ("web", "2")])
    kernel.forward()
    kernel.assign([("web", "3"), ("web", "4")])  # killed in the middle of it: who knows which two are in force
    kernel.publish([("web", "5"), ("web", "6")])
    kernel.forward()
    kernel.check()


def test_only_so_many_backends_that_are_gone_are_kept() -> None:
    kernel = Kernel()
    for n in range(3000):
        kernel.publish([("web", str(n)), ("web", str(n + 1))])
        kernel.settle()
        kernel.forward()
    kernel.check()
    assert len(kernel.ledger.backends(kernel.counted)) < 1100


def test_a_table_that_is_gone_is_forgotten_but_for_the_sum() -> None:
    kernel = Kernel()
    for n in range(100):
        kernel.publish([(f"table{n}", "1"), (f"table{n}", "2")])
        kernel.settle()
        kernel.forward()
    kernel.check()
    assert len(kernel.ledger.tables) <= 2 and set(kernel.ledger.past) <= {"", "table98"}
    assert kernel.ledger.n_used <= 4


def test_a_full_ledger_fits_and_two_full_generations_find_room() -> None:
    kernel = Kernel()
    for generation in range(3):
        names = [(f"{'𝔸' * 60}{generation}{i % 250:03}", f"255.255.{generation}{i:05}") for i in range(N_SLOTS // 2)]
        kernel.publish(names)
        kernel.settle()
        kernel.counted = [(1 << 40, 1 << 48)] * N_SLOTS
    assert len(msgspec.msgpack.encode(kernel.ledger)) < 1 << 21
