"""Flow hashes of a batch, and from them the rows: SipHash-2-4 of several packets at once (_flow_lanes.h)."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from glb._fastpath cimport (
    BATCH, GLB_CHUNK_ROWS, GLB_FLOW_WORDS, GLB_MAX_STRIDE, HASH_DST_ADDR, HASH_DST_PORT, HASH_SRC_ADDR, HASH_SRC_PORT,
    Packet, Plan, Table, glb_flows,
)
from glb._machine cimport glb_prefetch
from glb._wire cimport load_word32, load_word64


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


cdef inline void start_flows(glb_flows* flows) noexcept nogil:
    """None yet, of either family."""
    flows[0].count = 0
    flows[1].count = 0


cdef inline void put_flow(glb_flows* flows, Packet* packet, uint32_t fields) noexcept nogil:
    """Add a packet's flow: its chosen fields in their fixed order (docs/protocol/table.md, flow hash) as words.

    Copied here and now: by the time that all are hashed, the frame may have left the first-level cache.
    """
    cdef uint32_t at = flows.count
    cdef uint64_t words[GLB_FLOW_WORDS]
    cdef uint8_t* message = <uint8_t*>words
    cdef uint32_t length, i
    flows.count = at + 1
    flows.packets[at] = packet
    flows.k0[at] = packet.by.hash_key.k0
    flows.k1[at] = packet.by.hash_key.k1
    if fields == HASH_SRC_ADDR:  # the default, with its two lengths, is worth code of its own
        if packet.address_bytes == 4:
            flows.words[0][at] = load_word32(packet.source) | <uint64_t>4 << 56
            flows.n_words = 1
        else:
            flows.words[0][at] = load_word64(packet.source)
            flows.words[1][at] = load_word64(packet.source + 8)
            flows.words[2][at] = <uint64_t>16 << 56
            flows.n_words = 3
        return
    length = 0
    memset(words, 0, sizeof(words))
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
    flows.n_words = length // 8 + 1
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


cdef inline void find_rows(const glb_flows* flows, const Plan* plan, bint alternative) noexcept nogil:
    """Hash all flows: their packets' hash and row, or their alternative row; the rows are fetched."""
    cdef uint64_t hashes[BATCH]
    cdef const uint16_t* row
    cdef uint32_t i
    cdef Packet* packet
    if not flows.count:
        return
    plan.hash(flows, hashes)
    for i in range(flows.count):
        packet = <Packet*>flows.packets[i]
        row = row_of(packet.by, hashes[i])
        glb_prefetch(row)
        if alternative:
            packet.alternative_row = row
        else:
            packet.hash = hashes[i]
            packet.row = row
