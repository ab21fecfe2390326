"""Flow hashes of a batch, and from them the rows: SipHash-2-4 of several packets at once (_flow_lanes.h)."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from glb._fastpath cimport (
    BATCH, GLB_CHUNK_ROWS, GLB_FLOW_WORDS, GLB_MAX_STRIDE, HASH_DST_ADDR, HASH_DST_PORT, HASH_SRC_ADDR, HASH_SRC_PORT,
    Flow, Packet, Plan, Table, glb_flows,
)
from glb._machine cimport glb_prefetch, unlikely
from glb._wire cimport load_word32, load_word64, store_word16


cdef extern from "_flow_engines.h" nogil:
    enum:
        GLB_N_FLOW_ENGINES

    struct glb_flow_engine:
        const char* name
        void hash(const glb_flows*, uint64_t*) noexcept nogil

    const glb_flow_engine glb_flow_engines[]


cdef inline const glb_flow_engine* engine_named(name, available) except NULL:
    """The engine of that name, which must be among those that this machine can do (glb._rendezvous.ENGINES)."""
    cdef int i
    for i in range(GLB_N_FLOW_ENGINES):
        if glb_flow_engines[i].name.decode() == name and name in available:
            return &glb_flow_engines[i]
    raise ValueError(f"no engine {name!r}; this machine can do {', '.join(available)}")


cdef inline uint32_t message_bytes(uint32_t fields, bint ipv4) noexcept nogil:
    """Length of what is hashed."""
    cdef uint32_t address_bytes = 4 if ipv4 else 16
    return (address_bytes * (<bint>(fields & HASH_SRC_ADDR) + <bint>(fields & HASH_DST_ADDR))
            + 2 * (<bint>(fields & HASH_SRC_PORT) + <bint>(fields & HASH_DST_PORT)))


cdef inline void start_flows(glb_flows* flows, uint32_t fields) noexcept nogil:
    """None yet, of either family: flows[1] is that of IPv4."""
    cdef int i
    for i in range(2):
        flows[i].count = 0
        flows[i].n_words = message_bytes(fields, i) // 8 + 1


cdef inline void put_flows(
    const Plan* plan, Packet* packet, const Flow* flow, glb_flows* flows, glb_flows* alternatives, bint ipv4
) noexcept nogil:
    put_flow(flows, packet, flow, &plan.tables[packet.table], plan.hash_fields, ipv4)
    if unlikely(plan.alt_hash_fields):
        put_flow(alternatives, packet, flow, &plan.tables[packet.table], plan.alt_hash_fields, ipv4)


cdef inline void put_flow(
    glb_flows* flows, Packet* packet, const Flow* flow, const Table* table, uint32_t fields, bint ipv4
) noexcept nogil:
    """Add a packet's flow: its chosen fields in their fixed order (docs/protocol/table.md, flow hash) as words.

    Copied here and now: by the time that all are hashed, the frame may have left the first-level cache.
    """
    cdef uint32_t at = flows.count
    flows.count = at + 1
    flows.packets[at] = packet
    flows.k0[at] = table.hash_key.k0
    flows.k1[at] = table.hash_key.k1
    if unlikely(fields != HASH_SRC_ADDR):
        put_fields(flows, at, flow, fields, ipv4)
    elif ipv4:  # the default, with its two lengths, is worth code of its own
        flows.words[0][at] = load_word32(flow.source) | <uint64_t>4 << 56
    else:
        flows.words[0][at] = load_word64(flow.source)
        flows.words[1][at] = load_word64(flow.source + 8)
        flows.words[2][at] = <uint64_t>16 << 56


cdef inline void put_fields(glb_flows* flows, uint32_t at, const Flow* flow, uint32_t fields, bint ipv4) noexcept nogil:
    cdef uint64_t words[GLB_FLOW_WORDS]
    cdef uint8_t* message = <uint8_t*>words
    cdef uint32_t address_bytes = 4 if ipv4 else 16
    cdef uint32_t length = 0, i
    memset(words, 0, sizeof(words))
    if fields & HASH_SRC_ADDR:
        memcpy(message, flow.source, address_bytes)
        length = address_bytes
    if fields & HASH_DST_ADDR:
        memcpy(message + length, flow.destination, address_bytes)
        length += address_bytes
    if fields & HASH_SRC_PORT:
        store_word16(message + length, flow.ports)
        length += 2
    if fields & HASH_DST_PORT:
        store_word16(message + length, flow.ports >> 16)
        length += 2
    words[length // 8] |= <uint64_t>length << 56
    for i in range(flows.n_words):
        flows.words[i][at] = words[i]


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


cdef inline void find_rows(const glb_flows* flows, const Plan* plan, uint64_t* hashes, const uint16_t** rows) noexcept nogil:
    """Hash all flows; the rows of their tables are fetched."""
    cdef uint32_t i
    plan.hash(flows, hashes)
    for i in range(flows.count):
        rows[i] = row_of(&plan.tables[(<const Packet*>flows.packets[i]).table], hashes[i])
        glb_prefetch(rows[i])
