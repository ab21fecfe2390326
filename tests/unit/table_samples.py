"""Tables for tests, and an independent, slow model of the rendezvous order and of the row rules."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterable
from typing import Any

from glb import _rendezvous
from glb.table.config import Backend, Bind, RowRule, State, Table

HASH_KEY = bytes.fromhex("7d3a34c59e1bb856c3d13fde9020837a")
SEED = bytes.fromhex("5c8e961afcab1024f5540161ef51bc86")

# A backend in one word: its state, "+" healthy, "-" unhealthy, neither: not health-checked.
_HEALTH = {"+": True, "-": False}


def backend(number: int, word: str) -> Backend:
    """10.0.0.`number` in a state such as ``active+``."""
    healthy = _HEALTH.get(word[-1])
    address = ipaddress.IPv4Address(0x0A000000 + number)
    return Backend(address, State(word.rstrip("+-")), healthy)


def table(
    words: Iterable[str],
    *,
    hops: int = 2,
    row_rule: RowRule = "first_usable",
    name: str = "web",
    seed: bytes = SEED,
) -> Table:
    """A table of backends 10.0.0.1, 10.0.0.2 ... in these states."""
    bind = Bind(ipaddress.ip_network("203.0.113.10/32"), 6, 80, 80)
    backends = tuple(backend(number, word) for number, word in enumerate(words, 1))
    return Table(name, HASH_KEY, seed, (bind,), backends, hops, row_rule)


def document(n_backends: int = 3, **changes: object) -> dict[str, Any]:
    """A document of one table, its keys replaced by `changes`; a value of ... leaves the key out."""
    result: dict[str, Any] = {
        "name": "web",
        "hash_key": HASH_KEY.hex(),
        "seed": SEED.hex(),
        "binds": [{"ip": "203.0.113.10", "proto": "tcp", "port": 80}],
        "backends": [{"ip": f"10.0.0.{n}", "state": "active", "healthy": True} for n in range(1, n_backends + 1)],
    }
    result.update(changes)
    return {"tables": [{key: value for key, value in result.items() if value is not ...}]}


def text(n_backends: int = 3, **changes: object) -> str:
    """The same as JSON text."""
    return json.dumps(document(n_backends, **changes), indent=2) + "\n"


# ---- the model: docs/protocol/table.md word by word


def model_order(given: Table, row: int) -> list[int]:
    """Backend indexes in the row's order, inactive ones left out."""
    row_seed = _rendezvous.siphash24(given.seed, row.to_bytes(4, "big")).to_bytes(8, "little")

    def rank(index: int) -> bytes:
        message = row_seed + given.backends[index].address.packed
        return _rendezvous.siphash24(given.seed, message).to_bytes(8, "little")

    present = [index for index, entry in enumerate(given.backends) if entry.state is not State.inactive]
    return sorted(present, key=rank)


def model_row(given: Table, row: int) -> tuple[int, ...]:
    """The hops of a row by the table's rule."""
    order = model_order(given, row)
    entries = given.backends
    if given.row_rule == "glb2":
        first, *rest = order[:2]
        bad = entries[first].state is State.draining or entries[first].healthy is not True
        if rest and bad and entries[rest[0]].state is State.active:
            return rest[0], first
        return first, *rest

    def usable(index: int) -> bool:
        return entries[index].state in (State.active, State.filling) and entries[index].healthy is not False

    place = next((place for place, index in enumerate(order) if usable(index)), 0)
    before, after = order[:place], order[place + 1 :]
    living = [i for i in before if entries[i].state is State.draining and entries[i].healthy is not False]
    return (order[place], *living, *(i for i in before if i not in living), *after)[: given.hops]
