"""``--wait``: until every director forwards by a table, and until a proxy holds no flow any more."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
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
def progress_shown() -> Iterator[_Progress]:
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


@dataclass(frozen=True, slots=True)
class Wanted:
    """What directors are to forward by."""

    version: str  # of the store's content
    digests: dict[str, str]  # by table: for directors that do not say their version
    newest: Callable[[], str]  # the version of the store's content now: somebody else may have changed it since


def wait_for_directors(directors: Sequence[Endpoint], wanted: Wanted, deadline: Deadline) -> None:
    """Until every director forwards by the wanted content, or a later one. WaitTimeoutError names those that do not.

    Directors may see the health of backends differently, and so differ in rows all the same; that is said on stderr.
    """
    with progress_shown() as progress:
        while True:
            answers = ask_all(directors, ask_director)
            versions = {wanted.version, wanted.newest()}
            missing = [
                f"{endpoint.url} {reason}"
                for endpoint, answer in zip(directors, answers, strict=True)
                if (reason := _why_not(answer, wanted, versions))
            ]
            done = len(directors) - len(missing)
            progress.show(done, len(directors), f"{done} of {len(directors)} directors forward by the new tables")
            if not missing:
                break
            deadline.sleep_or_raise("; ".join(missing))
    statuses = [answer for answer in answers if isinstance(answer, DirectorStatus)]
    for table in wanted.digests:
        if len({status.digest_of(table) for status in statuses}) > 1:
            say(f"warning: {table}: the directors' rows differ; do they see the same backends healthy? (glbctl status)")


def _why_not(answer: DirectorStatus | UnreachableError, wanted: Wanted, versions: Collection[str]) -> str:
    """Why a director does not count as converged; empty if it does."""
    if isinstance(answer, UnreachableError):
        return f"cannot be asked ({answer})"
    if answer.table_version in versions:
        return ""
    behind = [name for name, digest in wanted.digests.items() if answer.digest_of(name) != digest]
    if answer.table_version is None and not behind:
        return ""
    if answer.reload_error is not None:
        return f"refused to reload ({answer.reload_error})"
    if answer.table_version is not None:
        return f"still forwards by version {answer.table_version[:12]}"
    found = answer.digest_of(behind[0])
    return f'has no table "{behind[0]}"' if found is None else f"still forwards by {found[:12]}"


def wait_for_no_flows(agent: Endpoint, backend: str, deadline: Deadline) -> None:
    """Until the backend's agent counts no flow. WaitTimeoutError says how many are left."""
    most = 0
    with progress_shown() as progress:
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
