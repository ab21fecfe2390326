"""The packet path's data: what it forwards by (Plan), what it counts (Counters), and one packet on its way (Packet)."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from glb._siphash cimport SipKey


cdef extern from "glb_layout.h" nogil:
    enum:
        GLB_PREFIX_SLOTS
        GLB_MAX_PREFIXES
        GLB_MAX_PROBES
        GLB_MAX_SEGMENTS
        GLB_NEAR_SEGMENTS
        GLB_MAX_LENGTHS
        GLB_NO_TABLE
        GLB_MAX_EXTENSION_HEADERS
        GLB_MAX_TAGS
        GLB_MAX_TABLES
        GLB_MAX_BACKENDS
        GLB_CHUNK_ROWS
        GLB_CHUNK_BYTES
        GLB_MAX_STRIDE
        GLB_BANK_CHUNKS
        GLB_NO_HOP
        GLB_NEXT_HOP_KNOWN_BIT
        GLB_NEXT_HOP_EGRESS_BIT
        GLB_MAX_EGRESSES

    enum:  # enum glb_verdict
        GLB_FORWARD
        GLB_HOST
        GLB_DROP_MALFORMED
        GLB_DROP_TRUNCATED
        GLB_DROP_FRAGMENT
        GLB_DROP_TOO_BIG
        GLB_DROP_NO_NEXT_HOP
        GLB_DROP_NO_BACKEND
        GLB_DROP_STALE_BIND
        GLB_N_VERDICTS

    struct glb_segment:
        uint32_t first
        uint32_t last
        uint32_t table

    struct glb_prefix:
        uint64_t high
        uint64_t low
        uint8_t length
        uint8_t used
        uint16_t echo_table
        uint16_t fragment_tables[2]
        uint32_t first_segment
        uint32_t n_segments
        glb_segment near[GLB_NEAR_SEGMENTS]

    struct glb_backend:
        uint64_t next_hop
        uint32_t mtu_bytes
        uint32_t header_sum
        uint8_t address[4]
        uint32_t counter
        uint32_t slot

    struct glb_egress:
        uint32_t ifindex
        uint8_t source_mac[6]
        uint8_t redirects

    struct glb_table:
        uint64_t key0
        uint64_t key1
        uint32_t row_mask
        uint32_t stride
        uint32_t first_chunk
        uint32_t first_backend
        uint32_t n_backends
        uint32_t keep_duplicates

    struct glb_generation:
        uint64_t seed
        uint32_t forward_echo
        uint32_t n_prefixes
        uint32_t n_tables
        uint32_t slot_mask
        uint8_t lengths[2][GLB_MAX_LENGTHS]
        glb_table tables[GLB_MAX_TABLES]
        glb_egress egresses[GLB_MAX_EGRESSES]
        glb_backend backends[GLB_MAX_BACKENDS]
        glb_prefix slots[GLB_PREFIX_SLOTS]
        glb_segment segments[GLB_MAX_SEGMENTS]

    struct glb_count:
        uint64_t packets
        uint64_t bytes

    struct glb_options:
        uint32_t accelerate
        uint32_t hash_fields
        uint32_t alt_hash_fields
        uint32_t ifindex
        uint64_t front[5]

    uint32_t glb_prefix_slot(uint64_t high, uint64_t low, uint32_t length, uint64_t seed)


cdef extern from "_flows.h" nogil:
    enum:
        BATCH "GLB_BATCH"
        GLB_FLOW_WORDS

    struct glb_flows:
        uint32_t count
        uint32_t n_words
        uint64_t k0[BATCH]
        uint64_t k1[BATCH]
        uint64_t words[GLB_FLOW_WORDS][BATCH]
        void* packets[BATCH]


cdef enum:
    HEADROOM = 128        # free bytes wanted before each frame; a front of 8 hops and 2 tags is 86 bytes, 22 of them replace the frame's
    MAX_LIST = 8          # hops of a row and of its alternative row
    MTU_UNKNOWN = 0xffff  # of a path: no packet is too big for it but by the length field of IPv4


cdef extern from *:
    const uint32_t UNLIMITED "UINT32_MAX"  # answers_per_s


cdef enum HashField:
    HASH_SRC_ADDR = 1
    HASH_DST_ADDR = 2
    HASH_SRC_PORT = 4
    HASH_DST_PORT = 8


cdef struct Table:
    SipKey hash_key
    uint16_t* rows         # n_rows x stride backend indexes, GLB_NO_HOP where unused; in Forwarding's memory of rows
    glb_backend* backends  # in the generation
    uint32_t n_backends
    uint32_t row_mask      # n_rows - 1
    uint32_t stride        # entries a row takes: 2 or 4
    bint keep_duplicates   # row rule glb2: an alternative row's hops are appended even if already listed


cdef struct Counters:
    uint64_t verdicts[GLB_N_VERDICTS]  # frames; written by one worker, read by anyone
    uint64_t* drops        # frames by table, then verdict, if they got so far; after the tables, those of none; owned
    glb_count* backends    # frames forwarded with the backend as outer destination, per backend of all tables; owned
    uint64_t answers_sent     # to senders of packets that are too big
    uint64_t answers_limited  # not sent: the bucket was empty
    uint64_t bucket_full_at_ns  # CLOCK_MONOTONIC; the worker's own


cdef struct Plan:
    Table* tables          # owned
    glb_generation* generation  # binds and backends, shared with the kernel; not owned
    uint32_t n_tables
    uint32_t n_backends    # of all tables together
    uint32_t hash_fields   # HashField bits
    uint32_t alt_hash_fields  # 0: none
    void (*hash)(const glb_flows* flows, uint64_t* hashes) noexcept nogil  # the engine's
    bint source_from_frame  # the frame sent takes the received frame's destination as its source MAC
    uint64_t front[5]      # as glb_options.front
    uint32_t fixed_sum     # of the 16-bit words that every outer header shares
    uint32_t answers_per_s  # to packets that are too big, of each worker; 0: none, UNLIMITED: all


cdef struct Packet:
    uint8_t* frame         # first byte of the Ethernet header; HEADROOM bytes before it may be overwritten
    uint32_t length        # bytes of the frame, without FCS
    uint32_t ip_length     # bytes of the IP packet as its header says, checked against the frame
    # Eight bytes that are constants of most packets, side by side, so that one store sets them (_parse.pxd, begin):
    uint8_t verdict        # glb_verdict
    uint8_t inner_protocol  # 4 or 41
    uint8_t link_bytes     # of the frame before the IP header: Ethernet and its VLAN tags
    uint8_t answerable     # flag: neither a later fragment nor an ICMP error, so its sender may be told that it is too big
    uint8_t sends          # flag: `frame` is now one to send, the tunnel packet or an answer to the sender
    uint8_t egress         # index of the interface it leaves by; 0: the one it came in by
    uint16_t source_at     # bytes from the begin of the frame received to the address of the flow's client; 0: none was found
    uint16_t table         # index
    uint16_t hint_be       # mixed into the outer UDP source port, wire order
    uint16_t room          # of a packet that is too big: bytes of IP packet that fit the path beside the tunnel's front
    uint64_t hash


# What a packet's row depends on. Between two stages of one packet only, so it stays in registers.
cdef struct Flow:
    const uint8_t* source  # client's address (ICMP errors: of the quoted packet, reversed), inside the frame
    const uint8_t* destination
    uint32_t ports         # source and destination port, a word in wire order


cdef void run_batch(const Plan* plan, Counters* counters, Packet* packets, int n) noexcept nogil


cdef class Forwarding:
    cdef Plan* plan
    cdef list _names       # per table: (name, (backend address, ...))
    cdef list _counters    # CounterBlock of every worker that used this plan
    cdef readonly object generation_memory  # holds *plan.generation; has an `address`
    cdef readonly object rows_memory        # holds the rows of all tables; has an `address`
    cdef readonly int bank
    cdef uint32_t _last_egress
    cpdef CounterBlock new_counters(self)
    cdef Plan _plan_by(self, engine) except *
    cdef _fill_tables(self, tables, memory)
    cdef _fill_binds(self, prefixes, bint forward_echo)
    cdef bint _place(self, list placed, uint64_t seed)


cdef class CounterBlock:
    cdef Counters counters
    cdef Forwarding owner
