"""Longer heads of those rows whose short ones did not suffice: in a table of which half is out, a row in seven."""

from libc.stdint cimport uint16_t, uint32_t
from libc.stdlib cimport calloc, realloc
from libc.string cimport memcpy

cdef enum:
    DEEP = 64               # backends of an order that are kept; nearly every row finds its hops among so many
    MAX_DEEP_ROWS = 65536   # 8 MiB; the others are ordered anew each time


cdef struct Deep:
    uint32_t* places        # per row: 1 + its place in `orders`, 0: none; NULL until there is one
    uint16_t* orders        # DEEP entries each
    uint32_t filled
    uint32_t room


cdef inline const uint16_t* deep_order(const Deep* deep, uint32_t row) noexcept nogil:
    """The first DEEP backends of a row's order (or all, where there are fewer), or NULL."""
    if deep.places == NULL or not deep.places[row]:
        return NULL
    return deep.orders + <size_t>(deep.places[row] - 1) * DEEP


cdef inline void keep_deep(Deep* deep, uint32_t n_rows, uint32_t row, const uint16_t* order, size_t count) noexcept nogil:
    """Remember one; without memory for it, do without."""
    cdef uint16_t* grown
    if deep.places == NULL:
        deep.places = <uint32_t*>calloc(n_rows, sizeof(uint32_t))
    if deep.places == NULL or deep.filled == MAX_DEEP_ROWS:
        return
    if deep.filled == deep.room:
        grown = <uint16_t*>realloc(deep.orders, <size_t>(2 * deep.room + 256) * DEEP * sizeof(uint16_t))
        if grown == NULL:
            return
        deep.orders = grown
        deep.room = 2 * deep.room + 256
    memcpy(deep.orders + <size_t>deep.filled * DEEP, order, count * sizeof(uint16_t))
    deep.filled += 1
    deep.places[row] = deep.filled
