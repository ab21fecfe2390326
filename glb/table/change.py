"""A change that an operator asks for: one verb on one backend, or new tables as a whole. And whether it is safe."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from glb.errors import TableError, UnsafeChangeError
from glb.table.config import Bind, State, Table, TableSet
from glb.table.diff import TableDiff, TableSetDiff, diff_sets, diff_tables
from glb.table.fields import Address
from glb.table.rows import RowBuilder, is_usable
from glb.table.safety import Past, implied_past, settled
from glb.table.states import Verb

Health = Mapping[Address, bool]  # by backend, as directors see it; those that they do not check are left out

_NOT_SEEN: Health = {}
_MAX_NAMED = 5  # backends or binds in one message


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

    @property
    def address(self) -> Address:
        return self.new.backends[self.backend_index].address

    def refuse_unless(self, force: bool) -> None:
        """UnsafeChangeError if there are objections."""
        _refuse(self.objections, force)


@dataclass(frozen=True, slots=True)
class Replacement:
    """What new tables would do in place of the old ones. Nothing has been changed yet."""

    new: TableSet
    diff: TableSetDiff
    objections: tuple[str, ...]

    def refuse_unless(self, force: bool) -> None:
        """UnsafeChangeError if there are objections."""
        _refuse(self.objections, force)


def _refuse(objections: Sequence[str], force: bool) -> None:
    if objections and not force:
        raise UnsafeChangeError("\n".join(objections))


# ---- one verb


def plan_change(
    tables: TableSet,
    table_name: str,
    backend: str,
    verb: Verb,
    *,
    past: Sequence[Past] = (),
    health: Health = _NOT_SEEN,
) -> Plan:
    """Plan a verb. TableError, naming the known ones, for a table or backend that is not there.

    past: of this table since it was settled, its present configuration last; by default what its states imply.
    health: what directors see of its backends.
    """
    table_index = find_table(tables, table_name)
    old = tables.tables[table_index]
    backend_index = find_backend(old, backend)
    before = old.backends[backend_index].state
    after = before if before in verb.reached_in else verb.goal
    new = with_state(old, backend_index, after)
    if all(other.state is State.inactive for other in new.backends):
        raise TableError(f"{backend} is the last backend of {old.name} that is not inactive; a table needs one")
    past = past or implied_past(old)
    if after is State.inactive:  # Whoever deactivates a backend says that its flows have ended.
        past = settled(past, [old.backends[backend_index].address])
    seen, then = with_health(old, health), with_health(new, health)
    diff = diff_tables(seen, then, past=past if seen == old else (*past, Past(seen)))
    return Plan(
        verb=verb,
        table_index=table_index,
        backend_index=backend_index,
        before=before,
        after=after,
        old=old,
        new=new,
        diff=diff,
        objections=tuple(_verb_objections(verb, backend, before, after, seen, then, diff))
        if before is not after
        else (),
    )


def with_state(table: Table, backend_index: int, state: State) -> Table:
    """The table with another state for one backend."""
    backends = list(table.backends)
    backends[backend_index] = msgspec.structs.replace(backends[backend_index], state=state)
    return msgspec.structs.replace(table, backends=tuple(backends))


def with_health(table: Table, health: Health) -> Table:
    """The table as it is forwarded by where health is seen like this."""
    backends = tuple(
        msgspec.structs.replace(backend, healthy=health.get(backend.address, backend.healthy))
        for backend in table.backends
    )
    return msgspec.structs.replace(table, backends=backends)


def _verb_objections(
    verb: Verb, backend: str, before: State, after: State, old: Table, new: Table, diff: TableDiff
) -> Iterator[str]:
    if before not in verb.leads_from:
        yield f"{backend} is {before.value}; {verb.first} (--force goes from {before.value} to {after.value})"
    if _loses_all_usable(old, new):
        yield f"{backend} is the last usable backend of {old.name}: nothing would take new flows"
    yield from _risk(diff, new)


def _loses_all_usable(old: Table, new: Table) -> bool:
    return any(map(is_usable, old.backends)) and not any(map(is_usable, new.backends))


def _risk(diff: TableDiff, new: Table) -> Iterator[str]:
    """The rows at risk, whose flows those are, and what to do instead of forcing it."""
    if diff.hash_key_changed:
        yield f"{diff.name}: the hash key changes, so every flow may go to another row (--force accepts the loss)"
        return
    if not diff.rows_at_risk:
        return
    holders = [f"{address} ({rows})" for address, rows in diff.holders]
    message = f"{diff.name}: {diff.rows_at_risk} of {diff.n_rows} rows could lose flows that {_some(holders)} may hold"
    if diff.rows_behind_unhealthy:
        message += f"; in {diff.rows_behind_unhealthy} of them only if an unhealthy hop before really is dead"
    yield (
        f"{message}: let those end first (then: glbctl settle {diff.name}), or have more than {new.hops} hops "
        "(--force accepts the loss)"
    )


# ---- new tables as a whole


def plan_replacement(
    old: TableSet,
    new: TableSet,
    *,
    past: Mapping[str, Sequence[Past]],
    health: Mapping[str, Health] | None = None,
    builder: RowBuilder | None = None,
) -> Replacement:
    """Plan to put `new` in place of `old`. past (of every old table), health: by table name, as in `plan_change`."""
    seen, then = (
        msgspec.structs.replace(
            tables, tables=tuple(with_health(each, (health or {}).get(each.name, {})) for each in tables.tables)
        )
        for tables in (old, new)
    )
    pasts = {
        table.name: past[table.name] if table == stored else (*past[table.name], Past(table))
        for table, stored in zip(seen.tables, old.tables, strict=True)
    }
    diff = diff_sets(seen, then, past=pasts, builder=builder)
    before = {table.name: table for table in seen.tables}
    after = {table.name: table for table in then.tables}
    objections = [f"{name} is removed: the flows to its binds are lost" for name in diff.removed]
    for entry in diff.tables:
        if _loses_all_usable(before[entry.name], after[entry.name]):
            objections.append(f"{entry.name} has no usable backend any more: nothing would take new flows")
        objections += _risk(entry, after[entry.name])
    objections += _bind_objections(old, new)
    return Replacement(new, diff, tuple(objections))


def _bind_objections(old: TableSet, new: TableSet) -> Iterator[str]:
    """Binds whose packets would not come to their table any more; of tables that stay."""
    here = {table.name: table.binds for table in new.tables}
    had = {table.name: set(table.binds) for table in old.tables}
    added = {name: [bind for bind in binds if bind not in had.get(name, ())] for name, binds in here.items()}
    for table in old.tables:
        if table.name not in here:
            continue
        kept, others = set(here[table.name]), [name for name in here if name != table.name]
        removed, taken = [], []
        for bind in table.binds:
            if bind in kept:
                heir = bind
                rivals = [rival for name in others for rival in added[name]]
            else:
                wider = [other for other in here[table.name] if _covers(other, bind)]
                if not wider:
                    removed.append(bind)
                    continue
                heir = min(wider, key=_precedence)
                rivals = [rival for name in others for rival in here[name]]
            if any(_overlap(rival, bind) and _precedence(rival) < _precedence(heir) for rival in rivals):
                taken.append(bind)
        for binds, what in ((removed, "no longer has"), (taken, "loses to another table packets of")):
            if binds:
                named = _some([bind_text(bind) for bind in binds])
                yield f"{table.name} {what} {named}: flows to it are lost (--force accepts that)"


def _precedence(bind: Bind) -> tuple[int, int]:
    """The smallest wins: the longest prefix, then the narrower port range."""
    return -bind.network.prefixlen, bind.port_last - bind.port_first


def _overlap(one: Bind, other: Bind) -> bool:
    return (
        one.proto == other.proto
        and one.port_first <= other.port_last
        and other.port_first <= one.port_last
        and one.network.version == other.network.version
        and one.network.overlaps(other.network)
    )


def _covers(wide: Bind, narrow: Bind) -> bool:
    """Every packet of `narrow` is one of `wide`."""
    return (
        _overlap(wide, narrow)
        and wide.port_first <= narrow.port_first
        and narrow.port_last <= wide.port_last
        and wide.network.prefixlen <= narrow.network.prefixlen
    )


def bind_text(bind: Bind) -> str:
    """A bind on one line: ``203.0.113.0/24 tcp 80-90``."""
    ports = str(bind.port_first) if bind.port_first == bind.port_last else f"{bind.port_first}-{bind.port_last}"
    return f"{bind.network} {'tcp' if bind.proto == 6 else 'udp'} {ports}"


# ---- names


def find_table(tables: TableSet, name: str) -> int:
    """The index of the table of this name. TableError names those that are there."""
    names = [table.name for table in tables.tables]
    if name not in names:
        raise TableError(f'no table "{name}"; there {_are(names)}')
    return names.index(name)


def find_backend(table: Table, backend: str) -> int:
    """The index of the backend of this address. TableError names those that are there."""
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


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
    return ", ".join(names[:_MAX_NAMED]) + more
