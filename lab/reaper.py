"""Removal of a lab, whatever became of the process that made it: ``python -m lab.reaper RECORD`` is started beside it.

The reaper waits at a pipe whose other end only the lab holds. When the lab ends, in order or by ``kill -9``, the pipe
ends; the reaper then kills every process inside the recorded namespaces and removes them, and with them their links
and routes. It has inherited the lab's lock, so nobody can take the name before all is gone. Should the reaper be killed
too, the next lab of that name removes what the record lists.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

from pyroute2 import netns

from lab.network import NETNS_DIR

PIN_ROOT = Path("/sys/fs/bpf/glb-lab")  # below it a folder for each lab
KEEP_NOTHING = b"all went well\n"  # written to the pipe: the logs may go too
_KILL_DEADLINE_S = 5.0


def processes_in(namespaces: list[str]) -> list[int]:
    """The process ids inside these network namespaces, this process excepted."""
    wanted = set()
    for namespace in namespaces:
        with suppress(FileNotFoundError):
            wanted.add(_identity(NETNS_DIR / namespace))
    wanted.discard(_identity(Path("/proc/self/ns/net")))  # the machine's own, whatever the record says
    found = []
    for entry in Path("/proc").iterdir():
        # A process that ends while we look has no namespace any more: it is not ours to kill.
        with suppress(OSError):
            if entry.name.isdigit() and _identity(entry / "ns/net") in wanted:
                found.append(int(entry.name))
    return [pid for pid in found if pid != os.getpid()]


def _identity(path: Path) -> tuple[int, int]:
    """What two paths to one namespace have in common."""
    found = path.stat()
    return found.st_dev, found.st_ino


def sweep(record: Path) -> None:
    """Remove every namespace named in ``record`` (one a line) with all that runs inside, then the record."""
    if not record.exists():
        return
    namespaces = record.read_text().split()
    deadline = time.monotonic() + _KILL_DEADLINE_S
    # Again until none is left: a process may start another between the look and the signal.
    while (pids := processes_in(namespaces)) and time.monotonic() < deadline:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
    for namespace in namespaces:
        if (NETNS_DIR / namespace).exists():
            with suppress(OSError):
                netns.remove(namespace)
    # The directors' programs went with their interfaces; the names they were pinned by did not.
    shutil.rmtree(PIN_ROOT / record.parent.name, ignore_errors=True)
    record.unlink()


def main() -> None:
    record = Path(sys.argv[1])
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    last_words = sys.stdin.buffer.read()
    sweep(record)
    if last_words == KEEP_NOTHING:
        shutil.rmtree(record.parent, ignore_errors=True)


if __name__ == "__main__":
    main()
