"""Changes of a rendezvous order's heads: one backend put to its place, all of them given other numbers."""

from libc.stdint cimport uint16_t, uint32_t, uint64_t, uint8_t

from _engines cimport GLB_KEPT, GLB_MAX_LANES, glb_engine, glb_ranked, known_of, write_head
from _rowrules cimport NONE
from _weights cimport is_before


cdef inline void renumber(uint16_t* head, Py_ssize_t n_rows, Py_ssize_t keep, const uint16_t* numbers) noexcept nogil:
    """numbers: by the number until now, NONE for a backend that has left. Where one has, the head gets shorter."""
    cdef Py_ssize_t row, i, filled
    for row in range(n_rows):
        filled = 0
        for i in range(keep):
            if head[i] != NONE and numbers[head[i]] != NONE:
                head[filled] = numbers[head[i]]
                filled += 1
        for i in range(filled, keep):
            head[i] = NONE
        head += keep


cdef inline void move_in_head(
    const glb_engine* engine, const glb_ranked* ranked, const uint8_t* weights, uint32_t row, uint16_t* head,
    Py_ssize_t keep, uint16_t moved, uint64_t rank, bint before_last
) noexcept nogil:
    """before_last: whether it stands before the last of the others in the head."""
    cdef Py_ssize_t n_others = 0, place = 0, i
    cdef uint16_t[GLB_KEPT] others
    cdef uint64_t[GLB_KEPT + GLB_MAX_LANES] other_ranks
    cdef bint listed = False
    for i in range(known_of(head, keep)):
        if head[i] == moved:
            listed = True
        else:
            others[n_others] = head[i]
            n_others += 1
    if n_others and before_last:
        engine.ranks_of_row(ranked, row, others, n_others, other_ranks)
        while not is_before(moved, rank, others[place], other_ranks[place], weights):
            place += 1
    elif n_others == <Py_ssize_t>ranked.count - 1:
        place = n_others
    elif listed:
        place = keep
    else:
        return
    write_head(head, keep, moved, place, others, n_others)
