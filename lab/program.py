"""Programs on a host of the lab: started in its namespace, their output in a log, waited for with a deadline."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from lab.errors import LabError
from lab.network import NETNS_DIR

COMMAND_DEADLINE_S = 30.0
_POLL_S = 0.05


def until(condition: Callable[[], object], what: str, timeout_s: float, *, needs: Sequence[Program] = ()) -> None:
    """Return once ``condition()`` is true. ``LabError`` after ``timeout_s``, or when a needed program has ended."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        for program in needs:
            program.check()
        if time.monotonic() > deadline:
            tails = "".join(f"\n{program.last_words()}" for program in needs)
            raise LabError(f"waited {timeout_s:g} s in vain: {what}{tails}")
        time.sleep(_POLL_S)


def enter(namespace: str, argv: Sequence[str]) -> list[str]:
    """The command line that runs ``argv`` in the namespace, in the same process (nsenter execs it)."""
    return ["nsenter", f"--net={NETNS_DIR / namespace}", "--", *argv]


def environment() -> dict[str, str]:
    """This process's, with the directories of BIRD, nginx and the like in PATH also where root's PATH lacks them."""
    return os.environ | {"PATH": os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])}


def run(namespace: str, argv: Sequence[str], timeout_s: float = COMMAND_DEADLINE_S) -> str:
    """Run a command to its end on a host; its stdout. ``LabError`` with its stderr if it fails or takes too long."""
    try:
        done = subprocess.run(
            enter(namespace, argv), capture_output=True, text=True, timeout=timeout_s, env=environment(), check=False
        )
    except subprocess.TimeoutExpired as error:
        raise LabError(f"on {namespace}: `{' '.join(argv)}` took longer than {timeout_s:g} s") from error
    if done.returncode:
        said = (done.stderr or done.stdout).strip()
        raise LabError(f"on {namespace}: `{' '.join(argv)}` failed ({done.returncode}): {said}")
    return done.stdout


class Program:
    """A long-running program on a host. Its output goes to ``log``; it dies with the lab (see ``lab.reaper``)."""

    def __init__(self, namespace: str, argv: Sequence[str], log: Path) -> None:
        self.name = log.stem
        self.namespace = namespace
        self.argv = list(argv)
        self.log = log
        self._process: subprocess.Popen[bytes] | None = None
        self._stopped = False

    def start(self) -> Program:
        self._stopped = False
        with self.log.open("ab") as log:
            # A session of its own: Ctrl-C in the terminal is for the lab, which then ends its programs in order.
            self._process = subprocess.Popen(
                enter(self.namespace, self.argv),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment(),
                start_new_session=True,
            )
        return self

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def check(self) -> None:
        """``LabError`` with the program's last lines if it has ended, and not by ``stop``."""
        if self._process is not None and not self._stopped and self._process.poll() is not None:
            raise LabError(f"a program ended by itself ({self._process.returncode}): {self.last_words()}")

    def send(self, number: signal.Signals) -> None:
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.send_signal(number)

    def stop(self, number: signal.Signals = signal.SIGTERM, timeout_s: float = 5.0) -> None:
        """End the program, with SIGKILL if it does not follow within ``timeout_s``."""
        if self._process is None:
            return
        self._stopped = True
        self.send(number)
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def last_words(self, lines: int = 12) -> str:
        """The end of the log and where the whole of it is."""
        try:
            tail = self.log.read_text(errors="replace").splitlines()[-lines:]
        except OSError:
            tail = []
        return "\n".join([f"{self.name} on {self.namespace}, log {self.log}:", *(f"  | {line}" for line in tail)])
