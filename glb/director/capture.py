"""`POST /capture`: streams packets as pcapng while the client reads; one capture at a time.

It is a POST because it changes something: the kernel's program. Whatever ends it (the limit, the time, the client that
goes, the director's stop), the plain program is put back before the next capture can begin.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import socket
import time
from collections.abc import Callable
from ipaddress import IPv4Network, IPv6Network

import msgspec
from aiohttp import web

from glb import admin
from glb._capture import MAX_SNAP_BYTES, MIN_SNAP_BYTES
from glb.director import captured
from glb.director.datapath import Datapath
from glb.director.tap import Filter, Tap
from glb.errors import DeviceError
from glb.wire import pcapng

log = logging.getLogger(__name__)

_BATCH = 1024
_WAIT_MS = 20
_BEAT_S = 1.0  # statistics so often: the client sees that the director lives, and the director that the client does
_STUCK_S = 10.0  # a client that takes nothing for so long is gone
_TCP_USER_TIMEOUT = 18


class Request(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of the POST, in JSON."""

    table: str | None = None
    client: str | None = None
    limit: int | None = None  # packets
    seconds: float | None = None
    sample: int = 1
    snaplen: int = 2048

    def described(self) -> str:
        """In words, for who wants to capture meanwhile."""
        chosen = [f"{key} {value}" for key in ("table", "client") if (value := getattr(self, key)) is not None]
        return ", ".join(chosen) or "all packets for a bind"


class Refused(Exception):
    """A capture that is not begun: HTTP status, and why."""

    def __init__(self, status: int, text: str) -> None:
        self.status = status
        super().__init__(text)


class Captures:
    """The endpoint. `changing`: held while what is forwarded by changes; `names`: the tables' names now."""

    def __init__(
        self,
        datapath: Datapath,
        interface: str,
        *,
        names: Callable[[], list[str]],
        changing: asyncio.Lock,
        remote: bool,
    ) -> None:
        self._datapath = datapath
        self._interface = interface
        self._names = names
        self._changing = changing
        self._remote = remote
        self._idle = asyncio.Lock()
        self._stopping = False
        self.running: str | None = None  # what, and for whom

    async def stop(self) -> None:
        """End the capture that runs, and refuse others."""
        self._stopping = True
        async with self._idle:
            return

    async def post(self, request: web.Request) -> web.StreamResponse:
        try:
            wanted, filter = await self._checked(request)
            if self.running is not None or self._stopping:
                raise Refused(409, f"another capture is running: {self.running or 'the director stops'}")
        except Refused as refused:
            return web.Response(status=refused.status, text=f"{refused}\n")
        began = time.strftime("%H:%M:%S")
        self.running = f"{wanted.described()}, for {peer_of(request) or 'a unix socket'}, since {began}"
        try:
            async with self._idle:
                return await self._capture(request, wanted, filter)
        finally:
            self.running = None

    async def _checked(self, request: web.Request) -> tuple[Request, Filter]:
        """What is asked for. Refused where it may not or cannot be had."""
        # A web page whose name has come to mean this host may POST JSON, but not without saying where it is from.
        if "Origin" in request.headers:
            raise Refused(403, "packets are not shown to web pages")
        if not self._remote and not is_local(request):
            raise Refused(403, "packets are shown on the director's own host only, unless it has remote_capture = true")
        # A web page can make a browser POST to loopback, but not as JSON.
        if request.content_type != "application/json":
            raise Refused(415, "the request must be application/json")
        try:
            wanted = msgspec.json.decode(await request.read(), type=Request)
            filter = filter_of(wanted)
        except (msgspec.DecodeError, ValueError) as error:
            raise Refused(400, str(error)) from error
        if wanted.table is not None and wanted.table not in self._names():
            raise Refused(422, f"there is no table {wanted.table}; there are: {', '.join(self._names())}")
        if filter.client is not None:
            wanted = msgspec.structs.replace(wanted, client=str(filter.client))
        return wanted, filter

    async def _capture(self, request: web.Request, wanted: Request, filter: Filter) -> web.StreamResponse:
        try:
            # The kernel takes a while to verify the program: a reload need not wait for that.
            tap = await asyncio.to_thread(self._datapath.make_tap, filter)
            async with self._changing:
                await asyncio.to_thread(self._datapath.open_tap, tap)
        except DeviceError as error:
            return web.Response(status=500, text=f"{error}\n")
        log.info("capturing %s", self.running)
        response = web.StreamResponse(headers={"Content-Type": "application/x-pcapng"})
        try:
            give_up_soon(request)
            await response.prepare(request)
            await response.write(captured.head(f"{socket.gethostname()} {self._interface}", filter.snap_bytes))
            await self._stream(request, response, tap, wanted)
            with contextlib.suppress(ConnectionError):  # it may have what it wants, and not wait
                await asyncio.wait_for(response.write_eof(), _STUCK_S)
        except (ConnectionError, TimeoutError):
            log.info("who captured is gone")
            if request.transport is not None:
                request.transport.abort()  # else the server itself would wait for it to take the rest
        finally:
            missed = tap.missed
            async with self._changing:
                await asyncio.to_thread(self._datapath.close_tap)
            lacking = f"; {missed} packets were not captured: the buffer was full" if missed else ""
            log.info("the capture has ended%s", lacking)
        return response

    async def _stream(self, request: web.Request, response: web.StreamResponse, tap: Tap, wanted: Request) -> None:
        """Packets until the end."""
        clock = asyncio.get_running_loop().time
        ends_at = clock() + wanted.seconds if wanted.seconds is not None else float("inf")
        epoch_ns = time.time_ns() - time.monotonic_ns()
        beat_at, taken, over = 0.0, 0, False
        while not over:
            # What came before the end is still taken after it.
            over = self._stopping or clock() >= ends_at
            room = None if wanted.limit is None else wanted.limit - taken
            wait_ms = 0 if over or tap.is_behind else _WAIT_MS
            content = await asyncio.to_thread(packet_blocks, tap, room, wait_ms, epoch_ns)
            taken += len(content)
            over = over or taken == wanted.limit
            if over or clock() >= beat_at:
                beat_at = clock() + _BEAT_S
                missed = tap.missed
                now_ns = time.time_ns()
                content.append(pcapng.statistics(captured.RECEIVED, now_ns, received=taken + missed, dropped=missed))
            if request.transport is None or request.transport.is_closing():
                raise ConnectionResetError
            if content:
                await asyncio.wait_for(response.write(b"".join(content)), _STUCK_S)


def packet_blocks(tap: Tap, room: int | None, wait_ms: int, epoch_ns: int) -> list[bytes]:
    """Of each packet that has come, at most `room` of them, its blocks. Takes a while: not for the event loop."""
    packets = tap.take(_BATCH, wait_ms)
    return [captured.blocks(table, packet, epoch_ns) for table, packet in packets[:room]]


def filter_of(wanted: Request) -> Filter:
    """ValueError, with the key, where a value is out of range."""
    for key, least, most in (
        ("limit", 1, 2**63),
        ("seconds", 0, 2**31),
        ("sample", 1, 2**32 - 1),
        ("snaplen", MIN_SNAP_BYTES, MAX_SNAP_BYTES),
    ):
        value = getattr(wanted, key)
        if value is not None and not least <= value <= most:
            raise ValueError(f"{key} is {value}; must be {least} to {most}")
    return Filter(wanted.table, client_of(wanted.client), wanted.sample, wanted.snaplen)


def client_of(text: str | None) -> IPv4Network | IPv6Network | None:
    """ValueError where it is none. A zone (`fe80::1%eth0`) means nothing here: links are not told apart."""
    try:
        if text is not None and "%" in text:
            raise ValueError("it has a zone")
        return None if text is None else ipaddress.ip_network(text)
    except ValueError as error:
        raise ValueError(f"client is {text}; must be an address or a prefix ({error})") from error


def peer_of(request: web.Request) -> str | None:
    """The client's address; None: it came by a unix socket."""
    peer = request.transport.get_extra_info("peername") if request.transport is not None else None
    return str(peer[0]) if isinstance(peer, tuple) else None


def is_local(request: web.Request) -> bool:
    """Whether the client is on this host."""
    peer = peer_of(request)
    own = request.transport.get_extra_info("sockname") if request.transport is not None else None
    return peer is None or admin.is_loopback(peer) or (isinstance(own, tuple) and own[0] == peer)


def give_up_soon(request: web.Request) -> None:
    """A client whose host is gone is noticed after seconds, not after a quarter of an hour."""
    found = request.transport.get_extra_info("socket") if request.transport is not None else None
    with contextlib.suppress(OSError):
        if found is not None and found.family != socket.AF_UNIX:
            found.setsockopt(socket.IPPROTO_TCP, _TCP_USER_TIMEOUT, int(_STUCK_S * 1000))
