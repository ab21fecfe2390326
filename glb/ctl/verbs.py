"""``glbctl fill | activate | drain | deactivate``: one backend's next state, if that is safe."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from glb.ctl.fleet import Endpoint, ask_agent, fleet_options
from glb.ctl.output import output_option, print_json, print_line, say
from glb.errors import UnsafeChangeError

if TYPE_CHECKING:
    from glb.store import Snapshot
    from glb.table.change import Plan
    from glb.table.states import VerbName

_DEFAULT_TIMEOUT_S = 300.0

_HELP: dict[VerbName, str] = {
    "fill": """Give BACKEND new flows: inactive or draining -> filling.

    Flows that others took meanwhile bounce back to them. Activate it once those have ended.
    """,
    "activate": """Say that BACKEND has settled: filling -> active.

    Others hold no older flows of its rows any more (or that does not matter). From draining, too.
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
    takes the last usable backend away, is refused with exit code 3 unless forced. Nothing to do is no failure.

    \b
    Example:
      glbctl {name} web 10.0.0.1 --store tables.json --dry-run
    """,
    )
    @click.argument("table_name", metavar="TABLE")
    @click.argument("backend", metavar="BACKEND")
    @click.option(
        "--store", "store_url", envvar="GLB_STORE", help="A file, as a path or file:///path.  [env: GLB_STORE]"
    )
    @click.option("--wait", is_flag=True, help="Wait for the directors given, and in a drain for the last flow.")
    @click.option(
        "--timeout",
        "timeout_s",
        type=click.FloatRange(0, min_open=True),
        default=_DEFAULT_TIMEOUT_S,
        show_default=True,
        help="Seconds to wait.",
    )
    @click.option("--force", is_flag=True, help="Make the change though flows may be lost.")
    @click.option("--dry-run", is_flag=True, help="Only say what would change.")
    @fleet_options
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
        if store_url is None:
            raise click.UsageError("no store: give --store PATH or set GLB_STORE")
        agent = _agent_of(agents, backend)
        if wait and not directors and (agent is None or name != "drain"):
            raise click.UsageError("--wait has nobody to ask: give --director URL (and to drain --agent ADDRESS=URL)")
        plan = _change(name, table_name, backend, store_url, agent, force, dry_run)
        if output == "table" and dry_run and plan.changes:
            from glb.ctl.diff import print_diff

            print_diff(plan.diff)
        if dry_run:
            plan.refuse_unless(force)
        elif wait:
            _wait(plan, directors, agent if name == "drain" else None, timeout_s)
        _report(plan, dry_run, output)

    return command


def _agent_of(agents: tuple[Endpoint, ...], backend: str) -> Endpoint | None:
    """The agent given for this backend; one given without an address is meant for it."""
    return next((agent for agent in agents if agent.address is None or str(agent.address) == backend), None)


def _change(
    name: VerbName,
    table_name: str,
    backend: str,
    store_url: str,
    agent: Endpoint | None,
    force: bool,
    dry_run: bool,
) -> Plan:
    """Plan the verb and, unless it is a dry run, store its result; both under the store's lock."""
    from glb.store import open_store
    from glb.store.edit import set_state
    from glb.table.change import plan_change
    from glb.table.states import VERBS

    store = open_store(store_url)
    if dry_run:
        return plan_change(store.load().tables, table_name, backend, VERBS[name])
    if name == "deactivate" and agent is not None and not force:
        _refuse_live_flows(agent, backend)
    plans: list[Plan] = []

    def change(snapshot: Snapshot) -> str | None:
        plan = plan_change(snapshot.tables, table_name, backend, VERBS[name])
        plans.append(plan)
        plan.refuse_unless(force)
        return set_state(snapshot, plan.table_index, plan.backend_index, plan.after) if plan.changes else None

    store.update(change)
    plan = plans[-1]
    for objection in plan.objections:
        say(f"warning: forced: {objection}")
    return plan


def _refuse_live_flows(agent: Endpoint, backend: str) -> None:
    flows = ask_agent(agent)
    if flows:
        raise UnsafeChangeError(f"{backend} still has {flows} flows by its agent; wait for them (--force loses them)")


def _wait(plan: Plan, directors: tuple[Endpoint, ...], agent: Endpoint | None, timeout_s: float) -> None:
    from glb.ctl.wait import Deadline, wait_for_digest, wait_for_no_flows

    deadline = Deadline(timeout_s)
    if directors:
        wait_for_digest(directors, plan.new.name, _digest(plan), deadline)
    if agent is not None:
        wait_for_no_flows(agent, str(plan.new.backends[plan.backend_index].address), deadline)


def _digest(plan: Plan) -> str:
    from glb.table.digest import table_digest
    from glb.table.rows import build_rows

    return table_digest(plan.new, build_rows(plan.new))


def _report(plan: Plan, dry_run: bool, output: str) -> None:
    address = str(plan.new.backends[plan.backend_index].address)
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
    would = "would be " if dry_run else ""
    print_line(
        f"{what}: {would}{plan.before.value} -> {plan.after.value}, {plan.diff.rows_moved} rows moved, "
        f"{plan.diff.rows_losing_flows} at risk"
    )


fill = _verb_command("fill")
activate = _verb_command("activate")
drain = _verb_command("drain")
deactivate = _verb_command("deactivate")
