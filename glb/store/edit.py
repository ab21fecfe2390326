"""Changes one value in the text of a JSON document and leaves every other character as its author wrote it."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from glb.errors import StoreError
from glb.store import Snapshot
from glb.table.config import State

_SPACE = re.compile(r"[ \t\n\r]*")
_decode = json.JSONDecoder().raw_decode


def set_state(snapshot: Snapshot, table: int, backend: int, state: State) -> str:
    """The stored text with another state for one backend, both by index. StoreError if the text is no JSON."""
    if snapshot.format != "json":
        message = f"only JSON files can be changed by glbctl, this one is {snapshot.format.upper()}; edit it by hand"
        raise StoreError(f"{snapshot.source}: {message}")
    return set_value(snapshot.text, ("tables", table, "backends", backend, "state"), state.value)


def set_value(text: str, path: Sequence[str | int], value: object) -> str:
    """The text of a valid JSON document with another value at a path that exists."""
    start, end = _span(text, path)
    return text[:start] + json.dumps(value) + text[end:]


def _span(text: str, path: Sequence[str | int]) -> tuple[int, int]:
    """Where the value at the path starts and ends."""
    at = _skip(text, 0)
    for step in path:
        at = _skip(text, at + 1)  # past the bracket
        at = _entry(text, at, step) if isinstance(step, int) else _member(text, at, step)
    return at, _decode(text, at)[1]


def _entry(text: str, at: int, number: int) -> int:
    for _ in range(number):
        at = _skip(text, _decode(text, at)[1])
        at = _skip(text, at + 1)  # past the comma
    return at


def _member(text: str, at: int, key: str) -> int:
    while True:
        found, at = _decode(text, at)
        at = _skip(text, _skip(text, at) + 1)  # past the colon
        if found == key:
            return at
        at = _skip(text, _decode(text, at)[1])
        at = _skip(text, at + 1)  # past the comma


def _skip(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at
