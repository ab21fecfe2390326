from array import array

KIND_SKIPPED: int
KIND_USABLE: int
KIND_LIVE: int
KIND_GLB_BAD: int
KIND_GLB_PROMOTED: int
KIND_NEW: int
NO_BACKEND: int

def siphash24(key: bytes, message: bytes) -> int: ...
def row_order(seed: bytes, addresses: list[bytes], row: int) -> tuple[bytes, list[int], list[int]]: ...
def candidates(seed: bytes, addresses: list[bytes], n_rows: int, keep: int) -> array[int]: ...
def derive(
    seed: bytes,
    addresses: list[bytes],
    order: array[int],
    keep: int,
    kinds: bytes,
    hops: int,
    stride: int,
    glb2: bool,
) -> array[int]: ...
def owners(
    seed: bytes,
    addresses: list[bytes],
    order: array[int],
    keep: int,
    kinds: bytes,
    indexes: array[int],
    stride: int,
) -> array[int]: ...
