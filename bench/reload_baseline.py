"""The baseline of the reload benchmark: ``python -m bench.reload_baseline FILE``.

The least that a program can do about a file that was replaced: notice, read, parse. stdout: ``ready``, then for each
time the moment at which it had the content (CLOCK_MONOTONIC, ns).
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path

from asyncinotify import Inotify, Mask


async def main(path: Path) -> None:
    with Inotify() as inotify:
        inotify.add_watch(path.parent, Mask.MOVED_TO)
        print("ready", flush=True)
        async for event in inotify:
            if event.name is not None and event.name.name == path.name:
                json.loads(path.read_bytes())
                print(time.monotonic_ns(), flush=True)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
