"""Weighted rendezvous: a rank and a weight to a score, the lowest first (docs/protocol/table.md, "Weights").

Integers only, so that every machine comes to the same rows.
"""

from libc.stdint cimport uint16_t, uint64_t, uint8_t

cdef enum:
    LOG_STEPS = 1024        # straight pieces that the logarithm is made of
    LOG_DIGITS = 57         # binary digits after the point: 64 of them in front leave a distance in 64 bits

cdef extern from "_rendezvous_engines.h":
    uint64_t glb_high_product(uint64_t a, uint64_t b) nogil

cdef extern from *:
    int __builtin_clzll(unsigned long long) nogil

cdef extern from *:
    "static uint64_t glb_log2[1025];"
    uint64_t LOG2 "glb_log2"[1025]  # log2(1 + i / LOG_STEPS), with LOG_DIGITS digits after the point; fill_log2 fills it


cdef inline void fill_log2() noexcept nogil:
    """Digit by digit: squaring a number between 1 and 2 doubles its logarithm; from 2 on, a 1 comes before the point."""
    cdef uint64_t x, high, low, value
    cdef int i, digit
    for i in range(LOG_STEPS):
        x = <uint64_t>(LOG_STEPS + i) << 53  # 63 digits after the point
        value = 0
        for digit in range(LOG_DIGITS):
            high = glb_high_product(x, x)
            low = x * x
            value <<= 1
            if high >> 63:
                value |= 1
                x = high
            else:
                x = high << 1 | low >> 63
        LOG2[i] = value
    LOG2[LOG_STEPS] = <uint64_t>1 << LOG_DIGITS


cdef inline uint64_t distance_of(uint64_t rank) noexcept nogil:
    """-log2(1 - rank / 2^64), never falling with the rank; at most 0.03 % too high."""
    cdef uint64_t rest = ~rank | 1
    cdef int zeros = __builtin_clzll(rest)
    cdef uint64_t scaled = rest << zeros  # its first digit is 1
    cdef uint64_t step = scaled >> 53 & (LOG_STEPS - 1)
    cdef uint64_t slope = LOG2[step + 1] - LOG2[step]
    cdef uint64_t log = (<uint64_t>(63 - zeros) << LOG_DIGITS) + LOG2[step] + glb_high_product(slope, scaled << 11)
    return (<uint64_t>1 << 63) - log


cdef inline uint64_t score_of(uint64_t rank, uint8_t weight) noexcept nogil:
    return distance_of(rank) // weight


cdef inline uint64_t floor_factor(uint8_t weight) noexcept nogil:
    """What a rank's upper product with is no more than its score: a distance is above rank / 2^64 * 23 / 16."""
    return (<uint64_t>23 << (LOG_DIGITS - 4)) // weight


cdef inline bint is_before(
    uint16_t one, uint64_t rank, uint16_t other, uint64_t other_rank, const uint8_t* weights
) noexcept nogil:
    """Whether a backend stands before another in a row, by their ranks in it."""
    cdef uint64_t score = score_of(rank, weights[one]), other_score = score_of(other_rank, weights[other])
    if score != other_score:
        return score < other_score
    return rank < other_rank if rank != other_rank else one < other


cdef struct Best:
    Py_ssize_t filled
    uint64_t* scores
    uint64_t* ranks
    uint16_t* backends


cdef inline void select_best(
    Best* best,
    Py_ssize_t keep,
    const uint64_t* ranks,
    Py_ssize_t stride,
    Py_ssize_t first,
    Py_ssize_t count,
    const uint8_t* weights,
    const uint64_t* floors,
) noexcept nogil:
    """Go on selecting the `keep` backends of lowest score, in order; equal scores by rank, equal ranks by index.

    ranks[i * stride] is that of backend first + i. weights NULL: the rank itself is the score. floors: floor_factor of
    each weight; most backends are seen to be too far without a logarithm.
    """
    cdef Py_ssize_t i, at, filled = best.filled
    cdef uint64_t rank, score
    for i in range(count):
        rank = ranks[i * stride]
        if weights == NULL:
            score = rank
        else:
            if filled == keep and glb_high_product(rank, floors[first + i]) > best.scores[keep - 1]:
                continue
            score = score_of(rank, weights[first + i])
        if filled == keep:
            at = keep - 1
            if score > best.scores[at] or (score == best.scores[at] and rank >= best.ranks[at]):
                continue
        else:
            at = filled
            filled += 1
        while at > 0 and (
            best.scores[at - 1] > score or (best.scores[at - 1] == score and best.ranks[at - 1] > rank)
        ):
            best.scores[at] = best.scores[at - 1]
            best.ranks[at] = best.ranks[at - 1]
            best.backends[at] = best.backends[at - 1]
            at -= 1
        best.scores[at] = score
        best.ranks[at] = rank
        best.backends[at] = <uint16_t>(first + i)
    best.filled = filled
