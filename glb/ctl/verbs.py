"""``glbctl fill | activate | drain | deactivate``: one backend's next state, if that is safe."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from glb.ctl.change import agent_of, change_options, opened_store, say_forced, seen_health, without_flows
from glb.ctl.fleet import Endpoint, ask_agent
from glb.ctl.output import output_option, print_json, print_line, say
from glb.errors import UnsafeChangeError

if TYPE_CHECKING:
    from glb.store import Snapshot, Store
    from glb.table.change import Plan
    from glb.table.fields import Address
    from glb.table.states import VerbName

_HELP: dict[VerbName, str] = {
    "fill": """Give BACKEND new flows: inactive or draining -> filling.

    Flows that others took meanwhile bounce back to them. Activate it once those have ended.
    """,
    "activate": """Call BACKEND a full member again: filling -> active.

    From draining, too. Who may still hold older flows of its rows is not forgotten by that: see settle.
    """,
    "drain": """Give BACKEND no new flows: active or filling -> draining.

    Its old flows go on. With --wait and --agent: until the last of them has ended.
    """,
    "deactivate": """Take BACKEND out: draining -> inactive.

    Whoever does this says that its flows have ended; with --agent its agent is asked.
    """,
}


def _verb_command(name: VerbName) -> click.Command:
    @click.command(
        name,
        help=f"""{_HELP[name]}
    TABLE and BACKEND are a name and an address of the store's tables. A change by which rows would lose flows, or that
    takes the last usable backend away, is refused with exit code 3 unless forced; agents that are given are asked
    first whether those flows have ended. Nothing to do is no failure.

    \b
    Example:
      glbctl {name} web 10.0.0.1 --store tables.json --dry-run
    """,
    )
    @click.argument("table_name", metavar="TABLE")
    @click.argument("backend", metavar="BACKEND")
    @change_options
    @output_option
    def command(
        table_name: str,
        backend: str,
        store_url: str | None,
        wait: bool,
        timeout_s: float,
        force: bool,
        dry_run: bool,
        directors: tuple[Endpoint, ...],
        agents: tuple[Endpoint, ...],
        output: str,
    ) -> None:
        store = opened_store(store_url)
        agent = agent_of(agents, backend)
        if wait and not directors and (agent is None or name != "drain"):
            raise click.UsageError("--wait has nobody to ask: give --director URL (and to drain --agent ADDRESS=URL)")
        change = _Change(store, table_name, backend, name, directors, agents, force)
        if dry_run:
            plan = change.plan(store.load(), change.ended())
            if output == "table" and plan.changes:
                from glb.ctl.diff import print_diff

                print_diff(plan.diff)
            plan.refuse_unless(force)
        else:
            if name == "deactivate" and agent is not None and not force:
                _refuse_live_flows(agent, backend)
            plan, snapshot = change.make()
            if wait:
                _wait(plan, store, snapshot, directors, agent if name == "drain" else None, timeout_s)
        _report(plan, dry_run, output)

    return command


class _Change:
    """One verb on one backend of a store."""

    def __init__(
        self,
        store: Store,
        table: str,
        backend: str,
        verb: VerbName,
        directors: tuple[Endpoint, ...],
        agents: tuple[Endpoint, ...],
        force: bool,
    ) -> None:
        self.store, self.table, self.backend, self.verb = store, table, backend, verb
        self.agents, self.force = agents, force
        self.health = seen_health(directors).get(table, {})

    def plan(self, snapshot: Snapshot, ended: list[Address]) -> Plan:
        """ended: backends whose displaced flows have ended."""
        from glb.table.change import plan_change
        from glb.table.safety import settled
        from glb.table.states import VERBS

        past = self.store.history(snapshot).pasts().get(self.table, ())
        if ended:
            past = settled(past, ended)
        return plan_change(snapshot.tables, self.table, self.backend, VERBS[self.verb], past=past, health=self.health)

    def ended(self) -> list[Address]:
        """Those whose flows would be lost, but who have none, by their agents."""
        if not self.agents or self.force:
            return []
        holders = [address for address, _ in self.plan(self.store.load(), []).diff.holders]
        ended = without_flows(self.agents, holders)
        for address in ended:
            say(f"{address} has no flows left, by its agent")
        return ended

    def make(self) -> tuple[Plan, Snapshot]:
        """Plan the verb and store its result; both under the store's lock. What is stored then."""
        from glb.store.edit import set_state

        ended = self.ended()
        if ended:
            self.store.settle(self.table, ended)
        plans: list[Plan] = []

        def change(snapshot: Snapshot) -> str | None:
            plan = self.plan(snapshot, [])
            plans.append(plan)
            plan.refuse_unless(self.force)
            return set_state(snapshot, plan.table_index, plan.backend_index, plan.after) if plan.changes else None

        snapshot = self.store.update(change, by=f"{self.verb} {self.table} {self.backend}")
        say_forced(plans[-1].objections)
        return plans[-1], snapshot


def _refuse_live_flows(agent: Endpoint, backend: str) -> None:
    flows = ask_agent(agent)
    if flows:
        raise UnsafeChangeError(f"{backend} still has {flows} flows by its agent; wait for them (--force loses them)")


def _wait(
    plan: Plan,
    store: Store,
    snapshot: Snapshot,
    directors: tuple[Endpoint, ...],
    agent: Endpoint | None,
    timeout_s: float,
) -> None:
    from glb.ctl.wait import Deadline, Wanted, wait_for_directors, wait_for_no_flows

    deadline = Deadline(timeout_s)
    if directors:
        wanted = Wanted(snapshot.version, {plan.new.name: _digest(plan)}, lambda: store.load().version)
        wait_for_directors(directors, wanted, deadline)
    if agent is not None:
        wait_for_no_flows(agent, str(plan.address), deadline)
        store.settle(plan.new.name, [plan.address])


def _digest(plan: Plan) -> str:
    from glb.table.digest import table_digest
    from glb.table.rows import build_rows

    return table_digest(plan.new, build_rows(plan.new))


def _report(plan: Plan, dry_run: bool, output: str) -> None:
    address = str(plan.address)
    if output == "json":
        from glb.ctl.diff import diff_json

        print_json(
            {
                "verb": plan.verb.name,
                "table": plan.new.name,
                "backend": address,
                "before": plan.before.value,
                "after": plan.after.value,
                "changed": plan.changes and not dry_run,
                "dry_run": dry_run,
                "digest": _digest(plan),
                "diff": diff_json(plan.diff),
            }
        )
        return
    what = f"{plan.verb.name} {plan.new.name} {address}"
    if not plan.changes:
        print_line(f"{what}: nothing to do, it is {plan.before.value}")
        return
    from glb.ctl.diff import moved_text

    would = "would be " if dry_run else ""
    print_line(f"{what}: {would}{plan.before.value} -> {plan.after.value}, {moved_text(plan.diff)}")


fill = _verb_command("fill")
activate = _verb_command("activate")
drain = _verb_command("drain")
deactivate = _verb_command("deactivate")
