"""The load client: ``python -m lab.client``, started inside the client's namespace by ``lab.load``.

stdin: one JSON command a line, ``{"do": ..}`` after ``_COMMANDS``; it ends at the end of stdin. stdout: one JSON report
a line, five times a second: the counts of every group since the start, and the answers and failures since the last
report. Times are CLOCK_MONOTONIC seconds, the same on both sides.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import time
from collections.abc import Callable, Coroutine
from dataclasses import asdict, dataclass
from ipaddress import ip_address
from typing import Any

from lab import content, plan
from lab.flow import Address, Broken, Flow

_REPORT_S = 0.2
# 4 KB/s and about four packets a second for each download: every one feels a change within a second or two, and the
# 256 KB last for a minute before the reserve is reached.
_PACE_BYTES, _PACE_S = 2048, 0.5
_RESERVE_BYTES = 32 * 1024  # not read before `release`: no download ends before the story does
_FIRST_SOURCE = 256


@dataclass
class Counts:
    """What became of one group's connections."""

    asked: int = 0
    open: int = 0  # downloads on their way
    done: int = 0  # complete, every byte verified
    broken: int = 0
    corrupt: int = 0
    received: int = 0  # bytes


class Client:
    """Runs the commands; every connection is a task."""

    def __init__(self) -> None:
        self.groups: dict[str, Counts] = {}
        self.answers: list[list[Any]] = []  # [group, time the connection was begun, proxy]
        self.failures: list[list[Any]] = []  # [group, time, what happened]
        self._sources = itertools.count(_FIRST_SOURCE)  # every connection comes from an address of its own
        self._released = asyncio.Event()
        self._steady: set[asyncio.Task[None]] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def command(self, do: str, **arguments: Any) -> None:
        _COMMANDS[do](self, **arguments)

    def downloads(self, group: str, vips: list[str], count: int) -> None:
        """Begin ``count`` downloads over 2 s, read at a fixed pace until released."""
        for number in range(count):
            self._spawn(self._download(group, ip_address(vips[number % len(vips)]), number, 2.0 * number / count))

    def requests(self, group: str, vips: list[str], count: int, at_once: int) -> None:
        """Make ``count`` short requests, ``at_once`` at a time."""
        numbers = iter(range(count))

        async def worker() -> None:
            for number in numbers:
                await self._request(group, ip_address(vips[number % len(vips)]))

        for _ in range(at_once):
            self._spawn(worker())

    def steady(self, group: str, vips: list[str], per_second: float) -> None:
        """Begin a short request every 1/``per_second`` s until ``quiet``."""

        async def pacer() -> None:
            begun, number = time.monotonic(), 0
            while True:
                self._spawn(self._request(group, ip_address(vips[number % len(vips)])))
                number += 1
                await asyncio.sleep(begun + number / per_second - time.monotonic())

        self._steady.add(asyncio.create_task(pacer()))

    def quiet(self) -> None:
        """Begin no more steady requests; those on their way go on."""
        for task in self._steady:
            task.cancel()
        self._steady.clear()

    def release(self) -> None:
        """Read the downloads to their end, as fast as they come."""
        self._released.set()

    async def report(self) -> None:
        while True:
            groups = {name: asdict(counts) for name, counts in self.groups.items()}
            print(json.dumps({"groups": groups, "answers": self.answers, "failures": self.failures}), flush=True)
            self.answers, self.failures = [], []
            await asyncio.sleep(_REPORT_S)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _flow(self, vip: Address, path: str) -> Flow:
        prefix = plan.CLIENTS_V4 if vip.version == 4 else plan.CLIENTS_V6
        return Flow(prefix[next(self._sources) % plan.CLIENTS_V4.num_addresses], vip, path)

    async def _request(self, group: str, vip: Address) -> None:
        counts = self.groups.setdefault(group, Counts())
        counts.asked += 1
        begun = time.monotonic()
        flow = self._flow(vip, content.SHORT_PATH)
        try:
            await flow.open()
            await flow.read_to(flow.length)
            counts.done += 1
            self.answers.append([group, begun, flow.proxy])
        except Broken as error:
            self._fail(group, flow, error)
        finally:
            counts.received += flow.received
            flow.close()

    async def _download(self, group: str, vip: Address, number: int, delay_s: float) -> None:
        counts = self.groups.setdefault(group, Counts())
        counts.asked += 1
        await asyncio.sleep(delay_s)
        begun = time.monotonic()
        flow = self._flow(vip, content.download_path(number))
        before = 0
        try:
            await flow.open()
            counts.open += 1
            self.answers.append([group, begun, flow.proxy])
            try:
                while not self._released.is_set() and flow.received < flow.length - _RESERVE_BYTES:
                    await flow.read_to(flow.received + 1, _PACE_BYTES)
                    before = self._count(counts, flow, before)
                    await asyncio.sleep(_PACE_S)
                await self._released.wait()
                await flow.read_to(flow.length)
            finally:
                counts.open -= 1
            counts.done += 1
        except Broken as error:
            self._fail(group, flow, error)
        finally:
            self._count(counts, flow, before)
            flow.close()

    def _count(self, counts: Counts, flow: Flow, before: int) -> int:
        counts.received += flow.received - before
        return flow.received

    def _fail(self, group: str, flow: Flow, error: Broken) -> None:
        if error.kind == "corrupt":
            self.groups[group].corrupt += 1
        else:
            self.groups[group].broken += 1
        self.failures.append([group, time.monotonic(), f"{flow}: {error}"])


_COMMANDS: dict[str, Callable[..., None]] = {
    "downloads": Client.downloads,
    "requests": Client.requests,
    "steady": Client.steady,
    "quiet": Client.quiet,
    "release": Client.release,
}


async def main() -> None:
    client = Client()
    stdin = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(stdin), sys.stdin)
    reporter = asyncio.create_task(client.report())
    while line := await stdin.readline():
        client.command(**json.loads(line))
    reporter.cancel()


if __name__ == "__main__":
    asyncio.run(main())
