"""The shape of a director's /status."""

from __future__ import annotations

import msgspec


class BackendStatus(msgspec.Struct, frozen=True):
    address: str
    state: str
    healthy: bool | None
    # Tunnel packets with it as first hop: the kernel's since its maps were made, the workers' since the start.
    packets: int
    interface: str | None  # that they leave by
    fault: str | None  # why it cannot be reached from here


class TableStatus(msgspec.Struct, frozen=True):
    name: str
    digest: str  # of what is forwarded by, read back
    backends: list[BackendStatus]


class QueueStatus(msgspec.Struct, frozen=True):
    queue: int
    zero_copy: bool
    busy_poll: bool
    cores: list[int] | None  # where its worker may run; None: anywhere
    packets: int  # frames that its worker took


class ReloadStatus(msgspec.Struct, frozen=True):
    ok: bool
    error: str | None
    at: float  # seconds since the epoch


class Status(msgspec.Struct, frozen=True):
    version: str
    pid: int
    interface: str
    engine: str  # accelerated: common packets are encapsulated in the kernel; cython: all in user space
    accelerated_packets: int
    xdp_mode: str
    zero_copy: bool  # every queue
    queues: list[QueueStatus]
    capture: str | None  # what is captured, and for whom
    table_source: str
    table_version: str | None  # of the store's content that is forwarded by
    tables: list[TableStatus]
    last_reload: ReloadStatus
