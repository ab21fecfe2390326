"""Waiting for an advisory file lock, but not for ever."""

from __future__ import annotations

import fcntl
import time

_POLL_S = 0.02  # flock(2) has no time limit of its own


def lock_within(fd: int, timeout_s: float) -> bool:
    """Take the exclusive lock (flock(2)) of an open file; False if another holds it for that long. OSError."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(_POLL_S)
        else:
            return True
