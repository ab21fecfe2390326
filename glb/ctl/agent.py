"""``glbctl agent``: what the agents on the proxies do."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import click

from glb.ctl.fleet import Endpoint, UnreachableError, agent_option, ask, ask_all
from glb.ctl.output import Cell, output_option, print_columns, print_json, say

_LOCAL_AGENT = Endpoint("http://127.0.0.1:9524")
_EXIT_UNREACHABLE = 1


@dataclass(frozen=True, slots=True)
class BindFlows:
    """Live flows at one port of a VIP; `port` None: at all ports without a listener."""

    address: str
    port: int | None
    flows: int


@dataclass(frozen=True, slots=True)
class AgentStatus:
    """What an agent says of itself; `None` is what an older one does not say. Packets are since its start."""

    version: str
    engine: str
    mode: str | None
    vips: tuple[str, ...]
    flows: int
    binds: tuple[BindFlows, ...]
    accepted: int | None
    bounced: int | None
    dropped: int | None
    last_resort: int | None
    mss: dict[str, int] | None  # by ipv4, ipv6; 0: not clamped
    problems: tuple[str, ...] = field(default=())


@click.group()
def agent() -> None:
    """Ask the agents on the proxies.

    \b
    Example:
      glbctl agent status --agent 10.0.0.1=http://10.0.0.1:9524
    """


@agent.command()
@agent_option
@output_option
def status(agents: tuple[Endpoint, ...], output: str) -> None:
    """Show each agent's engine, flows by bind, packets accepted, bounced and dropped, and MSS clamp.

    Without --agent the one on this host is asked. Exit code 1 if somebody cannot be asked.

    \b
    Example:
      glbctl agent status --agent 10.0.0.1=http://10.0.0.1:9524 --agent 10.0.0.2=http://10.0.0.2:9524
    """
    asked = agents or (_LOCAL_AGENT,)
    answers = list(zip(asked, ask_all(asked, ask_status), strict=True))
    if output == "json":
        print_json({"agents": [_json(endpoint, answer) for endpoint, answer in answers]})
    else:
        _print(answers)
    for endpoint, answer in answers:
        if isinstance(answer, UnreachableError):
            say(f"glbctl: {answer}")
        else:
            for problem in answer.problems:
                say(f"glbctl: {_name(endpoint)}: {problem}")
    if any(isinstance(answer, UnreachableError) for _, answer in answers):
        raise SystemExit(_EXIT_UNREACHABLE)


def ask_status(endpoint: Endpoint) -> AgentStatus:
    """An agent's status. UnreachableError with the reason."""
    value = ask(endpoint.url)
    try:
        mss = value.get("mss")
        problem = mss.get("problem") if mss is not None else None
        return AgentStatus(
            version=str(value["version"]),
            engine=str(value["engine"]),
            mode=value.get("mode"),
            vips=tuple(map(str, value["vips"])),
            flows=int(value["flows_total"]),
            binds=tuple(
                BindFlows(str(bind["address"]), bind["port"], int(bind["flows"])) for bind in value.get("binds", ())
            ),
            accepted=value.get("accepted"),
            bounced=value.get("bounced"),
            dropped=value.get("dropped"),
            last_resort=value["counters"].get("last_resort"),
            mss=None if mss is None else {family: int(mss[family]) for family in ("ipv4", "ipv6")},
            problems=(
                *([f"the MSS is not clamped: {problem}"] if problem else []),
                *(f"flows: {text}" for text in value.get("flows_problems", ())),
            ),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UnreachableError(f"{endpoint.url}: is no agent ({error!r} in its status)") from error


_Answers = list[tuple[Endpoint, AgentStatus | UnreachableError]]


def _name(endpoint: Endpoint) -> str:
    return endpoint.url if endpoint.address is None else str(endpoint.address)


def _json(endpoint: Endpoint, answer: AgentStatus | UnreachableError) -> dict[str, Any]:
    head = {"address": None if endpoint.address is None else str(endpoint.address), "url": endpoint.url}
    if isinstance(answer, UnreachableError):
        return {**head, "up": False, "error": str(answer)}
    return {
        **head,
        "up": True,
        "version": answer.version,
        "engine": answer.engine,
        "mode": answer.mode,
        "vips": list(answer.vips),
        "flows": answer.flows,
        "binds": [{"address": each.address, "port": each.port, "flows": each.flows} for each in answer.binds],
        "accepted": answer.accepted,
        "bounced": answer.bounced,
        "dropped": answer.dropped,
        "last_resort": answer.last_resort,
        "mss": answer.mss,
        "problems": list(answer.problems),
    }


def _print(answers: _Answers) -> None:
    headers = ["agent", "", "engine", "version", "flows", "accepted", "bounced", "dropped", "last resort", "mss"]
    rows: list[list[Cell]] = []
    binds: list[list[Cell]] = []
    for endpoint, answer in answers:
        name = _name(endpoint)
        if isinstance(answer, UnreachableError):
            rows.append([name, "down", *[""] * (len(headers) - 2)])
            continue
        engine = f"{answer.engine} ({answer.mode})" if answer.mode else answer.engine
        numbers = [answer.flows, answer.accepted, answer.bounced, answer.dropped, answer.last_resort]
        rows.append([name, "up", engine, answer.version, *map(_known, numbers), _clamp(answer)])
        binds += [
            [name, each.address, "others" if each.port is None else str(each.port), each.flows] for each in answer.binds
        ]
    print_columns("agents", headers, rows)
    if binds:
        print_columns("flows", ["agent", "vip", "port", "flows"], binds)


def _known(number: int | None) -> Cell:
    return "-" if number is None else number


def _clamp(answer: AgentStatus) -> str:
    if answer.mss is None:
        return "-"
    values = [str(value) for value in answer.mss.values() if value]
    return " / ".join(values) or "not clamped"
