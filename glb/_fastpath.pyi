from array import array
from collections.abc import Sequence
from typing import Any, Final

from glb.table.binds import Prefix

DROP_REASONS: Final[tuple[str, ...]]
VERDICTS: Final[tuple[str, ...]]

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
    ) -> None: ...
    def set_next_hop(self, address: bytes, mac: bytes | None, mtu_bytes: int = 0xFFFF) -> None: ...
    @property
    def binds_block(self) -> bytes: ...
    def table_rows(self, table: int) -> bytes: ...
    def new_counters(self) -> CounterBlock: ...
    def counts(self) -> dict[str, dict[Any, Any]]: ...
    def encapsulate(self, frames: list[bytes], counters: CounterBlock) -> list[tuple[str, bytes | None]]: ...
    def measure_ns(self, frames: list[bytes], rounds: int) -> float: ...
