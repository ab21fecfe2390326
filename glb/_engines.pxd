"""What ranks backends: _rendezvous_engines.h, and what is needed to put a whole row in order."""

from libc.stdint cimport uint16_t, uint32_t, uint64_t

from _deep cimport DEEP
from _rowrules cimport NONE
from _weights cimport Best

cdef extern from "_rendezvous_engines.h":
    enum:
        GLB_KEPT        # candidates that `best` can keep
        GLB_MAX_LANES   # of any engine
        GLB_N_ENGINES

    struct glb_ranked:
        uint64_t k0     # SipHash key: the table's seed
        uint64_t k1
        size_t count    # backends
        const uint64_t* last_words
        const uint64_t* ipv6

    struct glb_engine:
        const char* name
        uint32_t lanes  # rows, or backends, at once
        void ranks(const glb_ranked*, uint32_t first_row, size_t first, size_t count, uint64_t* ranks) noexcept nogil
        void ranks_each(const glb_ranked*, const uint32_t* rows, const uint16_t* of, uint64_t* ranks) noexcept nogil
        void ranks_of_row(
            const glb_ranked*, uint32_t row, const uint16_t* backends, size_t count, uint64_t* ranks
        ) noexcept nogil
        uint32_t best(const glb_ranked*, uint32_t first_row, size_t keep, uint16_t* best) noexcept nogil

    const glb_engine glb_engines[]
    bint glb_engine_runs(size_t) nogil


cdef struct Entry:
    uint64_t score
    uint64_t rank
    uint16_t backend


# ---- memory to order rows in

cdef enum:
    CHUNK = 256            # backends whose ranks of GLB_MAX_LANES rows stay in the first-level cache
    N_BEST = DEEP + GLB_MAX_LANES * GLB_KEPT


cdef struct Room:
    uint64_t* ranks            # of all backends in one row, or of CHUNK in GLB_MAX_LANES
    uint64_t* scores           # of all backends in one row
    Entry* entries
    uint16_t* order            # what was found
    Best best                  # DEEP of one row
    Best[GLB_MAX_LANES] of_lanes


cdef inline size_t room_bytes(size_t count) noexcept nogil:
    """What a Room for that many backends needs."""
    return 8 * (count + CHUNK * GLB_MAX_LANES) + (8 + sizeof(Entry) + 2) * count + 18 * N_BEST + 2 * DEEP


cdef inline Room room_in(char* memory, size_t count) noexcept nogil:
    """A Room in memory of room_bytes(count), aligned for uint64_t."""
    cdef Room room
    cdef size_t lane
    room.ranks = <uint64_t*>memory
    room.scores = room.ranks + count + CHUNK * GLB_MAX_LANES
    room.entries = <Entry*>(room.scores + count)
    room.best.scores = <uint64_t*>(room.entries + count)
    room.best.ranks = room.best.scores + N_BEST
    room.best.backends = <uint16_t*>(room.best.ranks + N_BEST)
    room.order = room.best.backends + N_BEST
    for lane in range(<size_t>GLB_MAX_LANES):
        room.of_lanes[lane].scores = room.best.scores + DEEP + lane * GLB_KEPT
        room.of_lanes[lane].ranks = room.best.ranks + DEEP + lane * GLB_KEPT
        room.of_lanes[lane].backends = room.best.backends + DEEP + lane * GLB_KEPT
    return room


# ---- one row in full

cdef inline int compare_entries(const void* one, const void* other) noexcept nogil:
    cdef const Entry* a = <const Entry*>one
    cdef const Entry* b = <const Entry*>other
    if a.score != b.score:
        return -1 if a.score < b.score else 1
    if a.rank != b.rank:
        return -1 if a.rank < b.rank else 1
    return <int>a.backend - <int>b.backend


cdef inline Py_ssize_t known_of(const uint16_t* head, Py_ssize_t keep) noexcept nogil:
    """How many entries of a row's head are known."""
    while keep > 0 and head[keep - 1] == NONE:
        keep -= 1
    return keep


cdef inline void write_head(
    uint16_t* head, Py_ssize_t keep, uint16_t moved, Py_ssize_t place, const uint16_t* others, Py_ssize_t n_others
) noexcept nogil:
    """The others in their order, and the moved one at its place among them; place = keep: behind all that are known."""
    cdef Py_ssize_t i, at
    for i in range(keep):
        at = i - (i > place)
        if i == place:
            head[i] = moved
        else:
            head[i] = others[at] if at < n_others else NONE
