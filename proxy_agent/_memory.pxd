"""What the agent remembers for a moment: bounded tables that forget. Inline leaves, nogil.

`recent` holds flows that were found less than two seconds ago, so that a busy flow costs one look-up in two seconds instead of one
per packet. `cookies` holds flows whose SYN cookie was accepted less than two seconds ago: their next segments may come before the
stack has made the socket. `syns` is used where the kernel does not judge cookies for us (_cookie.pxd): the sequence numbers of the
SYNs that were accepted lately, by which the ACK that answers a cookie is told from an ACK of a flow that lives elsewhere.
All are indexed by a keyed hash: a stranger can neither aim at a slot nor find two flows that share a tag.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from glb._siphash cimport SipKey, siphash24

from proxy_agent._tunnel cimport FLOW_BYTES, Flow


cdef enum:
    RECENT_WAYS = 4          # slots that a flow may sit in: one cache line
    RECENT_SETS = 16384      # of the engine: 65,536 flows, 1 MiB, and the same for cookies
    COOKIE_MS = 2000
    SYN_SLOTS = 1048576      # of the engine: 8 MiB, touched only as SYNs come; at 300,000 SYN/s 3 in 4 stand after 1 s
    SYN_WINDOW_MS = 10000    # longer than a handshake takes, SYN retransmissions to another proxy included


cdef struct RecentEntry:
    uint64_t tag        # hash of the flow; 0: free
    uint32_t until_ms   # monotonic, wraps after 49 days; compared by difference


cdef struct SynEntry:
    uint32_t tag        # hash bits mixed with the SYN's sequence number
    uint32_t seen_ms


cdef struct Memory:
    SipKey key          # random, of this process
    RecentEntry* recent # n_sets * RECENT_WAYS
    RecentEntry* cookies
    SynEntry* syns      # n_slots
    uint64_t n_sets     # powers of two
    uint64_t n_slots    # 0: SYNs are not remembered


cdef inline uint64_t flow_tag(const Memory* memory, const Flow* flow) noexcept nogil:
    cdef uint64_t tag = siphash24(memory.key, <const uint8_t*>flow, FLOW_BYTES)
    return tag if tag != 0 else 1


cdef inline bint in_time(uint32_t until_ms, uint32_t now_ms) noexcept nogil:
    return <uint32_t>(until_ms - now_ms - 1) < 0x7fffffff


cdef inline RecentEntry* set_of(const Memory* memory, RecentEntry* table, uint64_t tag) noexcept nogil:
    return table + (tag & (memory.n_sets - 1)) * RECENT_WAYS


cdef inline bint recall(const Memory* memory, RecentEntry* table, uint64_t tag, uint32_t now_ms) noexcept nogil:
    """Whether a flow is still remembered."""
    cdef RecentEntry* entry = set_of(memory, table, tag)
    cdef int way
    for way in range(RECENT_WAYS):
        if entry[way].tag == tag and in_time(entry[way].until_ms, now_ms):
            return True
    return False


cdef inline void remember(const Memory* memory, RecentEntry* table, uint64_t tag, uint32_t now_ms, uint32_t for_ms) noexcept nogil:
    """Remember a flow, in its own slot, a free one, or that of the entry which would be forgotten first."""
    cdef RecentEntry* entry = set_of(memory, table, tag)
    cdef RecentEntry* chosen = entry
    cdef uint32_t left_ms, least_ms = 0xffffffff
    cdef int way
    for way in range(RECENT_WAYS):
        if entry[way].tag == tag:
            chosen = entry + way
            break
        left_ms = entry[way].until_ms - now_ms if in_time(entry[way].until_ms, now_ms) else 0
        if entry[way].tag == 0:
            left_ms = 0
        if left_ms < least_ms:
            least_ms = left_ms
            chosen = entry + way
    chosen.tag = tag
    chosen.until_ms = now_ms + for_ms


cdef inline void forget(const Memory* memory, RecentEntry* table, uint64_t tag) noexcept nogil:
    cdef RecentEntry* entry = set_of(memory, table, tag)
    cdef int way
    for way in range(RECENT_WAYS):
        if entry[way].tag == tag:
            entry[way].tag = 0


cdef inline SynEntry* syn_slot(const Memory* memory, uint64_t tag) noexcept nogil:
    return memory.syns + ((tag >> 16) & (memory.n_slots - 1))


cdef inline uint32_t syn_tag(uint64_t tag, uint32_t seq) noexcept nogil:
    return <uint32_t>(tag >> 32) ^ <uint32_t>(tag * <uint64_t>0x9e3779b97f4a7c15 >> 40) ^ seq


cdef inline void note_syn(Memory* memory, uint64_t tag, uint32_t seq, uint32_t now_ms) noexcept nogil:
    cdef SynEntry* slot = syn_slot(memory, tag)
    slot.tag = syn_tag(tag, seq)
    slot.seen_ms = now_ms


cdef inline bint follows_syn(const Memory* memory, uint64_t tag, uint32_t seq, uint32_t now_ms) noexcept nogil:
    """Whether a segment with sequence number `seq` is the first after a SYN that was accepted here lately.

    A wrong yes (1 in 2^32) gets its sender a RST from the local stack."""
    cdef const SynEntry* slot = syn_slot(memory, tag)
    return memory.n_slots != 0 and slot.tag == syn_tag(tag, seq - 1) and <uint32_t>(now_ms - slot.seen_ms) < SYN_WINDOW_MS
