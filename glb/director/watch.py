"""Notices that a file was written or replaced."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

from asyncinotify import Inotify, Mask

# A change is seen at once; this often the file is looked at all the same, should a notification be missing (NFS).
_POLL_S = 5.0

Identity = tuple[int, int, int]


async def file_changes(path: str | Path, seen: Identity | None) -> AsyncIterator[None]:
    """Yield once after each change of the file; several close together may count as one. Ends when cancelled.

    `seen`: `identity` of the file before it was read, so that what changes from then on is not missed.
    """
    path = Path(path)
    with Inotify() as inotify:
        inotify.add_watch(path.parent, Mask.CLOSE_WRITE | Mask.MOVED_TO)
        while True:
            now = identity(path)
            if now is not None and now != seen:
                seen = now
                yield
            with contextlib.suppress(TimeoutError):
                while (event := await asyncio.wait_for(inotify.get(), _POLL_S)).name is not None:
                    if event.name.name == path.name:
                        break


def identity(path: str | Path) -> Identity | None:
    """Changes whenever the file is replaced or written; None: there is none."""
    try:
        stat = os.stat(path)
    except OSError:
        return None
    return stat.st_ino, stat.st_mtime_ns, stat.st_size
