from array import array

KIND_SKIPPED: int
KIND_USABLE: int
KIND_LIVE: int
KIND_GLB_BAD: int
KIND_GLB_PROMOTED: int
KIND_NEW: int
NO_BACKEND: int
MAX_KEPT: int
ENGINES: tuple[str, ...]
ENGINE: str

def siphash24(key: bytes, message: bytes) -> int: ...
def score(rank: int, weight: int) -> int: ...

class Order:
    def __init__(
        self,
        seed: bytes,
        addresses: list[bytes],
        n_rows: int,
        keep: int,
        *,
        weights: bytes | list[int] | None = None,
        engine: str = ...,
    ) -> None: ...
    @property
    def n_rows(self) -> int: ...
    @property
    def keep(self) -> int: ...
    @property
    def heads(self) -> array[int]: ...
    @property
    def weights(self) -> bytes: ...
    @property
    def weighted(self) -> bool: ...
    @property
    def engine_name(self) -> str: ...
    def reweighed(self, weights: bytes | list[int] | None, *, at_most: int = 1) -> Order | None: ...
    def with_backends(self, addresses: list[bytes], *, at_most: int = 1) -> Order | None: ...
    def row(self, row: int) -> tuple[bytes, list[int], list[int]]: ...
    def derive(
        self, kinds: bytes, hops: int, stride: int, glb2: bool, zones: array[int] | None = None
    ) -> array[int]: ...
