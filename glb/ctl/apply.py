"""``glbctl table apply``: new tables in place of those in a store, if that is safe."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from glb.ctl.change import change_options, opened_store, say_forced, seen_health, without_flows
from glb.ctl.fleet import Endpoint
from glb.ctl.output import output_option, print_json, print_line, say
from glb.errors import StoreError

if TYPE_CHECKING:
    from glb.store import Snapshot, Store
    from glb.table.change import Replacement
    from glb.table.fields import Address


@click.command()
@click.argument("new")
@change_options
@output_option
def apply(
    new: str,
    store_url: str | None,
    wait: bool,
    timeout_s: float,
    force: bool,
    dry_run: bool,
    directors: tuple[Endpoint, ...],
    agents: tuple[Endpoint, ...],
    output: str,
) -> None:
    """Put the tables in NEW, or - for standard input, in place of the store's.

    Checked as a whole first, as by table check and table diff; refused with exit code 3 if rows would lose flows, a
    bind or a table goes, or no usable backend is left, unless forced. Agents that are given are asked first whether
    the flows at risk have ended.

    \b
    Example:
      glbctl table apply proposed.json --store tables.json --dry-run
    """
    store = opened_store(store_url)
    if wait and not directors:
        raise click.UsageError("--wait has nobody to ask: give --director URL")
    change = _Change(store, new, directors, () if force else agents, force)
    if dry_run:
        before = store.load()
        plan = change.plan(before, change.ended(before))
        _print_plan(plan, output)
        plan.refuse_unless(force)
        changed = False
    else:
        changed, snapshot, plan = change.make()
        _print_plan(plan, output)
        if wait:
            _wait(plan, store, snapshot, directors, timeout_s)
    _report(plan, new, changed, dry_run, output)


class _Change:
    """One replacement of what a store holds."""

    def __init__(
        self, store: Store, path: str, directors: tuple[Endpoint, ...], agents: tuple[Endpoint, ...], force: bool
    ) -> None:
        from glb.ctl.source import read_source, tables_of
        from glb.table.document import format_of
        from glb.table.rows import RowBuilder

        content = read_source(path)
        self.store, self.path, self.agents, self.force = store, path, agents, force
        self.tables = tables_of(path, content, lenient=False)
        self.text, self.format = content.decode(), format_of(path)
        self.health = seen_health(directors)
        self.builder = RowBuilder()

    def plan(self, snapshot: Snapshot, ended: dict[str, list[Address]]) -> Replacement:
        """ended: by table, backends whose displaced flows have ended."""
        from glb.table.change import plan_replacement
        from glb.table.safety import settled

        if self.format != snapshot.format:
            message = f"{self.path} is {self.format.upper()}, and {snapshot.source} {snapshot.format.upper()}"
            raise StoreError(f"{message}; they must be alike")
        past = self.store.history(snapshot).pasts()
        past |= {name: settled(past[name], backends) for name, backends in ended.items() if backends}
        return plan_replacement(snapshot.tables, self.tables, past=past, health=self.health, builder=self.builder)

    def ended(self, snapshot: Snapshot) -> dict[str, list[Address]]:
        """By table, those whose flows would be lost, but who have none, by their agents."""
        if not self.agents:
            return {}
        diffs = self.plan(snapshot, {}).diff.tables
        holders = {address for diff in diffs for address, _ in diff.holders}
        ended = without_flows(self.agents, holders)
        for address in ended:
            say(f"{address} has no flows left, by its agent")
        return {diff.name: [address for address, _ in diff.holders if address in ended] for diff in diffs}

    def make(self) -> tuple[bool, Snapshot, Replacement]:
        """Plan and replace, both under the store's lock: whether anything changed, what is stored then, the plan."""
        for name, backends in self.ended(self.store.load()).items():
            if backends:
                self.store.settle(name, backends)
        plans: list[tuple[Replacement, Snapshot]] = []

        def change(snapshot: Snapshot) -> str:
            plan = self.plan(snapshot, {})
            plans.append((plan, snapshot))
            plan.refuse_unless(self.force)
            return self.text

        after = self.store.update(change, by=f"table apply {self.path}")
        plan, before = plans[-1]
        say_forced(plan.objections)
        return after.version != before.version, after, plan


def _wait(
    plan: Replacement, store: Store, snapshot: Snapshot, directors: tuple[Endpoint, ...], timeout_s: float
) -> None:
    from glb.ctl.wait import Deadline, Wanted, wait_for_directors
    from glb.table.digest import table_digest
    from glb.table.rows import RowBuilder

    tables = plan.new.tables
    rows = RowBuilder().build_all(plan.new)
    digests = {table.name: table_digest(table, found) for table, found in zip(tables, rows, strict=True)}
    wait_for_directors(directors, Wanted(snapshot.version, digests, lambda: store.load().version), Deadline(timeout_s))


def _print_plan(plan: Replacement, output: str) -> None:
    from glb.ctl.diff import print_set_diff

    if output == "table":
        print_set_diff(plan.diff)


def _report(plan: Replacement, new: str, changed: bool, dry_run: bool, output: str) -> None:
    if output == "json":
        from glb.ctl.diff import set_diff_json

        print_json({"source": new, "changed": changed, "dry_run": dry_run, "diff": set_diff_json(plan.diff)})
        return
    done = "would be applied" if dry_run else "applied" if changed else "nothing to do, the store holds just that"
    print_line(f"table apply {new}: {done}")
