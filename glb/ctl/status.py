"""``glbctl status``: do all directors forward alike, and how is each backend?"""

from __future__ import annotations

from dataclasses import dataclass, field

import click

from glb.ctl.fleet import (
    DirectorStatus,
    Endpoint,
    UnreachableError,
    ask_agent,
    ask_all,
    ask_director,
    fleet_options,
)
from glb.ctl.output import Cell, Share, health_word, output_option, print_columns, print_json, say

_LOCAL_DIRECTOR = Endpoint("http://127.0.0.1:9523")
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


@dataclass(slots=True)
class _Fleet:
    """What was found out."""

    directors: list[tuple[Endpoint, DirectorStatus | UnreachableError]]
    stored_digests: dict[str, str] = field(default_factory=dict)  # by table name; empty without a store
    backends: list[_BackendView] = field(default_factory=list)
    agents: list[tuple[Endpoint, int | UnreachableError]] = field(default_factory=list)

    def digests(self, table: str) -> set[str]:
        """Every digest that somebody has for a table; more than one is a disagreement."""
        found = {
            answer.digest_of(table) or "none" for _, answer in self.directors if isinstance(answer, DirectorStatus)
        }
        return found | {self.stored_digests[table]} if table in self.stored_digests else found

    def tables(self) -> list[str]:
        names = dict.fromkeys(self.stored_digests)
        for _, answer in self.directors:
            if isinstance(answer, DirectorStatus):
                names |= dict.fromkeys(entry.name for entry in answer.tables)
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
@fleet_options
@output_option
def status(store_url: str | None, directors: tuple[Endpoint, ...], agents: tuple[Endpoint, ...], output: str) -> None:
    """Show directors with their digests, and backends with state, health, share and flows.

    Without --director the one on this host is asked. Exit code 1 if somebody cannot be asked, 3 if digests differ.

    \b
    Example:
      glbctl status --director http://10.0.0.11:9523 --director http://10.0.0.12:9523 --store tables.json
    """
    for agent in agents:
        if agent.address is None:
            raise click.UsageError(f"--agent {agent.url}: whose? Give it as ADDRESS=URL")
    fleet = _Fleet(list(_asked(directors or (_LOCAL_DIRECTOR,))))
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
    if fleet.unreachable:
        raise SystemExit(_EXIT_UNREACHABLE)
    if fleet.disagreeing:
        raise SystemExit(_EXIT_DISAGREE)


def _asked(directors: tuple[Endpoint, ...]) -> zip[tuple[Endpoint, DirectorStatus | UnreachableError]]:
    return zip(directors, ask_all(directors, ask_director), strict=True)


def _add_store(fleet: _Fleet, store_url: str, flows: dict[str, int]) -> None:
    """Backends and digests as they should be; health as the first director that answers sees it."""
    from glb.store import open_store
    from glb.table.diff import column_counts
    from glb.table.digest import table_digest
    from glb.table.rows import RowBuilder

    tables = open_store(store_url).load().tables
    seen = _seen_health(fleet)
    for table, rows in zip(tables.tables, RowBuilder().build_all(tables), strict=True):
        fleet.stored_digests[table.name] = table_digest(table, rows)
        counts = column_counts(rows, 0)
        for index, backend in enumerate(table.backends):
            address = str(backend.address)
            healthy = seen.get((table.name, address), backend.healthy)
            share = counts[index] / rows.n_rows
            view = _BackendView(table.name, address, backend.state.value, healthy, share, flows.get(address))
            fleet.backends.append(view)


def _add_directors_view(fleet: _Fleet, flows: dict[str, int]) -> None:
    """Backends as the first director that answers has them."""
    answers = [answer for _, answer in fleet.directors if isinstance(answer, DirectorStatus)]
    for table in answers[0].tables if answers else ():
        for backend in table.backends:
            count = flows.get(backend.address)
            view = _BackendView(table.name, backend.address, backend.state, backend.healthy, None, count)
            fleet.backends.append(view)


def _seen_health(fleet: _Fleet) -> dict[tuple[str, str], bool | None]:
    for _, answer in fleet.directors:
        if isinstance(answer, DirectorStatus):
            return {(table.name, b.address): b.healthy for table in answer.tables for b in table.backends}
    return {}


def _fleet_json(fleet: _Fleet) -> dict[str, object]:
    return {
        "agree": not fleet.disagreeing,
        "directors": [_director_json(endpoint, answer) for endpoint, answer in fleet.directors],
        "tables": [
            {
                "name": name,
                "agree": len(fleet.digests(name)) <= 1,
                "stored_digest": fleet.stored_digests.get(name),
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


def _director_json(endpoint: Endpoint, answer: DirectorStatus | UnreachableError) -> dict[str, object]:
    if isinstance(answer, UnreachableError):
        return {"url": endpoint.url, "up": False, "error": str(answer)}
    return {
        "url": endpoint.url,
        "up": True,
        "version": answer.version,
        "xdp_mode": answer.xdp_mode,
        "reload_error": answer.reload_error,
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
