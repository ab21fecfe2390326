"""From a row to the tunnel packet: hops, and the front that is put before the frame (docs/protocol/gue.md)."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memmove

from glb._fastpath cimport (
    GLB_DROP_NO_BACKEND, GLB_DROP_NO_NEXT_HOP, GLB_DROP_TOO_BIG, GLB_FORWARD, GLB_MAX_BACKENDS,
    GLB_NEXT_HOP_EGRESS_BIT, GLB_NEXT_HOP_KNOWN_BIT, GLB_NO_HOP, MAX_LIST, MTU_UNKNOWN, Counters, Packet, Plan, Table, glb_backend,
)
from glb._machine cimport glb_acquire_u64, glb_prefetch, glb_prefetch_write, glb_release_u32, glb_release_u64, unlikely
from glb._parse cimport ETHERNET_BYTES
from glb._wire cimport (
    GLB_ETH_P_IP, GLB_GUE_PORT, GLB_OUTER_TTL, GLB_PROTO_UDP, GLB_SOURCE_PORT_BASE, fold_checksum, load_word16, load_word32,
    load_word64, store_be16, store_word16, store_word32, store_word64, sum_be16, swap16,
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
    cdef uint32_t n = 0
    while n < table.stride and row[n] != GLB_NO_HOP:
        n += 1
    return n


cdef inline uint32_t list_hops(const Table* table, const Packet* packet, uint16_t* hops) noexcept nogil:
    """Backend indexes of the packet's row, then of its alternative row; returns how many."""
    cdef uint32_t n = count_hops(table, packet.row)
    cdef uint32_t n_alternative = count_hops(table, packet.alternative_row)
    cdef uint32_t i, k
    memcpy(hops, packet.row, n * 2)
    for i in range(n_alternative):
        if not table.keep_duplicates:
            for k in range(n):
                if hops[k] == packet.alternative_row[i]:
                    break
            else:
                hops[n] = packet.alternative_row[i]
                n += 1
            continue
        hops[n] = packet.alternative_row[i]
        n += 1
    return n


# ---- encapsulate: front before the packet --------------------------------------------------------------------------

cdef inline uint8_t encapsulate(const Plan* plan, Packet* packet, Counters* counters) noexcept nogil:
    cdef const Table* table = packet.by
    cdef uint16_t listed[MAX_LIST]
    cdef const uint16_t* hops = packet.row
    cdef uint32_t n
    if plan.alt_hash_fields:
        n = list_hops(table, packet, listed)
        hops = listed
    else:
        n = count_hops(table, hops)
    packet.egress = 0
    if n == 0:
        return GLB_DROP_NO_BACKEND
    cdef const glb_backend* primary = &table.backends[hops[0]]
    cdef uint32_t further = n - 1
    cdef uint32_t overhead = OVERHEAD_BYTES + 4 * further
    cdef uint32_t outer_length = overhead + packet.ip_length
    cdef uint64_t next_hop = glb_acquire_u64(&primary.next_hop)  # before its MTU: see store_next_hop
    cdef uint32_t mtu_bytes = primary.mtu_bytes
    if outer_length > mtu_bytes:
        packet.room = mtu_bytes - overhead if mtu_bytes > overhead else 0
        packet.answerable &= mtu_bytes < MTU_UNKNOWN
        return GLB_DROP_TOO_BIG
    if not (next_hop >> GLB_NEXT_HOP_KNOWN_BIT) & 1:
        return GLB_DROP_NO_NEXT_HOP
    cdef uint32_t i
    cdef uint8_t* front = packet.frame - overhead
    cdef uint64_t* of_table = &counters.tables[2 * packet.table]
    of_table[0] += 1
    of_table[1] += packet.length
    counters.backends[primary.counter & (GLB_MAX_BACKENDS - 1)] += 1
    packet.length += overhead
    packet.sends = True
    cdef uint64_t tags = 0
    cdef uint32_t tag_bytes = packet.link_bytes - ETHERNET_BYTES
    if unlikely(tag_bytes):
        tags = load_word64(packet.frame + 12)  # at most 8 bytes; the front overwrites them
        front += tag_bytes
    write_front(plan, front, packet, primary, next_hop, further, outer_length)
    for i in range(further):
        store_word32(front + ETHERNET_BYTES + OVERHEAD_BYTES + 4 * i, load_word32(table.backends[hops[1 + i]].address))
    if unlikely(next_hop >> GLB_NEXT_HOP_EGRESS_BIT):
        # Tags are the trunk's that the frame came in by: they do not go to another interface.
        packet.egress = next_hop >> GLB_NEXT_HOP_EGRESS_BIT
        packet.length -= tag_bytes
        memcpy(front + 6, plan.generation.egresses[packet.egress].source_mac, 6)
    elif unlikely(tag_bytes):
        # The VLAN tags stay: the MAC addresses move to make room for them.
        memmove(front - tag_bytes, front, 12)
        front -= tag_bytes
        memcpy(front + 12, &tags, tag_bytes)
    packet.frame = front
    return GLB_FORWARD


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
    uint32_t outer_length,
) noexcept nogil:
    """The first 50 bytes of the front; the further hops follow. Whole words, as write_front of bpf/director.bpf.c."""
    cdef uint64_t destination = load_word32(primary.address)
    cdef uint64_t source = 0
    cdef uint16_t udp_source_be = swap16(GLB_SOURCE_PORT_BASE | <uint16_t>packet.hash) ^ (packet.hint_be & swap16(0x7fff))
    cdef uint16_t checksum = fold_checksum(plan.fixed_sum + primary.address_sum + outer_length)
    if plan.source_from_frame:
        # The front ends where the frame's own Ethernet header did: its destination is read before that is overwritten.
        source = load_word32(packet.frame) | <uint64_t>load_word16(packet.frame + 4) << 32
    store_word64(front, plan.front[0] | (next_hop & <uint64_t>0xffffffffffff) | source << 48)
    store_word64(front + 8, plan.front[1] | source >> 16)
    store_word64(front + 16, plan.front[2] | swap16(outer_length))
    store_word64(front + 24, plan.front[3] | swap16(checksum) | destination << 48)
    store_word64(front + 32, plan.front[4] | destination >> 16 | <uint64_t>udp_source_be << 16
                 | <uint64_t>swap16(outer_length - FRONT_IPV4_BYTES) << 48)
    # No UDP checksum: the inner packet has its own (RFC 6935 does not concern IPv4).
    store_word64(front + 40, (1 + further) << 16 | <uint64_t>packet.inner_protocol << 24)
    store_word16(front + 48, further << 8)
