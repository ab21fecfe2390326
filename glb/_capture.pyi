from collections.abc import Callable
from ipaddress import IPv4Network, IPv6Network
from typing import Any, Final, NamedTuple

from glb._fastpath import CounterBlock, Forwarding, Memory

ANY_TABLE: Final[int]
ENGINES: Final[tuple[str, ...]]
LOST_NO_SOCKET: Final[str]
MIN_SNAP_BYTES: Final[int]
MAX_SNAP_BYTES: Final[int]

class Captured(NamedTuple):
    at_ns: int  # CLOCK_MONOTONIC
    verdict: str  # of glb._fastpath.VERDICTS, or LOST_NO_SOCKET
    engine: str
    bank: int  # of the generation whose table it is
    table: int | None  # index; None: dropped, lost or given to the host before it had one
    row: int
    hash: int
    received: bytes
    received_bytes: int
    sent: bytes | None
    sent_bytes: int

class Wanted:
    memory: Any
    def __init__(
        self,
        memory: Callable[..., Memory],
        *,
        client: IPv4Network | IPv6Network | None = None,
        sample: int = 1,
        snap_bytes: int = 2048,
    ) -> None: ...
    def want_table(self, bank: int, index: int | None) -> None: ...
    def want_until(self, at_ns: int) -> None: ...
    @property
    def missed(self) -> int: ...

class WorkerTap:
    def __init__(self, wanted: Wanted) -> None: ...
    @property
    def address(self) -> int: ...
    @property
    def missed(self) -> int: ...
    def take(self, at_most: int) -> list[Captured]: ...
    def encapsulate(self, forwarding: Forwarding, counters: CounterBlock, frames: list[bytes]) -> None: ...

class KernelTap:
    def __init__(self, map_fd: int) -> None: ...
    def take(self, at_most: int, wait_ms: int) -> list[Captured]: ...
