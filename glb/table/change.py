"""One verb on one backend: the table after it, and whether it is safe."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

import msgspec

from glb.errors import TableError, UnsafeChangeError
from glb.table.config import State, Table, TableSet
from glb.table.diff import TableDiff, diff_tables
from glb.table.rows import is_usable
from glb.table.states import Verb


@dataclass(frozen=True, slots=True)
class Plan:
    """What a verb would do. Nothing has been changed yet."""

    verb: Verb
    table_index: int
    backend_index: int
    before: State
    after: State
    old: Table
    new: Table
    diff: TableDiff
    objections: tuple[str, ...]  # why it should not be done; --force overrides

    @property
    def changes(self) -> bool:
        return self.before is not self.after

    def refuse_unless(self, force: bool) -> None:
        """UnsafeChangeError if there are objections."""
        if self.objections and not force:
            raise UnsafeChangeError("\n".join(self.objections))


def plan_change(tables: TableSet, table_name: str, backend: str, verb: Verb) -> Plan:
    """Plan a verb. TableError, naming the known ones, for a table or backend that is not there."""
    table_index = _find_table(tables, table_name)
    old = tables.tables[table_index]
    backend_index = _find_backend(old, backend)
    before = old.backends[backend_index].state
    after = before if before in verb.reached_in else verb.goal
    new = with_state(old, backend_index, after)
    if all(other.state is State.inactive for other in new.backends):
        raise TableError(f"{backend} is the last backend of {old.name} that is not inactive; a table needs one")
    # Whoever deactivates a backend says that its flows have ended.
    settled = [old.backends[backend_index].address] if after is State.inactive else []
    diff = diff_tables(old, new, settled=settled)
    return Plan(
        verb=verb,
        table_index=table_index,
        backend_index=backend_index,
        before=before,
        after=after,
        old=old,
        new=new,
        diff=diff,
        objections=tuple(_objections(verb, backend, before, after, old, new, diff)) if before is not after else (),
    )


def with_state(table: Table, backend_index: int, state: State) -> Table:
    """The table with another state for one backend."""
    backends = list(table.backends)
    backends[backend_index] = msgspec.structs.replace(backends[backend_index], state=state)
    return msgspec.structs.replace(table, backends=tuple(backends))


def _objections(
    verb: Verb, backend: str, before: State, after: State, old: Table, new: Table, diff: TableDiff
) -> list[str]:
    result = []
    if before not in verb.leads_from:
        result.append(f"{backend} is {before.value}; {verb.first} (--force goes from {before.value} to {after.value})")
    if any(map(is_usable, old.backends)) and not any(map(is_usable, new.backends)):
        result.append(f"{backend} is the last usable backend of {old.name}: nothing would take new flows")
    if diff.rows_losing_flows:
        result.append(_risk(diff, old))
    return result


def _risk(diff: TableDiff, table: Table) -> str:
    counted = f"{diff.rows_losing_flows} of {diff.n_rows} rows would lose their flows"
    unsettled = [
        f"{backend.address} is {backend.state.value}"
        for backend in table.backends
        if backend.state in (State.filling, State.draining)
    ]
    if not unsettled:
        return f"{counted} (--force accepts that)"
    cause = f"{', '.join(unsettled)}, and rows have {table.hops} hops"
    return f"{counted}: {cause}; end that first (activate or deactivate), or have more hops (--force accepts the loss)"


def _find_table(tables: TableSet, name: str) -> int:
    names = [table.name for table in tables.tables]
    if name not in names:
        raise TableError(f'no table "{name}"; there {_are(names)}')
    return names.index(name)


def _find_backend(table: Table, backend: str) -> int:
    addresses = [str(backend.address) for backend in table.backends]
    try:
        wanted = str(ipaddress.ip_address(backend))
    except ValueError:
        wanted = backend
    if wanted not in addresses:
        raise TableError(f'no backend "{backend}" in {table.name}; there {_are(addresses)}')
    return addresses.index(wanted)


def _are(names: list[str]) -> str:
    shown = names[:20]
    more = f" and {len(names) - len(shown)} more" if len(names) > len(shown) else ""
    return f"{'is' if len(names) == 1 else 'are'} {', '.join(shown)}{more}"
