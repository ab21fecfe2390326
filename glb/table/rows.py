"""Table to rows: which backends each of the 65,536 rows names, in order (docs/protocol/table.md, "Row rules")."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from glb import _rendezvous
from glb.table.config import Backend, State, Table, TableSet

N_ROWS = 65536
NO_BACKEND: int = _rendezvous.NO_BACKEND  # an unused entry of a row

# Candidates cached per row. Rows whose hops lie deeper (most backends out) are ordered anew, 2 us each at 256 backends.
_KEPT_CANDIDATES = 8


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
    """A backend as the row rules see it: KIND_ flags of glb._rendezvous."""
    if backend.state is State.inactive:
        return int(_rendezvous.KIND_SKIPPED)
    kind = 0
    if backend.healthy is not False:
        kind |= _rendezvous.KIND_LIVE if backend.state is State.draining else _rendezvous.KIND_USABLE
    if backend.state is State.draining or backend.healthy is not True:
        kind |= _rendezvous.KIND_GLB_BAD
    if backend.state is State.active:
        kind |= _rendezvous.KIND_GLB_PROMOTED
    if backend.state is State.filling:
        kind |= _rendezvous.KIND_NEW
    return int(kind)


def is_usable(backend: Backend) -> bool:
    """Whether the rule first_usable gives it new flows."""
    return backend.state in (State.active, State.filling) and backend.healthy is not False


def n_present(backends: Sequence[Backend]) -> int:
    """How many backends take part in the rows: those that are not inactive."""
    return sum(backend.state is not State.inactive for backend in backends)


_OrderKey = tuple[bytes, tuple[bytes, ...]]  # seed, addresses in the table's order


class RowBuilder:
    """Builds rows and remembers the rendezvous order, so that a change of state or health hashes nothing.

    Keep one across reloads. `build_all` forgets the orders that its tables no longer need; 1 MiB each.
    """

    def __init__(self) -> None:
        self._orders: dict[_OrderKey, array[int]] = {}

    def build(self, table: Table) -> Rows:
        """The rows of one table. The same table gives the same rows on every machine."""
        addresses, keep, order = self._order(table)
        hops = min(table.hops, n_present(table.backends))
        stride = 2 if hops <= 2 else 4
        indexes = _rendezvous.derive(
            table.seed, addresses, order, keep, _kinds(table), hops, stride, table.row_rule == "glb2"
        )
        return Rows(N_ROWS, hops, stride, indexes)

    def owners(self, table: Table, rows: Rows) -> array[int]:
        """`rows.indexes`, with NO_BACKEND for every hop that, by the table's states, holds no flows of its row.

        What is left: the primary, draining backends that it displaced, and backends that a filling primary displaced.
        """
        addresses, keep, order = self._order(table)
        return _rendezvous.owners(table.seed, addresses, order, keep, _kinds(table), rows.indexes, rows.stride)

    def _order(self, table: Table) -> tuple[list[bytes], int, array[int]]:
        """(addresses, candidates kept per row, the candidates), computed once per seed and addresses."""
        key = _order_key(table)
        addresses = list(key[1])
        keep = min(len(addresses), _KEPT_CANDIDATES)
        order = self._orders.get(key)
        if order is None:
            order = self._orders[key] = _rendezvous.candidates(table.seed, addresses, N_ROWS, keep)
        return addresses, keep, order

    def build_all(self, tables: TableSet) -> tuple[Rows, ...]:
        """The rows of every table of a set, in its order."""
        needed = {_order_key(table) for table in tables.tables}
        self._orders = {key: order for key, order in self._orders.items() if key in needed}
        return tuple(self.build(table) for table in tables.tables)


def _order_key(table: Table) -> _OrderKey:
    return table.seed, tuple(backend.address.packed for backend in table.backends)


def _kinds(table: Table) -> bytes:
    return bytes(kind_of(backend) for backend in table.backends)


def build_rows(table: Table) -> Rows:
    """The rows of one table, nothing remembered."""
    return RowBuilder().build(table)
