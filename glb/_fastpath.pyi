from array import array
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

from glb.table.binds import Prefix

DROP_REASONS: Final[tuple[str, ...]]
TABLE_DROP_REASONS: Final[tuple[str, ...]]
VERDICTS: Final[tuple[str, ...]]

class Memory(Protocol):
    """What a Forwarding fills; `address` is where it starts in this process. Need not be zeroed."""

    @property
    def address(self) -> int: ...

class CounterBlock:
    def __init__(self, owner: Forwarding) -> None: ...

class Forwarding:
    def __init__(
        self,
        tables: Sequence[tuple[str, bytes, array[int] | memoryview, int, Sequence[bytes], bool]],
        prefixes: Sequence[Prefix],
        *,
        source_ip: bytes,
        hash_fields: int = 1,
        alt_hash_fields: int = 0,
        forward_echo: bool = True,
        source_mac: bytes | None = None,
        answers_per_s: int | None = None,
        memory: Callable[..., Memory] | None = None,
        bank: int = 0,
    ) -> None: ...
    bank: int
    generation_memory: Any
    rows_memory: Any
    def set_next_hop(
        self, address: bytes, mac: bytes | None, mtu_bytes: int = 0xFFFF, egress: tuple[int, bytes, bool] | None = None
    ) -> None: ...
    def options(self, *, accelerate: bool, ifindex: int) -> bytes: ...
    def counter_index(self) -> list[tuple[str, str]]: ...
    def use_slots(self, slots: Sequence[int]) -> None: ...
    def table_rows(self, table: int) -> bytes: ...
    def new_counters(self) -> CounterBlock: ...
    def counts(self) -> dict[str, dict[Any, Any]]: ...
    def encapsulate(
        self, frames: list[bytes], counters: CounterBlock, *, engine: str = ...
    ) -> list[tuple[str, bytes | None]]: ...
    def measure_ns(self, frames: list[bytes], rounds: int, *, engine: str = ...) -> float: ...
