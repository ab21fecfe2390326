"""Types of _verdict.pyx for the rest of the agent."""

import threading
from collections.abc import Callable, Iterable, Sequence
from ipaddress import IPv4Network, IPv6Network
from typing import Final

from proxy_agent.decide import Decision

Network = IPv4Network | IPv6Network
SocketTable = Callable[[int, bytes, int, bytes, int], str]

STATES: Final[dict[str, int]]
DEFAULT_REMEMBER_MS: Final[int]

class Settings:
    vips: tuple[Network, ...]
    def __init__(
        self,
        vips: Iterable[Network | str],
        allowed_sources: Iterable[Network | str] | None = None,
        own_addresses: Iterable[Network | str] = (),
    ) -> None: ...

class Recollection:
    def __init__(self, n_sets: int = 64, n_slots: int = 1024) -> None: ...

class Sockets:
    def __init__(self, ifindex: int) -> None: ...
    def __call__(self, family: int, local: bytes, local_port: int, remote: bytes, remote_port: int) -> str: ...

def valid_cookies(program_fd: int, ifindex: int, questions: Sequence[bytes]) -> list[bool]: ...
def decide(
    packet: bytes,
    settings: Settings,
    sockets: SocketTable | None = None,
    *,
    recollection: Recollection | None = None,
    cookies_in_use: bool = False,
    answers_cookie: Callable[[bytes], bool] | None = None,
    now_ms: int = 1,
    remember_ms: int = 0,
) -> Decision: ...

class Engine:
    queue_num: int
    def __init__(
        self,
        queue_num: int,
        ifindex: int,
        settings: Settings,
        tun_fd: int = -1,
        *,
        remember_ms: int = ...,
        batch: int = ...,
        accept_all: bool = False,
        cookie_program: int = -1,
    ) -> None: ...
    def open(self) -> None: ...
    def run(self) -> None: ...
    def replace(self, settings: Settings) -> threading.Event: ...
    def stop(self) -> None: ...
    def close(self) -> None: ...
    def counters(self) -> dict[str, int]: ...
    def bounced_by_hop(self) -> dict[int, int]: ...
    def last_source(self, reason: str) -> str | None: ...
    def internals(self) -> dict[str, int]: ...
