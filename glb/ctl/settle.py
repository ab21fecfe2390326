"""``glbctl settle``: flows that changes have displaced have ended."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from glb.ctl.change import opened_store, store_option
from glb.ctl.fleet import Endpoint, agent_option, ask_agent, ask_all
from glb.ctl.output import output_option, print_json, print_line
from glb.errors import UnsafeChangeError

if TYPE_CHECKING:
    from glb.table.config import Table
    from glb.table.fields import Address


@click.command()
@click.argument("table_name", metavar="TABLE")
@click.argument("backends", metavar="[BACKEND]...", nargs=-1)
@store_option
@click.option("--force", is_flag=True, help="Do not ask the agents given.")
@click.option("--dry-run", is_flag=True, help="Only say who may hold displaced flows.")
@agent_option
@output_option
def settle(
    table_name: str,
    backends: tuple[str, ...],
    store_url: str | None,
    force: bool,
    dry_run: bool,
    agents: tuple[Endpoint, ...],
    output: str,
) -> None:
    """Say that the displaced flows of TABLE have ended: all, or those that these BACKENDs held.

    A flow is displaced if it lives on a backend that is not the primary of its row any more, but was since the table
    was last settled: changes are checked against these. Agents that are given are asked about backends that take no
    new flows; if one counts flows still, the command is refused with exit code 3 unless forced.

    \b
    Example:
      glbctl settle web --store tables.json --dry-run
    """
    from glb.table.change import find_table
    from glb.table.safety import displaced_owners

    store = opened_store(store_url)
    snapshot = store.load()
    table = snapshot.tables.tables[find_table(snapshot.tables, table_name)]
    displaced = dict(displaced_owners(store.history(snapshot).past(table_name)))
    chosen = [_address(name, table, displaced) for name in backends]
    wanted = {address: rows for address, rows in displaced.items() if not chosen or address in chosen}
    if not force:
        _refuse_live_flows([agent for agent in agents if agent.address in wanted], table)
    if not dry_run and wanted:
        store.settle(table_name, chosen or None)
    if output == "json":
        print_json(
            {
                "table": table_name,
                "settled": [{"address": str(address), "rows": rows} for address, rows in wanted.items()],
                "changed": bool(wanted) and not dry_run,
                "dry_run": dry_run,
            }
        )
        return
    held = ", ".join(f"{address} ({rows} rows)" for address, rows in wanted.items())
    would = "would forget" if dry_run else "forgotten"
    done = f"{would} displaced flows of {held}" if wanted else "nothing to do, no displaced flows are known"
    print_line(f"settle {' '.join((table_name, *map(str, chosen)))}: {done}")


def _address(name: str, table: Table, displaced: dict[Address, int]) -> Address:
    """A backend that is, or was, in the table."""
    from glb.table.change import find_backend

    gone = next((address for address in displaced if str(address) == name), None)
    return gone if gone is not None else table.backends[find_backend(table, name)].address


def _refuse_live_flows(agents: list[Endpoint], table: Table) -> None:
    """UnsafeChangeError if an agent of a backend without new flows counts any; of the others it cannot tell."""
    from glb.table.rows import is_usable

    taking = {backend.address for backend in table.backends if is_usable(backend)}
    asked = [agent for agent in agents if agent.address not in taking]
    for agent, flows in zip(asked, ask_all(asked, ask_agent), strict=True):
        if not isinstance(flows, int):
            raise flows
        if flows:
            raise UnsafeChangeError(f"{agent.address} still has {flows} flows by its agent (--force settles anyway)")
