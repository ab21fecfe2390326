"""Following next hops where the kernel has much to tell, by a clock that goes as fast as it can."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Iterator
from itertools import pairwise
from types import TracebackType
from typing import Any

import pytest

from glb.director import nexthops
from glb.director.notifications import Told

BUSY_S = 0.001
TURN_S = 1e-6  # of the loop; without it, less than what a float can add would be waited for without end


class Skipping(selectors.SelectSelector):
    """Time that would be waited for passes at once."""

    now_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        assert timeout is not None, "nothing but time is to be waited for"
        self.now_s += timeout + TURN_S
        return super().select(0)


class FastClock(asyncio.SelectorEventLoop):
    """A loop whose time is that of its selector."""

    def __init__(self) -> None:
        self._skipping = Skipping()
        super().__init__(self._skipping)

    def time(self) -> float:
        return self._skipping.now_s


class NoRoute:
    """Netlink that nobody asks."""

    async def __aenter__(self) -> NoRoute:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


class Kernel:
    """Tells what it is given to tell, as fast as it is heard; then nothing."""

    def __init__(self, told: Iterator[Told]) -> None:
        self._told = told
        self._next: Told | None = None

    def close(self) -> None:
        pass

    async def wait(self) -> None:
        await asyncio.sleep(BUSY_S)
        self._next = next(self._told, None)
        if self._next is None:
            await asyncio.Event().wait()

    def take(self) -> Told:
        told, self._next = self._next or Told(False, False), None
        return told


class Followed:
    """Next hops of no backend, and when what was begun to be read; `enough` readings of `what` end it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, told: Iterator[Told], **takes_s: float) -> None:
        monkeypatch.setattr(nexthops, "AsyncIPRoute", NoRoute)
        monkeypatch.setattr(nexthops, "Notifications", lambda: Kernel(told))
        monkeypatch.setattr(nexthops, "_SETTLE_S", 0.0)
        interface: Any = None
        self._next_hops = nexthops.NextHops(interface, None, lambda *_: None)
        self._takes_s = takes_s
        self.read: dict[str, list[float]] = {}
        for name in ("_read_routes", "_read_links", "_read_neighbours", "_confirm"):
            monkeypatch.setattr(self._next_hops, name, self._noting(name))

    def _noting(self, name: str) -> Any:
        times = self.read[name] = []

        async def note(_: object) -> None:
            times.append(asyncio.get_running_loop().time())
            await asyncio.sleep(self._takes_s.get(name, 0.0))

        return note

    def until(self, what: str, enough: int) -> None:
        async def run() -> None:
            follower = asyncio.create_task(self._next_hops.follow())
            try:
                async with asyncio.timeout(60):
                    while len(self.read[what]) < enough:
                        await asyncio.sleep(BUSY_S)
            finally:
                follower.cancel()

        with asyncio.Runner(loop_factory=FastClock) as runner:
            runner.run(run())


def for_ever(told: Told) -> Iterator[Told]:
    while True:
        yield told


def test_gateways_are_confirmed_however_much_there_is_to_hear_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nexthops, "_REFRESH_S", 0.05)
    followed = Followed(monkeypatch, for_ever(Told(neighbours=True, routes=False)))
    followed.until("_confirm", 3)
    assert len(followed.read["_read_links"]) == len(followed.read["_confirm"])
    assert len(followed.read["_read_routes"]) == 1
    assert len(followed.read["_read_neighbours"]) > 3


def test_routes_are_read_at_intervals_however_much_there_is_to_hear_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nexthops, "_ROUTES_S", 0.05)
    followed = Followed(monkeypatch, for_ever(Told(neighbours=False, routes=True)))
    followed.until("_read_routes", 4)
    read = followed.read["_read_routes"]
    assert all(later - earlier >= 0.05 for earlier, later in pairwise(read))
    assert len(followed.read["_read_neighbours"]) == len(read)


def test_thousands_of_backends_are_read_a_quarter_of_the_time_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    told = for_ever(Told(neighbours=False, routes=True))
    followed = Followed(monkeypatch, told, _read_routes=1.0, _confirm=0.5)
    followed.until("_read_routes", 4)
    begun = followed.read["_read_routes"]
    assert [later - earlier for earlier, later in pairwise(begun)] == pytest.approx([6.0] * 3, abs=0.01)


def test_the_last_change_of_routes_is_read_though_nothing_follows(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told of right after a reading, when the next is not due yet."""
    monkeypatch.setattr(nexthops, "_ROUTES_S", 0.05)
    Followed(monkeypatch, iter([Told(neighbours=False, routes=True)])).until("_read_routes", 2)
