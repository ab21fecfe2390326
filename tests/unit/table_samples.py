"""Tables for tests, and an independent, slow model of the rendezvous order and of the row rules."""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from glb import _rendezvous
from glb.table.config import N_ROWS, Backend, Bind, RowRule, State, Table

HASH_KEY = bytes.fromhex("7d3a34c59e1bb856c3d13fde9020837a")
SEED = bytes.fromhex("5c8e961afcab1024f5540161ef51bc86")

# A backend in one word: its state, "+" healthy, "-" unhealthy, neither: not health-checked; then *weight and @zone.
_HEALTH = {"+": True, "-": False}


def backend(number: int, word: str) -> Backend:
    """10.0.0.`number` in a state such as ``active+``; ``active+*7@a``: of weight 7, in zone a."""
    word, _, zone = word.partition("@")
    word, _, weight = word.partition("*")
    healthy = _HEALTH.get(word[-1])
    address = ipaddress.IPv4Address(0x0A000000 + number)
    return Backend(address, State(word.rstrip("+-")), healthy, int(weight or 1), zone or None)


def table(
    words: Iterable[str],
    *,
    hops: int = 2,
    row_rule: RowRule = "first_usable",
    name: str = "web",
    seed: bytes = SEED,
    n_rows: int = N_ROWS,
) -> Table:
    """A table of backends 10.0.0.1, 10.0.0.2 ... in these states."""
    bind = Bind(ipaddress.ip_network("203.0.113.10/32"), 6, 80, 80)
    backends = tuple(backend(number, word) for number, word in enumerate(words, 1))
    return Table(name, HASH_KEY, seed, (bind,), backends, hops, row_rule, n_rows)


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


# ---- the model: docs/protocol/table.md word by word, and its own code

PAGE = Path(__file__).parents[2] / "docs" / "protocol" / "table.md"
DOCUMENTED: dict[str, Any] = {}  # what the page's Python defines: score, distance, log2, LOG2
exec(re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)[0], DOCUMENTED)


def model_order(given: Table, row: int) -> list[int]:
    """Backend indexes in the row's order, inactive ones left out."""
    row_seed = _rendezvous.siphash24(given.seed, row.to_bytes(4, "big")).to_bytes(8, "little")
    weights = [entry.weight for entry in given.backends]

    def key(index: int) -> tuple[int, int]:
        message = row_seed + given.backends[index].address.packed
        rank = int.from_bytes(_rendezvous.siphash24(given.seed, message).to_bytes(8, "little"), "big")
        weighted = len(set(weights)) > 1 and given.row_rule == "first_usable"
        return DOCUMENTED["score"](rank, weights[index] or max(weights)) if weighted else 0, rank

    present = [index for index, entry in enumerate(given.backends) if entry.state is not State.inactive]
    return sorted(present, key=key)


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
        entry = entries[index]
        return entry.state in (State.active, State.filling) and entry.healthy is not False and entry.weight > 0

    place = next((place for place, index in enumerate(order) if usable(index)), 0)
    before, after = order[:place], order[place + 1 :]
    leaving = [i for i in before if entries[i].state is State.draining or entries[i].weight == 0]
    living = [i for i in leaving if entries[i].healthy is not False]
    hops = [order[place], *living, *(i for i in before if i not in living)]
    zone = entries[order[place]].zone
    elsewhere = [i for i in after if usable(i) and zone and entries[i].zone and entries[i].zone != zone]
    if not usable(order[place]) or not elsewhere:
        return (*hops, *after)[: given.hops]
    if entries[order[place]].state is State.filling:
        settled = next((at for at, i in enumerate(after) if usable(i) and entries[i].state is State.active), len(after))
        hops += after[: settled + 1]
    if elsewhere[0] not in hops:
        hops.append(elsewhere[0])
    return (*hops, *(i for i in after if i not in hops))[: given.hops]
