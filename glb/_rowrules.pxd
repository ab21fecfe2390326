"""The row rules: the hops of one row, from its rendezvous order (docs/protocol/table.md, "Row rules")."""

from libc.stdint cimport uint16_t, uint8_t

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


cdef inline bint owners_row(
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
