"""Notices that a file was written or replaced."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from asyncinotify import Inotify, Mask

# A change is seen at once; this often the file is looked at all the same, should a notification be missing (NFS).
_POLL_S = 5.0


async def file_changes(path: str | Path) -> AsyncIterator[None]:
    """Yield once after each change of the file; several close together may count as one. Ends when cancelled."""
    path = Path(path)
    seen = _identity(path)
    with Inotify() as inotify:
        inotify.add_watch(path.parent, Mask.CLOSE_WRITE | Mask.MOVED_TO)
        while True:
            with contextlib.suppress(TimeoutError):
                event = await asyncio.wait_for(inotify.get(), _POLL_S)
                if event.name is not None and event.name.name != path.name:
                    continue
            now = _identity(path)
            if now is not None and now != seen:
                seen = now
                yield


def _identity(path: Path) -> tuple[int, int, int] | None:
    """Changes whenever the file is replaced or written."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_mtime_ns, stat.st_size
