"""The admin endpoint of director and agent, on loopback or a unix socket unless told otherwise. GET changes nothing."""

from __future__ import annotations

import inspect
import ipaddress
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType

import msgspec
from aiohttp import web

from glb.errors import DeviceError
from glb.version import __version__

log = logging.getLogger(__name__)

Answer = Callable[[], object]  # -> bytes (text as it is), or what msgspec can put into JSON; or an awaitable of either
Post = Callable[[web.Request], Awaitable[web.StreamResponse]]


class NotReady(Exception):
    """What /readyz raises while the program is not doing its work; the text says why."""


def make_app(
    title: str, pages: Mapping[str, tuple[str, Answer]], posts: Mapping[str, tuple[str, Post]] = MappingProxyType({})
) -> web.Application:
    """An application with one GET page per path, and what is POSTed to; both map path to (what it is, its content)."""
    app = web.Application()
    index = "".join(f"{path:12} {text}\n" for path, (text, _) in pages.items())
    index += "".join(f"{path:12} POST: {text}\n" for path, (text, _) in posts.items())

    async def root(_: web.Request) -> web.Response:
        return web.Response(text=f"{title} {__version__}\n\n{index}")

    app.router.add_get("/", root)
    for path, (_, answer) in pages.items():
        app.router.add_get(path, _page(answer))
    for path, (_, post) in posts.items():
        app.router.add_post(path, post)
    return app


def _page(answer: Answer) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def handle(_: web.Request) -> web.Response:
        try:
            content = answer()
            if inspect.isawaitable(content):
                content = await content
        except NotReady as reason:
            return web.Response(status=503, text=f"{reason}\n")
        if isinstance(content, bytes):
            return web.Response(body=content, headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})
        return web.Response(body=msgspec.json.encode(content), content_type="application/json")

    return handle


async def serve(app: web.Application, admin: str) -> web.AppRunner:
    """Listen on `host:port` or `unix:/path`; DeviceError if that cannot be had. `cleanup` of the result ends it."""
    runner = web.AppRunner(app, access_log=None, handle_signals=False)
    await runner.setup()
    site: web.BaseSite
    if admin.startswith("unix:"):
        path = admin.removeprefix("unix:")
        _remove_dead_socket(path)
        site = web.UnixSite(runner, path)
    else:
        host, _, port = admin.rpartition(":")
        host = host.strip("[]")
        if not is_loopback(host):
            log.warning("the admin endpoint is open to everyone who reaches %s: it shows states and counters", admin)
        site = web.TCPSite(runner, host, int(port))
    try:
        await site.start()
    except OSError as error:
        await runner.cleanup()
        raise DeviceError(f"admin = {admin}: {os.strerror(error.errno or 0)}; is another one running?") from error
    return runner


def _remove_dead_socket(path: str) -> None:
    """Make way, unless somebody listens there: binding will then say so."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
        except OSError:
            return


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
