"""From a row to the tunnel packet: hops, and the front that is put before the frame (docs/protocol/gue.md)."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memmove

from glb._fastpath cimport (
    GLB_DROP_NO_BACKEND, GLB_DROP_NO_NEXT_HOP, GLB_DROP_TOO_BIG, GLB_FORWARD, GLB_NEXT_HOP_EGRESS_BIT, GLB_NEXT_HOP_KNOWN_BIT,
    GLB_NO_HOP, MAX_LIST, MTU_UNKNOWN, Counters, Packet, Plan, Table, glb_backend, glb_count,
)
from glb._machine cimport glb_acquire_u64, glb_prefetch, glb_prefetch_write, glb_release_u32, glb_release_u64, unlikely
from glb._parse cimport ETHERNET_BYTES
from glb._wire cimport (
    GLB_ETH_P_IP, GLB_GUE_PORT, GLB_OUTER_TTL, GLB_PROTO_UDP, GLB_SOURCE_PORT_BASE, load_word16, load_word32, load_word64, store_be16, store_word16, store_word32, store_word64, sum_be16, swap16,
)


cdef enum:
    FRONT_IPV4_BYTES = 20
    OVERHEAD_BYTES = 36     # outer IPv4, UDP, GUE and private data header; 4 more for each hop after the first
    PORTS_END = 57          # last byte of a frame that is read, mostly: IPv6 and ports


# ---- fetch: what the packet path will touch ------------------------------------------------------------------------

cdef inline void fetch_headers(const Packet* packet) noexcept nogil:
    """Of a frame that is soon to be parsed: its headers, and the bytes before it, where the front will be."""
    glb_prefetch_write(packet.frame)
    glb_prefetch(packet.frame + PORTS_END)
    glb_prefetch_write(packet.frame - OVERHEAD_BYTES - 4)


# ---- row -> hops ---------------------------------------------------------------------------------------------------

cdef inline uint32_t count_hops(const Table* table, const uint16_t* row) noexcept nogil:
    if unlikely(row[0] == GLB_NO_HOP):
        return 0
    if row[1] == GLB_NO_HOP:
        return 1
    if table.stride == 2 or row[2] == GLB_NO_HOP:
        return 2
    return 3 if row[3] == GLB_NO_HOP else 4


cdef inline uint32_t list_hops(const Table* table, const uint16_t* row, const uint16_t* alternative_row, uint16_t* hops) noexcept nogil:
    """Backend indexes of a packet's row, then of its alternative row; returns how many."""
    cdef uint32_t n = count_hops(table, row)
    cdef uint32_t n_alternative = count_hops(table, alternative_row)
    cdef uint32_t i, k
    memcpy(hops, row, n * 2)
    for i in range(n_alternative):
        if not table.keep_duplicates:
            for k in range(n):
                if hops[k] == alternative_row[i]:
                    break
            else:
                hops[n] = alternative_row[i]
                n += 1
            continue
        hops[n] = alternative_row[i]
        n += 1
    return n


# ---- encapsulate: front before the packet --------------------------------------------------------------------------

cdef inline uint8_t encapsulate(
    const Plan* plan, Packet* packet, const uint16_t* row, const uint16_t* alternative_row, Counters* counters, uint8_t inner_protocol
) noexcept nogil:
    """`alternative_row` only where the plan has alt_hash_fields."""
    cdef const Table* table = &plan.tables[packet.table]
    cdef uint16_t listed[MAX_LIST]
    cdef const uint16_t* hops = row
    cdef uint32_t n
    if unlikely(plan.alt_hash_fields):
        n = list_hops(table, row, alternative_row, listed)
        hops = listed
    else:
        n = count_hops(table, row)
    if unlikely(n == 0):
        return GLB_DROP_NO_BACKEND
    cdef const glb_backend* primary = &table.backends[hops[0]]
    cdef uint32_t further = n - 1
    cdef uint32_t overhead = OVERHEAD_BYTES + 4 * further
    cdef uint32_t outer_length = overhead + packet.ip_length
    cdef uint64_t next_hop = glb_acquire_u64(&primary.next_hop)  # before its MTU: see store_next_hop
    cdef uint32_t mtu_bytes = primary.mtu_bytes
    if unlikely(outer_length > mtu_bytes):
        packet.room = mtu_bytes - overhead if mtu_bytes > overhead else 0
        packet.answerable &= mtu_bytes < MTU_UNKNOWN
        return GLB_DROP_TOO_BIG
    if unlikely(not (next_hop >> GLB_NEXT_HOP_KNOWN_BIT) & 1):
        return GLB_DROP_NO_NEXT_HOP
    cdef uint32_t i
    cdef uint32_t tag_bytes = packet.link_bytes - ETHERNET_BYTES
    cdef uint64_t tags = 0
    cdef uint8_t* front = packet.frame - overhead
    cdef glb_count* counted = &counters.backends[primary.counter]
    counted.packets += 1
    counted.bytes += packet.length
    if unlikely(tag_bytes):
        tags = load_word64(packet.frame + 12)  # at most 8 bytes; the front overwrites them
        front += tag_bytes
    write_front(plan, front, packet, primary, next_hop, further, outer_length, inner_protocol)
    if further:
        store_word32(front + ETHERNET_BYTES + OVERHEAD_BYTES, load_word32(table.backends[hops[1]].address))
        for i in range(1, further):
            store_word32(front + ETHERNET_BYTES + OVERHEAD_BYTES + 4 * i, load_word32(table.backends[hops[1 + i]].address))
    if unlikely(next_hop >> GLB_NEXT_HOP_EGRESS_BIT | tag_bytes):
        front = finish_link(plan, front, packet, next_hop >> GLB_NEXT_HOP_EGRESS_BIT, tags, tag_bytes)
    packet.frame = front
    packet.length += overhead
    return GLB_FORWARD


cdef inline uint8_t* finish_link(
    const Plan* plan, uint8_t* front, Packet* packet, uint8_t egress, uint64_t tags, uint32_t tag_bytes
) noexcept nogil:
    """Of what leaves by another interface, or came with VLAN tags, the link header; returns where the frame begins."""
    if egress:
        # Tags are the trunk's that the frame came in by: they do not go to another interface.
        packet.egress = egress
        packet.length -= tag_bytes
        memcpy(front + 6, plan.generation.egresses[egress].source_mac, 6)
        return front
    # The VLAN tags stay: the MAC addresses move to make room for them.
    memmove(front - tag_bytes, front, 12)
    memcpy(front - tag_bytes + 12, &tags, tag_bytes)
    return front - tag_bytes


cdef inline void store_next_hop(
    const Plan* plan, const uint8_t* address, uint64_t next_hop, uint32_t mtu_bytes
) noexcept nogil:
    """Of a backend in every table. Who encapsulates meanwhile reads next_hop first: what it sends the new way fits it."""
    cdef glb_backend* backend
    cdef uint32_t i, k
    for i in range(plan.n_tables):
        for k in range(plan.tables[i].n_backends):
            backend = &plan.tables[i].backends[k]
            if memcmp(backend.address, address, 4) == 0:
                glb_release_u32(&backend.mtu_bytes, min(backend.mtu_bytes, mtu_bytes))
                glb_release_u64(&backend.next_hop, next_hop)
                glb_release_u32(&backend.mtu_bytes, mtu_bytes)


cdef inline void start_front(Plan* plan, const uint8_t* source_ip, const uint8_t* source_mac) noexcept nogil:
    """What the fronts of all tunnel packets have in common. `source_mac` NULL: it comes from the frame."""
    cdef uint8_t* front = <uint8_t*>plan.front
    plan.source_from_frame = source_mac == NULL
    if source_mac != NULL:
        memcpy(front + 6, source_mac, 6)
    store_be16(front + 12, GLB_ETH_P_IP)
    front[14] = 0x45
    store_be16(front + 20, 0x4000)  # don't fragment
    front[22] = GLB_OUTER_TTL
    front[23] = GLB_PROTO_UDP
    memcpy(front + 26, source_ip, 4)
    store_be16(front + 36, GLB_GUE_PORT)
    plan.fixed_sum = sum_be16(front + ETHERNET_BYTES, FRONT_IPV4_BYTES, 0)


cdef inline void write_front(
    const Plan* plan, uint8_t* front, const Packet* packet, const glb_backend* primary, uint64_t next_hop, uint32_t further,
    uint32_t outer_length, uint8_t inner_protocol,
) noexcept nogil:
    """The first 50 bytes of the front; the further hops follow. Whole words, as write_front of bpf/director.bpf.c."""
    cdef uint64_t destination = load_word32(primary.address)
    cdef uint64_t source = 0
    cdef uint16_t udp_source_be = swap16(GLB_SOURCE_PORT_BASE | <uint16_t>packet.hash) ^ (packet.hint_be & swap16(0x7fff))
    cdef uint32_t length_be = swap16(outer_length)
    cdef uint32_t sum_be = primary.header_sum + length_be  # a one's complement sum may be taken in any byte order (RFC 1071)
    cdef uint16_t checksum_be = ~(sum_be + (sum_be >> 16))
    if plan.source_from_frame:
        # The front ends where the frame's own Ethernet header did: its destination is read before that is overwritten.
        source = load_word32(packet.frame) | <uint64_t>load_word16(packet.frame + 4) << 32
    store_word64(front, plan.front[0] | (next_hop & <uint64_t>0xffffffffffff) | source << 48)
    store_word64(front + 8, plan.front[1] | source >> 16)
    store_word64(front + 16, plan.front[2] | length_be)
    store_word64(front + 24, plan.front[3] | checksum_be | destination << 48)
    store_word64(front + 32, plan.front[4] | destination >> 16 | <uint64_t>udp_source_be << 16
                 | <uint64_t>swap16(outer_length - FRONT_IPV4_BYTES) << 48)
    # No UDP checksum: the inner packet has its own (RFC 6935 does not concern IPv4).
    store_word64(front + 40, (1 + further) << 16 | <uint64_t>inner_protocol << 24)
    store_word16(front + 48, further << 8)
