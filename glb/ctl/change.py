"""What all commands that change something share: their options, and what agents say of flows at risk."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from glb.ctl.fleet import Endpoint, UnreachableError, agent_option, ask_agent, ask_all, ask_director, director_option
from glb.ctl.output import say

if TYPE_CHECKING:
    from glb.store import Store
    from glb.table.fields import Address

_Command = TypeVar("_Command", bound=Callable[..., Any])

_DEFAULT_TIMEOUT_S = 300.0


def store_option(command: _Command) -> _Command:
    """The option --store, as the parameter `store_url`; `opened_store` takes it."""
    option = click.option(
        "--store", "store_url", envvar="GLB_STORE", help="A file, as a path or file:///path.  [env: GLB_STORE]"
    )
    return option(command)


def opened_store(url: str | None) -> Store:
    """The store that --store names."""
    from glb.store import open_store

    if url is None:
        raise click.UsageError("no store: give --store PATH or set GLB_STORE")
    return open_store(url)


def change_options(command: _Command) -> _Command:
    """--store, --wait, --timeout, --force, --dry-run, --director, --agent."""
    options = (
        store_option,
        click.option("--wait", is_flag=True, help="Wait for the directors given, and in a drain for the last flow."),
        click.option(
            "--timeout",
            "timeout_s",
            type=click.FloatRange(0, min_open=True),
            default=_DEFAULT_TIMEOUT_S,
            show_default=True,
            help="Seconds to wait.",
        ),
        click.option("--force", is_flag=True, help="Make the change though flows may be lost."),
        click.option("--dry-run", is_flag=True, help="Only say what would change."),
        director_option,
        agent_option,
    )
    for option in reversed(options):
        command = option(command)
    return command


def agent_of(agents: Sequence[Endpoint], backend: str) -> Endpoint | None:
    """The agent given for this backend; one given without an address is meant for it."""
    return next((agent for agent in agents if agent.address is None or str(agent.address) == backend), None)


def without_flows(agents: Sequence[Endpoint], backends: Collection[Address]) -> list[Address]:
    """Those of the backends whose agents are given and count no flow at all. Who cannot be asked is named on stderr."""
    asked = [agent for agent in agents if agent.address in backends]
    ended = []
    for agent, flows in zip(asked, ask_all(asked, ask_agent), strict=True):
        if isinstance(flows, UnreachableError):
            say(f"glbctl: {flows}")
        elif flows == 0 and agent.address is not None:
            ended.append(agent.address)
    return ended


def seen_health(directors: Sequence[Endpoint]) -> dict[str, dict[Address, bool]]:
    """By table, backends that the directors check: healthy if all say so. Who cannot be asked is named on stderr."""
    seen: dict[str, dict[Address, bool]] = {}
    for answer in ask_all(directors, ask_director):
        if isinstance(answer, UnreachableError):
            say(f"glbctl: {answer}; its view of health is not known")
            continue
        for table in answer.tables:
            here = seen.setdefault(table.name, {})
            for backend in table.backends:
                if backend.healthy is not None:
                    here[backend.address] = here.get(backend.address, True) and backend.healthy
    return seen


def say_forced(objections: Sequence[str]) -> None:
    """What --force has overridden."""
    for objection in objections:
        say(f"warning: forced: {objection}")
