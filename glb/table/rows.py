"""Table to rows: which backends each row names, in order (docs/protocol/table.md, "Row rules")."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from glb import _rendezvous
from glb.table.config import N_ROWS as N_ROWS
from glb.table.config import Backend, State, Table, TableSet

NO_BACKEND: int = _rendezvous.NO_BACKEND  # an unused entry of a row


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of one table, as a datapath takes them."""

    n_rows: int
    hops: int  # entries used per row, at most: fewer than the table's where there are fewer backends
    stride: int  # entries stored per row: 2 or 4
    indexes: array[int]  # uint16, native order, n_rows * stride; an index into Table.backends, unused: NO_BACKEND

    def row(self, number: int) -> tuple[int, ...]:
        """The backend indexes of one row, the primary first."""
        if not 0 <= number < self.n_rows:
            raise IndexError(f"row {number} of {self.n_rows}")
        start = number * self.stride
        return tuple(index for index in self.indexes[start : start + self.stride] if index != NO_BACKEND)


def kind_of(backend: Backend) -> int:
    """A backend as the row rules see it: KIND_ flags of glb._rendezvous. Weight 0 is as good as draining."""
    if backend.state is State.inactive:
        return int(_rendezvous.KIND_SKIPPED)
    draining = backend.state is State.draining or backend.weight == 0
    kind = 0
    if backend.healthy is not False:
        kind |= _rendezvous.KIND_LIVE if draining else _rendezvous.KIND_USABLE
    if backend.state is State.draining or backend.healthy is not True:
        kind |= _rendezvous.KIND_GLB_BAD
    if backend.state is State.active:
        kind |= _rendezvous.KIND_GLB_PROMOTED
    if backend.state is State.filling and not draining:
        kind |= _rendezvous.KIND_NEW
    return int(kind)


def is_usable(backend: Backend) -> bool:
    """Whether the rule first_usable gives it new flows."""
    return backend.state in (State.active, State.filling) and backend.healthy is not False and backend.weight > 0


def n_present(backends: Sequence[Backend]) -> int:
    """How many backends take part in the rows: those that are not inactive."""
    return sum(backend.state is not State.inactive for backend in backends)


def placed_weights(table: Table) -> bytes:
    """The weights that backends are ordered by, a byte each: weight 0 stands where the table's largest would.

    GLB has none: by the rule glb2 all are 1.
    """
    weights = [1 if table.row_rule == "glb2" else backend.weight for backend in table.backends]
    largest = max([*weights, 1])
    return bytes(weight or largest for weight in weights)


_Place = tuple[bytes, tuple[bytes, ...], int]  # seed, addresses in the table's order, number of rows
_OrderKey = tuple[_Place, bytes]  # ..., weights; none: all equal


class RowBuilder:
    """Builds rows and remembers the rendezvous order, so that a change of state or health hashes nothing.

    A change of few weights, or few backends that join or leave, ranks only those anew. Keep one builder across reloads:
    `build_all` forgets the orders that its tables no longer need, 16 bytes a row each.
    """

    def __init__(self) -> None:
        self._orders: dict[_OrderKey, _rendezvous.Order] = {}

    def build(self, table: Table) -> Rows:
        """The rows of one table. The same table gives the same rows on every machine."""
        hops = min(table.hops, n_present(table.backends))
        stride = 2 if hops <= 2 else 4
        indexes = self.order(table).derive(_kinds(table), hops, stride, table.row_rule == "glb2", _zones(table))
        return Rows(table.n_rows, hops, stride, indexes)

    def build_all(self, tables: TableSet) -> tuple[Rows, ...]:
        """The rows of every table of a set, in its order."""
        result = tuple(self.build(table) for table in tables.tables)
        needed = {_order_key(table) for table in tables.tables}
        self._orders = {key: order for key, order in self._orders.items() if key in needed}
        return result

    def order(self, table: Table) -> _rendezvous.Order:
        """The table's rendezvous order."""
        key = _order_key(table)
        order = self._orders.get(key)
        if order is None:
            order = self._orders[key] = self._changed(key) or order_of(table)
        return order

    def _changed(self, key: _OrderKey) -> _rendezvous.Order | None:
        """The order from a remembered one that differs in few weights, or in few backends, if there is one."""
        (seed, addresses, n_rows), weights = key
        at_most = min(8, 1 + len(addresses) // 16)  # more are as quickly ordered anew
        for (other, _), order in reversed(self._orders.items()):
            if (other[0], other[2]) != (seed, n_rows):
                continue
            if other[1] == addresses:
                found = order.reweighed(weights or None, at_most=at_most)
            else:
                found = None if weights else order.with_backends(list(addresses), at_most=at_most)
            if found is not None:
                return found
        return None


def order_of(table: Table, *, engine: str = _rendezvous.ENGINE) -> _rendezvous.Order:
    """The table's rendezvous order, nothing remembered. engine: one of _rendezvous.ENGINES; all give the same."""
    addresses = [backend.address.packed for backend in table.backends]
    keep = min(len(addresses), _rendezvous.MAX_KEPT)
    return _rendezvous.Order(table.seed, addresses, table.n_rows, keep, weights=placed_weights(table), engine=engine)


def build_rows(table: Table) -> Rows:
    """The rows of one table, nothing remembered."""
    return RowBuilder().build(table)


def _order_key(table: Table) -> _OrderKey:
    weights = placed_weights(table)
    place = table.seed, tuple(backend.address.packed for backend in table.backends), table.n_rows
    return place, b"" if len(set(weights)) == 1 else weights


def _kinds(table: Table) -> bytes:
    return bytes(kind_of(backend) for backend in table.backends)


def _zones(table: Table) -> array[int] | None:
    """A number for each backend's zone, 0: it has none. None where zones cannot matter."""
    numbers = {zone: number for number, zone in enumerate(dict.fromkeys(b.zone for b in table.backends if b.zone), 1)}
    if len(numbers) < 2 or table.row_rule == "glb2":
        return None
    return array("H", [numbers[b.zone] if b.zone else 0 for b in table.backends])
