"""Rendezvous hashing: the order of backends per row, and the rows that a row rule makes of it (docs/protocol/table.md).

Read from the top: hash one row, select its best candidates, derive its hops; then the loops over all rows. A hash
here is the *rank* of a backend in a row: its 8 SipHash output bytes read as a big-endian number; the smallest is first.
"""

from cpython cimport array
from libc.stdint cimport uint16_t, uint32_t, uint64_t, uint8_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

import array

from _siphash cimport SipKey, _round, sip_key, siphash24 as _siphash24

# How a row rule sees one backend: the byte that `derive` takes per backend. glb/table/rows.py fills them in.
cdef enum:
    SKIPPED = 0x01         # takes no part (state inactive)
    USABLE = 0x02          # may be a primary under first_usable
    LIVE = 0x04            # healthy though not usable (draining): its flows surely live
    GLB_BAD = 0x08         # a primary that GLB would exchange: draining, or not healthy
    GLB_PROMOTED = 0x10    # a secondary that GLB would exchange for it: state active
    NEW = 0x20             # filling: those after it may hold flows of its rows

KIND_SKIPPED = SKIPPED
KIND_USABLE = USABLE
KIND_LIVE = LIVE
KIND_GLB_BAD = GLB_BAD
KIND_GLB_PROMOTED = GLB_PROMOTED
KIND_NEW = NEW

cdef enum:
    MAX_HOPS = 4
    NONE = 0xFFFF          # no backend: an unused entry of a row

NO_BACKEND = NONE


cdef extern from *:
    """
    #if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
    #error "glb/_siphash.pxd reads words little-endian"
    #endif
    """
    uint64_t __builtin_bswap64(uint64_t) nogil


cdef struct Addresses:
    Py_ssize_t count
    uint64_t* low      # first 8 address bytes, little-endian; of an IPv4 address only 4, the rest zero
    uint64_t* high     # last 8 bytes of an IPv6 address
    uint8_t* length    # 4 or 16
    bint only_ipv4


# ---- one row

cdef inline uint64_t row_seed_of(SipKey seed, uint32_t row) noexcept nogil:
    """SipHash of the row number as 4 big-endian bytes, as the number whose little-endian bytes are the output."""
    cdef uint8_t message[4]
    message[0] = <uint8_t>(row >> 24)
    message[1] = <uint8_t>(row >> 16)
    message[2] = <uint8_t>(row >> 8)
    message[3] = <uint8_t>row
    return _siphash24(seed, message, 4)


cdef void rank_row(SipKey seed, uint64_t row_seed, const Addresses* addresses, uint64_t* ranks) noexcept nogil:
    """The rank of every backend in one row. The one hot leaf: replace it to vectorise.

    All messages of a row begin with the same 8 bytes (the row's seed), so that block is compressed once per row.
    """
    cdef uint64_t s0 = seed.k0 ^ <uint64_t>0x736f6d6570736575
    cdef uint64_t s1 = seed.k1 ^ <uint64_t>0x646f72616e646f6d
    cdef uint64_t s2 = seed.k0 ^ <uint64_t>0x6c7967656e657261
    cdef uint64_t s3 = seed.k1 ^ <uint64_t>0x7465646279746573 ^ row_seed
    cdef uint64_t v0, v1, v2, v3, word
    cdef Py_ssize_t i
    _round(&s0, &s1, &s2, &s3)
    _round(&s0, &s1, &s2, &s3)
    s0 ^= row_seed
    for i in range(addresses.count):
        v0 = s0
        v1 = s1
        v2 = s2
        v3 = s3
        if not addresses.only_ipv4 and addresses.length[i] == 16:
            word = addresses.low[i]
            v3 ^= word
            _round(&v0, &v1, &v2, &v3)
            _round(&v0, &v1, &v2, &v3)
            v0 ^= word
            word = addresses.high[i]
            v3 ^= word
            _round(&v0, &v1, &v2, &v3)
            _round(&v0, &v1, &v2, &v3)
            v0 ^= word
            word = <uint64_t>24 << 56
        else:
            word = addresses.low[i] | <uint64_t>12 << 56
        v3 ^= word
        _round(&v0, &v1, &v2, &v3)
        _round(&v0, &v1, &v2, &v3)
        v0 ^= word
        v2 ^= 0xff
        _round(&v0, &v1, &v2, &v3)
        _round(&v0, &v1, &v2, &v3)
        _round(&v0, &v1, &v2, &v3)
        _round(&v0, &v1, &v2, &v3)
        ranks[i] = __builtin_bswap64(v0 ^ v1 ^ v2 ^ v3)


cdef void select_best(
    const uint64_t* ranks, Py_ssize_t count, uint16_t* best, uint64_t* best_ranks, Py_ssize_t keep
) noexcept nogil:
    """The `keep` (<= count) lowest ranks in order, by insertion; a tie keeps the lower index first."""
    cdef Py_ssize_t i, at, filled = 0
    cdef uint64_t rank
    for i in range(count):
        rank = ranks[i]
        if filled == keep:
            if rank >= best_ranks[keep - 1]:
                continue
            at = keep - 1
        else:
            at = filled
            filled += 1
        while at > 0 and best_ranks[at - 1] > rank:
            best_ranks[at] = best_ranks[at - 1]
            best[at] = best[at - 1]
            at -= 1
        best_ranks[at] = rank
        best[at] = <uint16_t>i


cdef bint first_usable_row(
    const uint16_t* order, Py_ssize_t known, const uint8_t* kinds, bint any_usable, Py_ssize_t hops, uint16_t* row
) noexcept nogil:
    """Hops by first_usable from the first `known` backends of the order; False: more of the order is needed."""
    cdef Py_ssize_t i, at, primary = -1, filled = 0
    cdef int group
    cdef uint8_t kind
    for i in range(known):
        kind = kinds[order[i]]
        if not kind & SKIPPED and (kind & USABLE or not any_usable):  # none usable: fail open
            primary = i
            break
    if primary < 0:
        return False
    row[0] = order[primary]
    filled = 1
    for group in range(2):  # before the primary: first the draining and healthy, then the unhealthy
        for i in range(primary):
            if filled == hops:
                return True
            kind = kinds[order[i]]
            if not kind & SKIPPED and (kind & LIVE == 0) == (group == 1):
                row[filled] = order[i]
                filled += 1
    at = primary + 1
    while filled < hops:
        if at == known:
            return False
        if not kinds[order[at]] & SKIPPED:
            row[filled] = order[at]
            filled += 1
        at += 1
    return True


cdef bint glb2_row(
    const uint16_t* order, Py_ssize_t known, const uint8_t* kinds, Py_ssize_t hops, uint16_t* row
) noexcept nogil:
    """Hops (at most two) exactly as GLB's builder makes them; False: more of the order is needed."""
    cdef Py_ssize_t i, filled = 0
    for i in range(known):
        if filled == hops:
            break
        if not kinds[order[i]] & SKIPPED:
            row[filled] = order[i]
            filled += 1
    if filled < hops:
        return False
    if hops == 2 and kinds[row[0]] & GLB_BAD and kinds[row[1]] & GLB_PROMOTED:
        row[0], row[1] = row[1], row[0]
    return True


cdef bint owners_row(
    const uint16_t* order,
    Py_ssize_t known,
    const uint8_t* kinds,
    const uint16_t* row,
    Py_ssize_t stride,
    uint16_t* owners,
) noexcept nogil:
    """Those hops of a row that may hold its flows, as far as states tell; False: more of the order is needed.

    The primary does; so do draining backends before it in the order, which it displaced, and those that a filling
    primary displaced: the usable ones after it, up to the first that is not filling itself.
    """
    cdef Py_ssize_t i, at
    cdef bint displaced
    for i in range(stride):
        owners[i] = NONE
    owners[0] = row[0]
    if row[0] == NONE:
        return True
    displaced = kinds[row[0]] & NEW != 0
    for i in range(1, stride):
        if row[i] == NONE:
            break
        if kinds[row[i]] & USABLE:
            if displaced:
                owners[i] = row[i]
                displaced = kinds[row[i]] & NEW != 0
        elif kinds[row[i]] & LIVE:
            at = 0
            while at < known and order[at] != row[i] and order[at] != row[0]:
                at += 1
            if at == known:
                return False
            if order[at] == row[i]:
                owners[i] = row[i]
    return True


# ---- entry points

cdef class _Backends:
    """The addresses as the hash takes them, and scratch space for one row."""

    cdef Addresses addresses
    cdef uint64_t* ranks
    cdef uint64_t* best_ranks
    cdef uint16_t* best

    def __cinit__(self, list addresses):
        cdef Py_ssize_t count = len(addresses), i
        cdef bytes address
        if not 0 < count < NONE:
            raise ValueError(f"{count} addresses; 1 to {NONE - 1} can be ordered")
        self.addresses.count = count
        self.addresses.only_ipv4 = True
        self.addresses.low = <uint64_t*>malloc(count * sizeof(uint64_t))
        self.addresses.high = <uint64_t*>malloc(count * sizeof(uint64_t))
        self.addresses.length = <uint8_t*>malloc(count)
        self.ranks = <uint64_t*>malloc(count * sizeof(uint64_t))
        self.best_ranks = <uint64_t*>malloc(count * sizeof(uint64_t))
        self.best = <uint16_t*>malloc(count * sizeof(uint16_t))
        if not (self.addresses.low and self.addresses.high and self.addresses.length):
            raise MemoryError
        if not (self.ranks and self.best_ranks and self.best):
            raise MemoryError
        for i in range(count):
            address = addresses[i]
            if len(address) not in (4, 16):
                raise ValueError(f"an address of {len(address)} bytes; it must have 4 or 16")
            self.addresses.length[i] = <uint8_t>len(address)
            self.addresses.low[i] = 0
            self.addresses.high[i] = 0
            if len(address) == 4:
                memcpy(&self.addresses.low[i], <const uint8_t*>address, 4)
            else:
                self.addresses.only_ipv4 = False
                memcpy(&self.addresses.low[i], <const uint8_t*>address, 8)
                memcpy(&self.addresses.high[i], <const uint8_t*>address + 8, 8)

    def __dealloc__(self):
        free(self.addresses.low)
        free(self.addresses.high)
        free(self.addresses.length)
        free(self.ranks)
        free(self.best_ranks)
        free(self.best)

    cdef void order_row(self, SipKey seed, uint32_t row, Py_ssize_t keep) noexcept nogil:
        """Fill `best` with the first `keep` backends of the row's order."""
        rank_row(seed, row_seed_of(seed, row), &self.addresses, self.ranks)
        select_best(self.ranks, self.addresses.count, self.best, self.best_ranks, keep)


cdef SipKey _key(bytes key) except *:
    if len(key) != 16:
        raise ValueError(f"a key of {len(key)} bytes; SipHash takes 16")
    return sip_key(<const uint8_t*>key)


def siphash24(bytes key, bytes message):
    """SipHash-2-4 of at most 255 bytes under 16 key bytes, as the algorithm's standard (little-endian) number."""
    if len(message) > 255:
        raise ValueError(f"a message of {len(message)} bytes; at most 255")
    return _siphash24(_key(key), <const uint8_t*>message, len(message))


def row_order(bytes seed, list addresses, row):
    """One row in full -> (row seed as its 8 output bytes, rank per backend, backend indexes in order).

    A rank is the backend's 8 hash bytes as a big-endian number.
    """
    cdef SipKey key = _key(seed)
    cdef _Backends backends = _Backends(addresses)
    cdef Py_ssize_t i, count = backends.addresses.count
    cdef uint64_t row_seed = row_seed_of(key, row)
    backends.order_row(key, row, count)
    return (
        (<uint64_t>row_seed).to_bytes(8, "little"),
        [backends.ranks[i] for i in range(count)],
        [backends.best[i] for i in range(count)],
    )


def candidates(bytes seed, list addresses, Py_ssize_t n_rows, Py_ssize_t keep):
    """The first `keep` backend indexes of every row's order -> array('H') of n_rows * keep, row by row.

    seed: 16 bytes; addresses: 4 or 16 bytes each, in the table's order; keep: at most len(addresses).
    """
    cdef SipKey key = _key(seed)
    cdef _Backends backends = _Backends(addresses)
    cdef array.array result
    cdef uint16_t* at
    cdef Py_ssize_t row
    if not 0 < keep <= backends.addresses.count:
        raise ValueError(f"keep {keep} of {backends.addresses.count} backends")
    if not 0 < n_rows <= 1 << 20:
        raise ValueError(f"{n_rows} rows; 1 to {1 << 20}")
    result = array.clone(array.array("H"), n_rows * keep, False)
    at = result.data.as_ushorts
    with nogil:
        for row in range(n_rows):
            backends.order_row(key, <uint32_t>row, keep)
            memcpy(at + row * keep, backends.best, keep * sizeof(uint16_t))
    return result


def derive(
    bytes seed,
    list addresses,
    array.array order,
    Py_ssize_t keep,
    bytes kinds,
    Py_ssize_t hops,
    Py_ssize_t stride,
    bint glb2,
):
    """The rows that a row rule makes of a cached order -> array('H') of rows * stride, unused entries NO_BACKEND.

    order: what `candidates` gave for the same seed and addresses with this `keep`; kinds: one byte of KIND_ flags per
    backend; hops: entries used per row, at most the number of backends that are not KIND_SKIPPED. A row whose hops lie
    deeper than `keep` gets its whole order computed anew.
    """
    cdef SipKey key = _key(seed)
    cdef _Backends backends = _Backends(addresses)
    cdef Py_ssize_t count = backends.addresses.count, n_rows, row, i, present = 0
    cdef const uint8_t* kind = <const uint8_t*>kinds
    cdef const uint16_t* known = order.data.as_ushorts
    cdef uint16_t* at
    cdef bint any_usable = False, found
    cdef array.array result
    if len(kinds) != count:
        raise ValueError(f"{len(kinds)} kinds for {count} backends")
    if order.itemsize != 2 or not 0 < keep <= count or len(order) % keep:
        raise ValueError("the order does not fit the backends")
    for i in range(count):
        present += not kind[i] & SKIPPED
        any_usable |= (kind[i] & (USABLE | SKIPPED)) == USABLE
    if not 0 <= hops <= min(stride, present, MAX_HOPS, 2 if glb2 else MAX_HOPS):
        raise ValueError(f"{hops} hops of {present} backends, {stride} entries a row")
    n_rows = len(order) // keep
    result = array.clone(array.array("H"), n_rows * stride, False)
    at = result.data.as_ushorts
    memset(at, 0xff, n_rows * stride * sizeof(uint16_t))
    if hops == 0:
        return result
    with nogil:
        for row in range(n_rows):
            if glb2:
                found = glb2_row(known, keep, kind, hops, at)
            else:
                found = first_usable_row(known, keep, kind, any_usable, hops, at)
            if not found:
                backends.order_row(key, <uint32_t>row, count)
                if glb2:
                    glb2_row(backends.best, count, kind, hops, at)
                else:
                    first_usable_row(backends.best, count, kind, any_usable, hops, at)
            known += keep
            at += stride
    return result


def owners(
    bytes seed,
    list addresses,
    array.array order,
    Py_ssize_t keep,
    bytes kinds,
    array.array indexes,
    Py_ssize_t stride,
):
    """Derived rows, all but the hops that may hold flows of their row replaced by NO_BACKEND -> array('H').

    The first five as `derive` takes them; indexes: what it gave.
    """
    cdef SipKey key = _key(seed)
    cdef _Backends backends = _Backends(addresses)
    cdef Py_ssize_t count = backends.addresses.count, n_rows, row
    cdef const uint8_t* kind = <const uint8_t*>kinds
    cdef const uint16_t* known = order.data.as_ushorts
    cdef const uint16_t* hops = indexes.data.as_ushorts
    cdef uint16_t* at
    cdef array.array result
    if len(kinds) != count:
        raise ValueError(f"{len(kinds)} kinds for {count} backends")
    if order.itemsize != 2 or not 0 < keep <= count or len(order) % keep:
        raise ValueError("the order does not fit the backends")
    n_rows = len(order) // keep
    if indexes.itemsize != 2 or stride < 1 or len(indexes) != n_rows * stride:
        raise ValueError("the rows do not fit the order")
    if any(index != NONE and index >= count for index in set(indexes)):
        raise ValueError("the rows do not fit the backends")
    result = array.clone(array.array("H"), n_rows * stride, False)
    at = result.data.as_ushorts
    with nogil:
        for row in range(n_rows):
            if not owners_row(known, keep, kind, hops, stride, at):
                backends.order_row(key, <uint32_t>row, count)
                owners_row(backends.best, count, kind, hops, stride, at)
            known += keep
            hops += stride
            at += stride
    return result
