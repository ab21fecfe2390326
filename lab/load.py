"""The lab's hand on the load client: commands out, counts in."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from lab import plan
from lab.client import Counts
from lab.errors import LabError
from lab.program import enter, environment
from lab.site import Lab


@dataclass(frozen=True)
class Answer:
    """A connection that was answered: by which proxy, and when it was begun (CLOCK_MONOTONIC)."""

    group: str
    begun_s: float
    proxy: str


@dataclass
class Load:
    """``with Load(lab) as load:`` starts the client; ``counts`` and ``answers`` follow its reports by themselves."""

    lab: Lab
    answers: list[Answer] = field(default_factory=list)
    failures: list[tuple[str, float, str]] = field(default_factory=list)  # group, time, what happened
    _groups: dict[str, Counts] = field(default_factory=dict)

    def __enter__(self) -> Load:
        self._log = self.lab.directory(plan.CLIENT.name) / "client.log"
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                enter(self.lab.namespace(plan.CLIENT.name), [sys.executable, "-m", "lab.client"]),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=Path(__file__).parent.parent,
                env=environment(),
                start_new_session=True,
                text=True,
            )
        self._reader = threading.Thread(target=self._follow, daemon=True)
        self._reader.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()

    def send(self, do: str, **arguments: Any) -> None:
        """A command of ``lab.client``."""
        self.check()
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
        self._process.stdin.flush()

    def check(self) -> None:
        if self._process.poll() is not None:
            raise LabError(f"the load client ended by itself:\n{self._log.read_text()[-2000:]}")

    def counts(self, group: str) -> Counts:
        return self._groups.get(group, Counts())

    def proxies(self, group: str, since_s: float = 0.0, until_s: float = float("inf")) -> Counter[str]:
        """Connections of the group that were begun between the two times, by the proxy that answered."""
        answers = list(self.answers)
        return Counter(each.proxy for each in answers if each.group == group and since_s <= each.begun_s < until_s)

    def _follow(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            report = json.loads(line)
            self.answers.extend(Answer(*answer) for answer in report["answers"])
            self.failures.extend((group, at, what) for group, at, what in report["failures"])
            self._groups = {name: Counts(**counts) for name, counts in report["groups"].items()}
