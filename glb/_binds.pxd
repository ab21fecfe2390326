"""What a bind is for: from an address to its longest prefix, and by protocol and port to the table (docs/protocol/binds.md)."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from glb._fastpath cimport (
    GLB_MAX_LENGTHS, GLB_MAX_PROBES, GLB_NEAR_SEGMENTS, GLB_NO_TABLE, glb_generation, glb_prefix, glb_prefix_slot,
)
from glb._machine cimport likely, unlikely
from glb._wire cimport load_be32, load_be64


cdef enum:
    WHOLE_ADDRESS = 128  # length of a prefix
    IPV4_FAMILY = 0      # index into glb_generation.lengths
    IPV6_FAMILY = 1


cdef inline const glb_prefix* find_prefix(const glb_generation* generation, uint64_t high, uint64_t low, int family) noexcept nogil:
    """The longest bound prefix that holds an address, or NULL: the address is no VIP."""
    cdef const glb_prefix* slot = &generation.slots[
        glb_prefix_slot(high, low, WHOLE_ADDRESS, generation.seed) & generation.slot_mask]
    if likely(slot.low == low and slot.high == high and slot.length == WHOLE_ADDRESS):  # bound mostly, and found with less ado
        return slot
    return find_longest(generation, high, low, family)


cdef inline const glb_prefix* find_longest(const glb_generation* generation, uint64_t high, uint64_t low, int family) noexcept nogil:
    """The same by all lengths in use, longest first."""
    cdef const glb_prefix* slot
    cdef uint64_t masked_high, masked_low
    cdef uint32_t at, length
    cdef int i, probe
    for i in range(GLB_MAX_LENGTHS):
        length = generation.lengths[family][i]
        if length == 0xff:
            return NULL
        if length > 64:
            masked_high = high
            masked_low = low & (<uint64_t>0xffffffffffffffff << (128 - length))
        else:
            masked_high = high & (<uint64_t>0xffffffffffffffff << (64 - length)) if length else 0
            masked_low = 0
        at = glb_prefix_slot(masked_high, masked_low, length, generation.seed)
        for probe in range(GLB_MAX_PROBES):
            slot = &generation.slots[(at + probe) & generation.slot_mask]
            if not slot.used:
                break
            if slot.low == masked_low and slot.high == masked_high and slot.length == length:
                return slot
    return NULL


cdef inline const glb_prefix* find_ipv4(const glb_generation* generation, const uint8_t* address) noexcept nogil:
    return find_prefix(generation, 0, (<uint64_t>0xffff << 32) | load_be32(address), IPV4_FAMILY)


cdef inline const glb_prefix* find_ipv6(const glb_generation* generation, const uint8_t* address) noexcept nogil:
    cdef uint64_t high = load_be64(address)
    cdef uint64_t low = load_be64(address + 8)
    if unlikely(high == 0 and low >> 32 == 0xffff):  # IPv4-mapped: in the bind table these are the IPv4 prefixes
        return NULL
    return find_prefix(generation, high, low, IPV6_FAMILY)


cdef inline uint32_t find_table(const glb_generation* generation, const glb_prefix* prefix, uint32_t protocol, uint32_t port) noexcept nogil:
    """Table of a protocol and port (host order) at a VIP, or GLB_NO_TABLE."""
    cdef uint32_t key = (protocol << 16) | port
    cdef int i
    for i in range(GLB_NEAR_SEGMENTS):
        if likely(prefix.near[i].first <= key <= prefix.near[i].last):
            return prefix.near[i].table
    if prefix.n_segments <= GLB_NEAR_SEGMENTS:
        return GLB_NO_TABLE
    return search_segments(generation, prefix, key)


cdef inline uint32_t search_segments(const glb_generation* generation, const glb_prefix* prefix, uint32_t key) noexcept nogil:
    cdef uint32_t low = prefix.first_segment
    cdef uint32_t high = low + prefix.n_segments
    cdef uint32_t middle
    while low < high:
        middle = (low + high) >> 1
        if generation.segments[middle].last < key:
            low = middle + 1
        else:
            high = middle
    if low < prefix.first_segment + prefix.n_segments and generation.segments[low].first <= key:
        return generation.segments[low].table
    return GLB_NO_TABLE
