"""Following next hops where the kernel has much to tell."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Any

import pytest

from glb.director import nexthops


class BusyRoute:
    """Netlink of a host whose neighbours come and go all the time, and are never ours."""

    async def __aenter__(self) -> BusyRoute:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    async def bind(self, groups: int) -> None:
        pass

    async def get(self) -> AsyncIterator[dict[str, object]]:
        while True:
            await asyncio.sleep(0.001)
            yield {"event": "RTM_NEWNEIGH"}


def test_gateways_are_confirmed_however_much_there_is_to_hear_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    interface: Any = None
    next_hops = nexthops.NextHops(interface, None, lambda *_: None)
    monkeypatch.setattr(nexthops, "AsyncIPRoute", BusyRoute)
    monkeypatch.setattr(nexthops, "_REFRESH_S", 0.05)

    async def run() -> None:
        enough, confirmed, links = asyncio.Event(), [0], [0]

        async def read(_: object) -> None:
            pass

        async def read_links(_: object) -> None:
            links[0] += 1

        async def confirm(_: object) -> None:
            confirmed[0] += 1
            if confirmed[0] == 3:
                enough.set()

        for name, function in (
            ("_read_routes", read),
            ("_read_neighbours", read),
            ("_read_links", read_links),
            ("_confirm", confirm),
        ):
            monkeypatch.setattr(next_hops, name, function)
        follower = asyncio.create_task(next_hops.follow())
        try:
            await asyncio.wait_for(enough.wait(), 5)
        finally:
            follower.cancel()
        assert links == confirmed

    asyncio.run(run())
