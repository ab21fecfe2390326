"""`POST /capture` to a client that stops reading: it ends all the same, and the plain program is put back."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from scapy.layers.inet import TCP
from scene import ipv4

from glb import admin
from glb._capture import Captured
from glb.director import capture

FRAME = bytes(ipv4() / TCP(dport=80)) + bytes(4000)
PACKET = Captured(1, "host", "xdp", 0, None, 0, 0, FRAME, len(FRAME), None, 0)
REQUEST = b"POST /capture HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"


class Tap:
    """Captures without end."""

    missed = 0
    is_behind = True

    def take(self, at_most: int, wait_ms: int) -> list[tuple[str | None, Captured]]:
        return [(None, PACKET)] * 12


class Datapath:
    def __init__(self) -> None:
        self.open = 0

    def make_tap(self, _: object) -> Tap:
        return Tap()

    def open_tap(self, _: object) -> None:
        self.open += 1

    def close_tap(self) -> None:
        self.open -= 1


@pytest.mark.parametrize("limit", [12 * n for n in range(1, 11)])  # the last write may be one that waits, or not
def test_a_client_that_reads_nothing_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    def give_up_soon(request: web.Request) -> None:
        assert request.transport is not None
        request.transport.set_write_buffer_limits(high=0)

    monkeypatch.setattr(capture, "_STUCK_S", 0.1)
    monkeypatch.setattr(capture, "give_up_soon", give_up_soon)

    async def run() -> None:
        datapath: Any = Datapath()
        captures = capture.Captures(datapath, "eth0", names=list, changing=asyncio.Lock(), remote=False)
        path = tmp_path / "admin.sock"
        app = admin.make_app("test", {}, {"/capture": ("", captures.post)})
        runner = await admin.serve(app, f"unix:{path}")
        with socket.socket(socket.AF_UNIX) as client:
            client.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(client, str(path))
            body = b'{"limit": %d}' % limit
            await loop.sock_sendall(client, REQUEST % (len(body), body))
            while captures.running is None:
                await asyncio.sleep(0)
            while captures.running is not None:
                await asyncio.sleep(0.01)
            assert datapath.open == 0
            await runner.cleanup()

    asyncio.run(asyncio.wait_for(run(), 5))
