"""``glbctl status``: do all directors forward alike, and how is each backend?"""

from __future__ import annotations

from dataclasses import dataclass, field

import click

from glb.ctl.fleet import (
    LOCAL_DIRECTOR,
    DirectorStatus,
    Endpoint,
    UnreachableError,
    agent_option,
    ask_agent,
    ask_all,
    ask_director,
    director_option,
)
from glb.ctl.output import Cell, Share, health_word, output_option, print_columns, print_json, print_line, say

_EXIT_UNREACHABLE = 1
_EXIT_DISAGREE = 3
_DIGEST_DIGITS_PRINTED = 12


@dataclass(frozen=True, slots=True)
class _BackendView:
    table: str
    address: str
    state: str
    healthy: bool | None
    share: float | None  # of the rows, as primary; known where a store is given
    flows: int | None  # known where its agent is given


@dataclass(frozen=True, slots=True)
class _Displaced:
    """Flows that may live on backends which are not the primaries of their rows any more."""

    since: str | None  # when the first change after the table was settled was recorded
    holders: tuple[tuple[str, int], ...]  # address, rows


@dataclass(slots=True)
class _Fleet:
    """What was found out."""

    directors: list[tuple[Endpoint, DirectorStatus | UnreachableError]]
    stored_version: str | None = None  # without a store: none
    stored_digests: dict[str, str] = field(default_factory=dict)  # by table name; empty without a store
    displaced: dict[str, _Displaced] = field(default_factory=dict)  # by table name; empty without a store
    backends: list[_BackendView] = field(default_factory=list)
    agents: list[tuple[Endpoint, int | UnreachableError]] = field(default_factory=list)

    @property
    def statuses(self) -> list[tuple[Endpoint, DirectorStatus]]:
        return [(endpoint, answer) for endpoint, answer in self.directors if isinstance(answer, DirectorStatus)]

    def digests(self, table: str) -> set[str]:
        """Every digest that somebody has for a table; more than one is a disagreement.

        The stored one counts for directors that do not say which version they forward by. Those that do may see the
        health of backends, which is not stored, and have another digest all the same.
        """
        found = {status.digest_of(table) or "none" for _, status in self.statuses}
        compares = any(status.table_version is None for _, status in self.statuses)
        return found | {self.stored_digests[table]} if compares and table in self.stored_digests else found

    def is_behind(self, status: DirectorStatus) -> bool:
        """Whether a director says that it forwards by something else than what is stored."""
        known = self.stored_version is not None and status.table_version is not None
        return known and status.table_version != self.stored_version

    @property
    def behind(self) -> list[Endpoint]:
        return [endpoint for endpoint, status in self.statuses if self.is_behind(status)]

    def tables(self) -> list[str]:
        names = dict.fromkeys(self.stored_digests)
        for _, status in self.statuses:
            names |= dict.fromkeys(entry.name for entry in status.tables)
        return list(names)

    @property
    def disagreeing(self) -> list[str]:
        return [name for name in self.tables() if len(self.digests(name)) > 1]

    @property
    def unreachable(self) -> list[UnreachableError]:
        answers = [answer for _, answer in (*self.directors, *self.agents)]
        return [answer for answer in answers if isinstance(answer, UnreachableError)]


@click.command()
@click.option("--store", "store_url", envvar="GLB_STORE", help="Compare with what is stored.  [env: GLB_STORE]")
@director_option
@agent_option
@output_option
def status(store_url: str | None, directors: tuple[Endpoint, ...], agents: tuple[Endpoint, ...], output: str) -> None:
    """Show directors with their digests, and backends with state, health, share and flows.

    Without --director the one on this host is asked. With --store, also whether they forward by what is stored, and
    who may hold displaced flows. Exit code 1 if somebody cannot be asked, 3 if digests differ or a director is behind.

    \b
    Example:
      glbctl status --director http://10.0.0.11:9523 --director http://10.0.0.12:9523 --store tables.json
    """
    for agent in agents:
        if agent.address is None:
            raise click.UsageError(f"--agent {agent.url}: whose? Give it as ADDRESS=URL")
    fleet = _Fleet(list(_asked(directors or (LOCAL_DIRECTOR,))))
    fleet.agents = list(zip(agents, ask_all(agents, ask_agent), strict=True))
    flows = {str(agent.address): count for agent, count in fleet.agents if isinstance(count, int)}
    if store_url is not None:
        _add_store(fleet, store_url, flows)
    else:
        _add_directors_view(fleet, flows)
    if output == "json":
        print_json(_fleet_json(fleet))
    else:
        _print_fleet(fleet)
    for error in fleet.unreachable:
        say(f"glbctl: {error}")
    for name in fleet.disagreeing:
        digests = sorted(digest[:_DIGEST_DIGITS_PRINTED] for digest in fleet.digests(name))
        say(f"glbctl: {name}: digests differ: {', '.join(digests)}")
    for endpoint in fleet.behind:
        say(f"glbctl: {endpoint.url} does not forward by what is stored")
    if fleet.unreachable:
        raise SystemExit(_EXIT_UNREACHABLE)
    if fleet.disagreeing or fleet.behind:
        raise SystemExit(_EXIT_DISAGREE)


def _asked(directors: tuple[Endpoint, ...]) -> zip[tuple[Endpoint, DirectorStatus | UnreachableError]]:
    return zip(directors, ask_all(directors, ask_director), strict=True)


def _add_store(fleet: _Fleet, store_url: str, flows: dict[str, int]) -> None:
    """Backends and digests as they should be; health as the first director that answers sees it."""
    from glb.store import open_store
    from glb.table.digest import table_digest
    from glb.table.rows import RowBuilder
    from glb.table.safety import displaced_owners
    from glb.table.shares import column_counts

    store, builder = open_store(store_url), RowBuilder()
    snapshot = store.load()
    history = store.history(snapshot)
    fleet.stored_version = snapshot.version
    seen = _seen_health(fleet)
    for table, rows in zip(snapshot.tables.tables, builder.build_all(snapshot.tables), strict=True):
        fleet.stored_digests[table.name] = table_digest(table, rows)
        holders = displaced_owners(history.past(table.name), builder=builder)
        fleet.displaced[table.name] = _Displaced(
            history.unsettled_since(table.name) if holders else None,
            tuple((str(address), n_rows) for address, n_rows in holders),
        )
        counts = column_counts(rows, 0)
        for index, backend in enumerate(table.backends):
            address = str(backend.address)
            healthy = seen.get((table.name, address), backend.healthy)
            share = counts[index] / rows.n_rows
            view = _BackendView(table.name, address, backend.state.value, healthy, share, flows.get(address))
            fleet.backends.append(view)


def _add_directors_view(fleet: _Fleet, flows: dict[str, int]) -> None:
    """Backends as the first director that answers has them."""
    for table in fleet.statuses[0][1].tables if fleet.statuses else ():
        for backend in table.backends:
            count = flows.get(str(backend.address))
            view = _BackendView(table.name, str(backend.address), backend.state, backend.healthy, None, count)
            fleet.backends.append(view)


def _seen_health(fleet: _Fleet) -> dict[tuple[str, str], bool | None]:
    tables = fleet.statuses[0][1].tables if fleet.statuses else ()
    return {(table.name, str(backend.address)): backend.healthy for table in tables for backend in table.backends}


def _fleet_json(fleet: _Fleet) -> dict[str, object]:
    return {
        "agree": not fleet.disagreeing and not fleet.behind,
        "stored_version": fleet.stored_version,
        "directors": [_director_json(fleet, endpoint, answer) for endpoint, answer in fleet.directors],
        "tables": [
            {
                "name": name,
                "agree": len(fleet.digests(name)) <= 1,
                "stored_digest": fleet.stored_digests.get(name),
                "displaced": _displaced_json(fleet.displaced.get(name)),
                "backends": [
                    {
                        "address": backend.address,
                        "state": backend.state,
                        "healthy": backend.healthy,
                        "share": backend.share,
                        "flows": backend.flows,
                    }
                    for backend in fleet.backends
                    if backend.table == name
                ],
            }
            for name in fleet.tables()
        ],
    }


def _displaced_json(displaced: _Displaced | None) -> dict[str, object] | None:
    if displaced is None:
        return None
    holders = [{"address": address, "rows": rows} for address, rows in displaced.holders]
    return {"since": displaced.since, "holders": holders}


def _director_json(fleet: _Fleet, endpoint: Endpoint, answer: DirectorStatus | UnreachableError) -> dict[str, object]:
    if isinstance(answer, UnreachableError):
        return {"url": endpoint.url, "up": False, "error": str(answer)}
    return {
        "url": endpoint.url,
        "up": True,
        "version": answer.version,
        "xdp_mode": answer.xdp_mode,
        "reload_error": answer.reload_error,
        "table_version": answer.table_version,
        "behind": fleet.is_behind(answer),
        "digests": {table.name: table.digest for table in answer.tables},
    }


def _print_fleet(fleet: _Fleet) -> None:
    rows: list[list[Cell]] = []
    for endpoint, answer in fleet.directors:
        if isinstance(answer, UnreachableError):
            rows.append([endpoint.url, "down", "", "", "", "", ""])
            continue
        for name in fleet.tables():
            digest = answer.digest_of(name) or "none"
            agreement = "agrees" if len(fleet.digests(name)) == 1 else "differs"
            if fleet.is_behind(answer):
                agreement = "is behind"
            reload = "ok" if answer.reload_error is None else "refused"
            short = digest[:_DIGEST_DIGITS_PRINTED]
            rows.append([endpoint.url, "up", answer.version, answer.xdp_mode, reload, f"{name} {short}", agreement])
    print_columns("directors", ["url", "", "version", "xdp", "last reload", "digest", "agreement"], rows)
    if not fleet.backends:
        return
    print_columns(
        "backends",
        ["table", "address", "state", "health", "share", "flows"],
        [
            [
                backend.table,
                backend.address,
                backend.state,
                health_word(backend.healthy),
                "-" if backend.share is None else Share(backend.share),
                "-" if backend.flows is None else backend.flows,
            ]
            for backend in fleet.backends
        ],
    )
    for name, displaced in fleet.displaced.items():
        if displaced.holders:
            held = ", ".join(f"{address} ({rows} rows)" for address, rows in displaced.holders)
            print_line(f"{name}: since {displaced.since} displaced flows may live on {held}; see glbctl settle")
