"""``--wait``: until every director forwards by a table, and until a proxy holds no flow any more."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from glb.ctl.fleet import DirectorStatus, Endpoint, UnreachableError, ask_agent, ask_all, ask_director
from glb.ctl.output import say
from glb.errors import GlbError

_POLL_S = 0.25


class WaitTimeoutError(GlbError):
    """What was waited for did not come about in time. The change itself was made."""


class Deadline:
    """A number of seconds from now."""

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self._at = time.monotonic() + timeout_s

    def sleep_or_raise(self, missing: str) -> None:
        """Sleep until the next look; WaitTimeoutError, saying what is missing, if there is no time left."""
        left = self._at - time.monotonic()
        if left <= 0:
            raise WaitTimeoutError(f"after {self.timeout_s:g} s: {missing}; the change itself was made")
        time.sleep(min(_POLL_S, left))


class _Progress(Protocol):
    def show(self, done: int, total: int, text: str) -> None: ...


class _Lines:
    """For pipes: a line whenever something changed."""

    def __init__(self) -> None:
        self._last = ""

    def show(self, done: int, total: int, text: str) -> None:
        if text != self._last:
            say(text)
            self._last = text


@contextmanager
def _progress() -> Iterator[_Progress]:
    """A bar on a terminal, lines in a pipe; both on stderr."""
    if not sys.stderr.isatty():
        yield _Lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)

        class Bar:
            def show(self, done: int, total: int, text: str) -> None:
                bar.update(task, completed=done, total=max(total, 1), description=text)

        yield Bar()


def wait_for_digest(directors: Sequence[Endpoint], table: str, digest: str, deadline: Deadline) -> None:
    """Until every director reports this digest for the table. WaitTimeoutError names those that do not."""
    with _progress() as progress:
        while True:
            missing = [
                f"{endpoint.url} {reason}"
                for endpoint, answer in zip(directors, ask_all(directors, ask_director), strict=True)
                if (reason := _why_not(answer, table, digest))
            ]
            done = len(directors) - len(missing)
            progress.show(done, len(directors), f"{done} of {len(directors)} directors forward by {digest[:12]}")
            if not missing:
                return
            deadline.sleep_or_raise("; ".join(missing))


def _why_not(answer: DirectorStatus | UnreachableError, table: str, digest: str) -> str:
    """Why a director does not count as converged; empty if it does."""
    if isinstance(answer, UnreachableError):
        return f"cannot be asked ({answer})"
    found = answer.digest_of(table)
    if found == digest:
        return ""
    if answer.reload_error is not None:
        return f"refused to reload ({answer.reload_error})"
    return f'has no table "{table}"' if found is None else f"still forwards by {found[:12]}"


def wait_for_no_flows(agent: Endpoint, backend: str, deadline: Deadline) -> None:
    """Until the backend's agent counts no flow. WaitTimeoutError says how many are left."""
    most = 0
    with _progress() as progress:
        while True:
            try:
                flows = ask_agent(agent)
            except UnreachableError as error:
                progress.show(0, most, f"the agent of {backend} cannot be asked ({error})")
                deadline.sleep_or_raise(str(error))
                continue
            most = max(most, flows)
            progress.show(most - flows, most, f"{flows} flows left on {backend}")
            if flows == 0:
                return
            deadline.sleep_or_raise(f"{flows} flows are left on {backend}")
