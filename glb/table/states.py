"""The states of a backend and the verbs that lead from one to the next, as data (drawn in docs/operate/glbctl.md)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from glb.table.config import State

VerbName = Literal["fill", "activate", "drain", "deactivate"]


@dataclass(frozen=True, slots=True)
class Verb:
    """A change that an operator asks for."""

    name: VerbName
    goal: State
    leads_from: frozenset[State]  # --force leads from any state
    reached_in: frozenset[State]  # nothing to do: what the verb wants is so already
    first: str  # what to do before, in any other state


def _verb(name: VerbName, goal: State, leads_from: set[State], reached_in: set[State], first: str) -> Verb:
    return Verb(name, goal, frozenset(leads_from), frozenset(reached_in), first)


VERBS: dict[VerbName, Verb] = {
    verb.name: verb
    for verb in (
        # A draining backend is filled again, not activated: others hold new flows of its rows by now.
        _verb("fill", State.filling, {State.inactive, State.draining}, {State.filling, State.active}, ""),
        _verb("activate", State.active, {State.filling, State.draining}, {State.active}, "fill it first"),
        _verb("drain", State.draining, {State.filling, State.active}, {State.draining, State.inactive}, ""),
        _verb("deactivate", State.inactive, {State.draining}, {State.inactive}, "drain it first"),
    )
}
