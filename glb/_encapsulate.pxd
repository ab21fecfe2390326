"""From a flow to the tunnel packet: hash, row, hops, and the front that is put before the frame (docs/protocol/gue.md)."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from glb._fastpath cimport (
    GLB_CHUNK_ROWS, GLB_MAX_STRIDE, GLB_MAX_TAGS,
    GLB_DROP_NO_BACKEND, GLB_DROP_NO_NEXT_HOP, GLB_DROP_TOO_BIG, GLB_FORWARD, GLB_MAX_BACKENDS,
    GLB_NEXT_HOP_EGRESS_BIT, GLB_NEXT_HOP_KNOWN_BIT, GLB_NO_HOP, HASH_DST_ADDR, HASH_DST_PORT,
    HASH_SRC_ADDR, HASH_SRC_PORT, MAX_LIST, MESSAGE_BYTES, MTU_UNKNOWN, Counters, Packet, Plan, Table, glb_backend,
)
from glb._machine cimport unlikely
from glb._parse cimport ETHERNET_BYTES
from glb._siphash cimport siphash, siphash24
from glb._wire cimport (
    GLB_ETH_P_IP, GLB_GUE_PORT, GLB_OUTER_TTL, GLB_PROTO_UDP, GLB_SOURCE_PORT_BASE, fold_checksum, store_be16,
)


cdef enum:
    FRONT_IPV4_BYTES = 20
    OVERHEAD_BYTES = 36     # outer IPv4, UDP, GUE and private data header; 4 more for each hop after the first


# ---- hash: the flow's chosen fields -> 64 bits ---------------------------------------------------------------------

cdef inline uint64_t flow_hash(const Table* table, const Packet* packet, uint32_t fields) noexcept nogil:
    """SipHash-2-4 over the fields in their fixed order (docs/protocol/table.md, flow hash)."""
    cdef uint8_t message[MESSAGE_BYTES]
    cdef size_t length = 0
    cdef unsigned long long words[2]
    if fields == HASH_SRC_ADDR:  # the default, with its two lengths, is worth code of its own
        if packet.address_bytes == 4:
            words[0] = 0
            memcpy(words, packet.source, 4)
            return siphash(table.hash_key.k0, table.hash_key.k1, NULL, 0, words[0] | (<uint64_t>4 << 56))
        memcpy(words, packet.source, 16)
        return siphash(table.hash_key.k0, table.hash_key.k1, words, 2, <uint64_t>16 << 56)
    if fields & HASH_SRC_ADDR:
        memcpy(message, packet.source, packet.address_bytes)
        length = packet.address_bytes
    if fields & HASH_DST_ADDR:
        memcpy(message + length, packet.destination, packet.address_bytes)
        length += packet.address_bytes
    if fields & HASH_SRC_PORT:
        memcpy(message + length, packet.ports, 2)
        length += 2
    if fields & HASH_DST_PORT:
        memcpy(message + length, packet.ports + 2, 2)
        length += 2
    return siphash24(table.hash_key, message, length)


# ---- row: hash -> hops ---------------------------------------------------------------------------------------------

cdef inline const uint16_t* row_of(const Table* table, uint64_t hash) noexcept nogil:
    cdef uint32_t row = <uint32_t>hash & table.row_mask
    # Chunks are GLB_CHUNK_ROWS * GLB_MAX_STRIDE entries apart, of which a stride of 2 uses half.
    return table.rows + <size_t>(row // GLB_CHUNK_ROWS) * (GLB_CHUNK_ROWS * GLB_MAX_STRIDE) + (row % GLB_CHUNK_ROWS) * table.stride


cdef inline void copy_rows(uint16_t* target, const uint16_t* rows, uint32_t n_rows, uint32_t stride) noexcept nogil:
    """Put rows where `row_of` looks for them: each chunk starts at a place of its own, whatever the stride."""
    cdef uint32_t row = 0, n
    while row < n_rows:
        n = min(<uint32_t>GLB_CHUNK_ROWS, n_rows - row)
        memcpy(target + <size_t>(row // GLB_CHUNK_ROWS) * (GLB_CHUNK_ROWS * GLB_MAX_STRIDE), rows + <size_t>row * stride,
               n * stride * 2)
        row += n


cdef inline int list_hops(const Plan* plan, const Table* table, const Packet* packet, uint16_t* hops) noexcept nogil:
    """Backend indexes of the packet's row, then of its alternative row; returns how many."""
    cdef const uint16_t* row = row_of(table, packet.hash)
    cdef int n = 0
    cdef uint32_t i
    cdef int k
    for i in range(table.stride):
        if row[i] == GLB_NO_HOP:
            break
        hops[n] = row[i]
        n += 1
    if not plan.alt_hash_fields:
        return n
    row = row_of(table, flow_hash(table, packet, plan.alt_hash_fields))
    for i in range(table.stride):
        if row[i] == GLB_NO_HOP:
            break
        if not table.keep_duplicates:
            for k in range(n):
                if hops[k] == row[i]:
                    break
            else:
                hops[n] = row[i]
                n += 1
            continue
        hops[n] = row[i]
        n += 1
    return n


# ---- encapsulate: front before the packet --------------------------------------------------------------------------

cdef inline uint8_t encapsulate(const Plan* plan, Packet* packet, Counters* counters) noexcept nogil:
    cdef const Table* table = &plan.tables[packet.table]
    cdef uint16_t hops[MAX_LIST]
    cdef int n = list_hops(plan, table, packet, hops)
    packet.egress = 0
    if n == 0:
        return GLB_DROP_NO_BACKEND
    cdef const glb_backend* primary = &table.backends[hops[0]]
    cdef uint32_t further = n - 1
    cdef uint32_t overhead = OVERHEAD_BYTES + 4 * further
    cdef uint32_t outer_length = overhead + packet.ip_length
    cdef uint32_t mtu_bytes = primary.mtu_bytes
    if outer_length > mtu_bytes:
        packet.room = mtu_bytes - overhead if mtu_bytes > overhead else 0
        packet.answerable &= mtu_bytes < MTU_UNKNOWN
        return GLB_DROP_TOO_BIG
    cdef uint64_t next_hop = primary.next_hop
    if not (next_hop >> GLB_NEXT_HOP_KNOWN_BIT) & 1:
        return GLB_DROP_NO_NEXT_HOP
    cdef uint8_t* ip = packet.frame + packet.link_bytes - overhead
    cdef uint8_t* ethernet = packet.frame - overhead
    cdef uint32_t i
    # The VLAN tags stay: copied before the front overwrites them, and if there are none, overwritten by it.
    memcpy(ethernet + 12, packet.frame + 12, GLB_MAX_TAGS * 4)
    if unlikely(next_hop >> GLB_NEXT_HOP_EGRESS_BIT):
        # Tags are the trunk's that the frame came in by: they do not go to another interface.
        packet.egress = next_hop >> GLB_NEXT_HOP_EGRESS_BIT
        ethernet = ip - ETHERNET_BYTES
        memcpy(ethernet + 6, plan.generation.egresses[packet.egress].source_mac, 6)
    elif plan.source_from_frame:
        # The front ends where the frame's own Ethernet header did: copy its destination before that is overwritten.
        memcpy(ethernet + 6, packet.frame, 6)
    else:
        memcpy(ethernet + 6, plan.source_mac, 6)
    memcpy(ethernet, &next_hop, 6)
    store_be16(ip - 2, GLB_ETH_P_IP)
    ip[0] = 0x45
    ip[1] = 0
    store_be16(ip + 2, outer_length)
    store_be16(ip + 4, 0)
    store_be16(ip + 6, 0x4000)  # don't fragment
    ip[8] = GLB_OUTER_TTL
    ip[9] = GLB_PROTO_UDP
    store_be16(ip + 10, fold_checksum(plan.fixed_sum + primary.address_sum + outer_length))
    memcpy(ip + 12, plan.source_ip, 4)
    memcpy(ip + 16, primary.address, 4)
    store_be16(ip + 20, GLB_SOURCE_PORT_BASE | ((<uint16_t>packet.hash ^ packet.hint) & 0x7fff))
    store_be16(ip + 22, GLB_GUE_PORT)
    store_be16(ip + 24, outer_length - FRONT_IPV4_BYTES)
    store_be16(ip + 26, 0)  # no UDP checksum: the inner packet has its own (RFC 6935 does not concern IPv4)
    ip[28] = 1 + further
    ip[29] = packet.inner_protocol
    memset(ip + 30, 0, 5)  # GUE flags, private data type, next hop
    ip[35] = further
    for i in range(further):
        memcpy(ip + OVERHEAD_BYTES + 4 * i, table.backends[hops[1 + i]].address, 4)
    counters.tables[2 * packet.table] += 1
    counters.tables[2 * packet.table + 1] += packet.length
    counters.backends[primary.counter & (GLB_MAX_BACKENDS - 1)] += 1
    packet.length += packet.frame - ethernet
    packet.frame = ethernet
    packet.sends = True
    return GLB_FORWARD
