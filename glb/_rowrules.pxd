"""The row rules: the hops of one row, from its rendezvous order (docs/protocol/table.md, "Row rules")."""

from libc.stdint cimport uint16_t, uint64_t, uint8_t

# How a row rule sees one backend: a byte of flags each. glb/table/rows.py fills them in.
cdef enum:
    SKIPPED = 0x01         # takes no part (state inactive)
    USABLE = 0x02          # may be a primary under first_usable
    LIVE = 0x04            # healthy though not usable (draining, or weight 0): its flows surely live
    GLB_BAD = 0x08         # a primary that GLB would exchange: draining, or not healthy
    GLB_PROMOTED = 0x10    # a secondary that GLB would exchange for it: state active
    NEW = 0x20             # filling: those after it may hold flows of its rows

cdef enum:
    MAX_HOPS = 4
    NONE = 0xFFFF          # no backend: an unused entry of a row; in an order: from here on not known


cdef struct Backends:
    const uint8_t* kinds      # flags of each
    const uint16_t* zones     # of each, 0: none; NULL: no backend has one
    const uint16_t* in_zone   # usable backends of each zone; [0]: of all zones together
    bint any_usable           # else: fail open, the plain order


cdef inline bint in_another_zone(const Backends* of, uint16_t primary, uint16_t backend) noexcept nogil:
    """Whether it may be chosen as a hop that outlives the primary's zone."""
    return of.kinds[backend] & USABLE and of.zones[backend] and of.zones[backend] != of.zones[primary]


cdef inline bint first_usable_row(
    const uint16_t* order, Py_ssize_t known, const Backends* of, Py_ssize_t hops, uint16_t* row
) noexcept nogil:
    """Hops by first_usable from the first `known` backends of the order; False: more of the order is needed."""
    cdef Py_ssize_t i, at, primary = -1, filled = 0, elsewhere
    cdef int group
    cdef uint8_t kind
    for i in range(known):
        kind = of.kinds[order[i]]
        if not kind & SKIPPED and (kind & USABLE or not of.any_usable):  # none usable: fail open
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
            kind = of.kinds[order[i]]
            if not kind & SKIPPED and (kind & LIVE == 0) == (group == 1):
                row[filled] = order[i]
                filled += 1
    at = primary + 1
    if of.zones != NULL and filled < hops and of.zones[row[0]] and of.in_zone[0] > of.in_zone[of.zones[row[0]]]:
        if of.kinds[row[0]] & NEW:  # those that a filling primary displaced keep their places
            while filled < hops:
                if at == known:
                    return False
                kind = of.kinds[order[at]]
                if not kind & SKIPPED:
                    row[filled] = order[at]
                    filled += 1
                at += 1
                if kind & USABLE and not kind & NEW:
                    break
        elsewhere = primary + 1
        while filled < hops:
            if elsewhere == known:
                return False
            if in_another_zone(of, row[0], order[elsewhere]):
                if elsewhere >= at:
                    row[filled] = order[elsewhere]
                    filled += 1
                break
            elsewhere += 1
    else:
        elsewhere = -1
    while filled < hops:
        if at == known:
            return False
        if not of.kinds[order[at]] & SKIPPED and at != elsewhere:
            row[filled] = order[at]
            filled += 1
        at += 1
    return True


# ---- a row that needs more of its order than is kept: from all backends, without sorting them

cdef enum:
    BEFORE_LIVE, BEFORE_OTHERS, AFTER, ELSEWHERE, N_GROUPS   # where a backend stands by the primary
    MAX_DECIDING = N_GROUPS * MAX_HOPS + 1


cdef inline bint stands_before(const uint64_t* scores, const uint64_t* ranks, uint16_t one, uint16_t other) noexcept nogil:
    if scores[one] != scores[other]:
        return scores[one] < scores[other]
    return ranks[one] < ranks[other] if ranks[one] != ranks[other] else one < other


cdef inline Py_ssize_t insert_in_order(
    const uint64_t* scores, const uint64_t* ranks, uint16_t backend, uint16_t* order, Py_ssize_t filled, Py_ssize_t room
) noexcept nogil:
    """Put a backend to its place among the first `room`; returns how many there are then."""
    cdef Py_ssize_t at = filled
    if filled == room:
        if not stands_before(scores, ranks, backend, order[room - 1]):
            return filled
        at -= 1
        filled -= 1
    while at > 0 and stands_before(scores, ranks, backend, order[at - 1]):
        order[at] = order[at - 1]
        at -= 1
    order[at] = backend
    return filled + 1


cdef inline Py_ssize_t deciding(
    const uint64_t* scores, const uint64_t* ranks, Py_ssize_t count, const Backends* of, uint16_t* order
) noexcept nogil:
    """Those backends that first_usable_row may name, in order: of each group as many as a row can have hops.

    With these as its order, it comes to the same row as with all.
    """
    cdef uint16_t[N_GROUPS][MAX_HOPS] groups
    cdef Py_ssize_t[N_GROUPS] filled
    cdef Py_ssize_t i, primary = -1, n_deciding = 0
    cdef int group
    cdef uint8_t kind
    for i in range(count):
        kind = of.kinds[i]
        if not kind & SKIPPED and (kind & USABLE or not of.any_usable):
            if primary < 0 or stands_before(scores, ranks, <uint16_t>i, <uint16_t>primary):
                primary = i
    for group in range(N_GROUPS):
        filled[group] = 0
    for i in range(count):
        kind = of.kinds[i]
        if kind & SKIPPED or i == primary:
            continue
        if stands_before(scores, ranks, <uint16_t>primary, <uint16_t>i):
            group = AFTER
            if of.zones != NULL and in_another_zone(of, <uint16_t>primary, <uint16_t>i):
                group = ELSEWHERE
        else:
            group = BEFORE_LIVE if kind & LIVE else BEFORE_OTHERS
        filled[group] = insert_in_order(scores, ranks, <uint16_t>i, groups[group], filled[group], MAX_HOPS)
    order[0] = <uint16_t>primary
    n_deciding = 1
    for group in range(N_GROUPS):
        for i in range(filled[group]):
            n_deciding = insert_in_order(scores, ranks, groups[group][i], order, n_deciding, MAX_DECIDING)
    return n_deciding


cdef inline bint glb2_row(
    const uint16_t* order, Py_ssize_t known, const Backends* of, Py_ssize_t hops, uint16_t* row
) noexcept nogil:
    """Hops (at most two) exactly as GLB's builder makes them; False: more of the order is needed."""
    cdef Py_ssize_t i, filled = 0
    for i in range(known):
        if filled == hops:
            break
        if not of.kinds[order[i]] & SKIPPED:
            row[filled] = order[i]
            filled += 1
    if filled < hops:
        return False
    if hops == 2 and of.kinds[row[0]] & GLB_BAD and of.kinds[row[1]] & GLB_PROMOTED:
        row[0], row[1] = row[1], row[0]
    return True


cdef inline bint row_of(
    const uint16_t* order, Py_ssize_t known, const Backends* backends, Py_ssize_t hops, bint glb2, uint16_t* row
) noexcept nogil:
    """One row by either rule; False: more of the order is needed."""
    if glb2:
        return glb2_row(order, known, backends, hops, row)
    return first_usable_row(order, known, backends, hops, row)
