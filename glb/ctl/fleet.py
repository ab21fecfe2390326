"""Asks directors and agents for their status over their admin endpoints: HTTP on a port, or on a unix socket."""

from __future__ import annotations

import http.client
import ipaddress
import json
import socket
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import click

from glb.errors import GlbError

if TYPE_CHECKING:
    from glb.table.fields import Address

ASK_TIMEOUT_S = 3.0
_MAX_REPLY_BYTES = 64 << 20  # thousands of backends take a few MB
_MAX_ASKED_AT_ONCE = 16

_Command = TypeVar("_Command", bound=Callable[..., Any])


class UnreachableError(GlbError):
    """An admin endpoint gave no answer, or none that makes sense."""


@dataclass(frozen=True, slots=True)
class DirectorBackend:
    address: Address
    state: str
    healthy: bool | None


@dataclass(frozen=True, slots=True)
class DirectorTable:
    name: str
    digest: str
    backends: tuple[DirectorBackend, ...]


@dataclass(frozen=True, slots=True)
class DirectorStatus:
    version: str
    xdp_mode: str
    tables: tuple[DirectorTable, ...]
    reload_error: str | None  # of the last reload, if it failed
    table_version: str | None  # of the store's content that it forwards by; older directors do not say

    def digest_of(self, table: str) -> str | None:
        return next((entry.digest for entry in self.tables if entry.name == table), None)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An admin endpoint by its URL, and for an agent its proxy's address."""

    url: str
    address: Address | None = None


LOCAL_DIRECTOR = Endpoint("http://127.0.0.1:9523")  # the default of `admin` in director.toml


# ---- options


class _EndpointParam(click.ParamType[Endpoint]):
    """``http://host:port``, ``host:port`` or ``unix:/path``; of an agent also ``ADDRESS=URL``."""

    name = "url"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> Endpoint:
        if isinstance(value, Endpoint):
            return value
        head, equals, url = str(value).partition("=")
        if not equals:
            return Endpoint(self._checked(head, param, ctx))
        try:
            return Endpoint(self._checked(url, param, ctx), ipaddress.ip_address(head))
        except ValueError:
            self.fail(f"{head!r} is no address; an agent is given as ADDRESS=URL", param, ctx)

    def split_envvar_value(self, rv: str) -> list[str]:
        return [part.strip() for part in rv.split(",") if part.strip()]

    def _checked(self, url: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if "://" not in url and not url.startswith("unix:"):
            url = f"http://{url}"
        try:
            parts = urlsplit(url)
            usable = parts.path if parts.scheme == "unix" else parts.scheme == "http" and parts.hostname and parts.port
        except ValueError:
            usable = False
        if not usable:
            self.fail(f"{url!r} is none of http://host:port, host:port, unix:/path", param, ctx)
        return url


def agent_option(command: _Command) -> _Command:
    """The option --agent, as the parameter `agents`."""
    option = click.option(
        "--agent",
        "agents",
        type=_EndpointParam(),
        multiple=True,
        envvar="GLB_AGENTS",
        help="A proxy's agent, as ADDRESS=URL; repeatable.  [env: GLB_AGENTS, separated by commas]",
    )
    return option(command)


def director_option(command: _Command) -> _Command:
    """The option --director, as the parameter `directors`."""
    option = click.option(
        "--director",
        "directors",
        type=_EndpointParam(),
        multiple=True,
        envvar="GLB_DIRECTORS",
        help="A director's admin URL; repeatable.  [env: GLB_DIRECTORS, separated by commas]",
    )
    return option(command)


# ---- asking


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


@contextmanager
def request(
    url: str, path: str, *, timeout_s: float = ASK_TIMEOUT_S, body: object = None
) -> Iterator[http.client.HTTPResponse]:
    """GET a path, or POST `body` as JSON to it: the reply. UnreachableError with the reason, also while it is read."""
    parts = urlsplit(url)
    connection: http.client.HTTPConnection
    if parts.scheme == "unix":
        connection = _UnixConnection(parts.path, timeout_s)
    else:
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=timeout_s)
    target = path if parts.scheme == "unix" else parts.path.rstrip("/") + path
    try:
        if body is None:
            connection.request("GET", target)
        else:
            connection.request("POST", target, json.dumps(body), {"Content-Type": "application/json"})
        yield connection.getresponse()
    except TimeoutError:
        raise UnreachableError(f"{url}: no answer within {timeout_s:g} s") from None
    except OSError as error:
        raise UnreachableError(f"{url}: {error.strerror or error}") from error
    except http.client.HTTPException as error:
        raise UnreachableError(f"{url}: answers no HTTP ({error!r})") from error
    finally:
        connection.close()


def ask(url: str, path: str = "/status") -> dict[str, Any]:
    """GET a JSON object. UnreachableError with the reason."""
    with request(url, path) as reply:
        body = reply.read(_MAX_REPLY_BYTES)
    if reply.status != http.HTTPStatus.OK:
        raise UnreachableError(f"{url}: answers {reply.status} {reply.reason}")
    try:
        value = json.loads(body)
    except ValueError:
        raise UnreachableError(f"{url}: answers something that is no JSON") from None
    if not isinstance(value, dict):
        raise UnreachableError(f"{url}: answers JSON that is no object")
    return value


def ask_director(endpoint: Endpoint) -> DirectorStatus:
    """A director's status. UnreachableError with the reason."""
    value = ask(endpoint.url)
    try:
        last_reload = value.get("last_reload") or {}
        return DirectorStatus(
            version=str(value["version"]),
            xdp_mode=str(value.get("xdp_mode", "")),
            tables=tuple(
                DirectorTable(
                    str(entry["name"]),
                    str(entry["digest"]),
                    tuple(
                        DirectorBackend(
                            ipaddress.ip_address(backend["address"]), str(backend["state"]), backend.get("healthy")
                        )
                        for backend in entry.get("backends", ())
                    ),
                )
                for entry in value["tables"]
            ),
            reload_error=None if last_reload.get("ok", True) else str(last_reload.get("error")),
            table_version=None if value.get("table_version") is None else str(value["table_version"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UnreachableError(f"{endpoint.url}: is no director ({error!r} in its status)") from error


def ask_agent(endpoint: Endpoint) -> int:
    """How many flows a proxy's agent counts. UnreachableError with the reason."""
    value = ask(endpoint.url)
    flows = value.get("flows_total")
    if not isinstance(flows, int):
        raise UnreachableError(f"{endpoint.url}: is no agent (no flows_total in its status)")
    return flows


_Answer = TypeVar("_Answer")


def ask_all(endpoints: Sequence[Endpoint], question: Callable[[Endpoint], _Answer]) -> list[_Answer | UnreachableError]:
    """One question to many at once; the answers, or why there is none, in their order."""

    def answer(endpoint: Endpoint) -> _Answer | UnreachableError:
        try:
            return question(endpoint)
        except UnreachableError as error:
            return error

    with ThreadPoolExecutor(_MAX_ASKED_AT_ONCE) as pool:
        return list(pool.map(answer, endpoints))
