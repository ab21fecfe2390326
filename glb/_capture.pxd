"""Packet capture in a worker: its ring, and the batch function that fills it (the kernel's half: bpf/capture.bpf.h)."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from glb._fastpath cimport (
    BATCH, GLB_BANK_CHUNKS, GLB_DROP_STALE_BIND, GLB_HOST, GLB_NO_TABLE, Counters, Packet, Plan, run_batch,
)
from glb._machine cimport glb_acquire_u64, glb_release_u64
from glb._wire cimport GLB_PROTO_IPIP
from glb._too_big cimport glb_monotonic_ns


cdef extern from "glb_capture.h" nogil:
    enum:
        GLB_ANY_TABLE
        GLB_LOST_NO_SOCKET
        GLB_CAPTURE_LINK_BYTES
        GLB_CAPTURE_MAX_SNAP
        GLB_BY_XDP
        GLB_BY_CYTHON

    struct glb_capture:
        uint32_t tables[2]
        uint32_t address_bytes
        uint32_t sample
        uint32_t snap_bytes
        uint64_t client[2]
        uint64_t mask[2]
        uint64_t missed
        uint64_t until_ns

    struct glb_captured:
        uint64_t at_ns
        uint64_t hash
        uint32_t received_bytes
        uint32_t sent_bytes
        uint32_t kept_bytes
        uint32_t row
        uint16_t table
        uint16_t ip_at
        uint8_t bank
        uint8_t verdict
        uint8_t engine
        uint8_t link_bytes
        uint8_t link[GLB_CAPTURE_LINK_BYTES]

    bint glb_client_wanted(const glb_capture* capture, uint64_t high, uint64_t low, uint32_t address_bytes)


cdef enum:
    TAP_BYTES = 1 << 22  # of a worker's ring: some 25,000 short packets, 2,500 whole ones


cdef struct Received:
    uint8_t* frame
    uint32_t length
    uint8_t link[GLB_CAPTURE_LINK_BYTES]  # what stands at the frame's start


cdef struct Tap:
    const glb_capture* wanted  # shared with the kernel
    uint8_t* ring       # TAP_BYTES; whole records one after the other, each of 8 bytes times n
    uint64_t head       # bytes put in since the start; the worker's
    uint64_t tail       # bytes taken out; the reader's
    uint64_t missed     # packets for which there was no room
    uint64_t random     # never 0
    Received received[BATCH]


cdef inline void run_tapped(Tap* tap, const Plan* plan, Counters* counters, Packet* packets, int n) noexcept nogil:
    """As run_batch; the packets that are wanted go into the tap's ring. Without a tap (NULL) that is one test a batch."""
    cdef int i
    cdef uint64_t at_ns
    if tap == NULL:
        run_batch(plan, counters, packets, n)
        return
    for i in range(n):
        note_received(&tap.received[i], &packets[i])
    run_batch(plan, counters, packets, n)
    at_ns = glb_monotonic_ns()
    if at_ns >= glb_acquire_u64(&tap.wanted.until_ns):
        return
    for i in range(n):
        if is_wanted(tap, plan, &packets[i], &tap.received[i]):
            put_packet(tap, plan, &packets[i], &tap.received[i], at_ns)


cdef inline void note_received(Received* received, Packet* packet) noexcept nogil:
    """Keep what encapsulation overwrites, and mark what parsing may leave unset."""
    received.frame = packet.frame
    received.length = packet.length
    memcpy(received.link, packet.frame, min(packet.length, <uint32_t>GLB_CAPTURE_LINK_BYTES))
    packet.table = GLB_NO_TABLE
    packet.hash = 0


cdef inline bint is_in_second_bank(const Plan* plan, const Packet* packet) noexcept nogil:
    return packet.table != GLB_NO_TABLE and plan.generation.tables[packet.table].first_chunk >= GLB_BANK_CHUNKS


cdef inline bint is_wanted(Tap* tap, const Plan* plan, const Packet* packet, const Received* received) noexcept nogil:
    cdef const glb_capture* wanted = tap.wanted
    cdef const uint8_t* source
    cdef uint32_t address_bytes
    cdef uint32_t table = wanted.tables[is_in_second_bank(plan, packet)]
    cdef uint64_t client[2]
    if table != GLB_ANY_TABLE and (packet.table == GLB_NO_TABLE or table != packet.table):
        return False
    if wanted.address_bytes:
        if not packet.source_at:
            return False
        source = received.frame + packet.source_at
        address_bytes = 4 if packet.inner_protocol == GLB_PROTO_IPIP else 16
        if address_bytes == 16:
            memcpy(client, source, 16)
        else:
            memset(client, 0, 10)
            memset(<uint8_t*>client + 10, 0xff, 2)
            memcpy(<uint8_t*>client + 12, source, 4)
        if not glb_client_wanted(wanted, client[0], client[1], address_bytes):
            return False
    if wanted.sample <= 1:
        return True
    tap.random ^= tap.random << 13  # xorshift64 (Marsaglia)
    tap.random ^= tap.random >> 7
    tap.random ^= tap.random << 17
    return tap.random % wanted.sample == 0


cdef inline void put_packet(
    Tap* tap, const Plan* plan, const Packet* packet, const Received* received, uint64_t at_ns
) noexcept nogil:
    cdef glb_captured taken
    cdef const uint8_t* start = received.frame
    cdef uint64_t head = tap.head, room
    memset(&taken, 0, sizeof(taken))
    taken.at_ns = at_ns
    taken.received_bytes = received.length
    taken.kept_bytes = min(received.length, tap.wanted.snap_bytes)
    taken.engine = GLB_BY_CYTHON
    # A worker cannot give a frame to the host: it drops it (glb/_xsk.pyx).
    taken.verdict = GLB_DROP_STALE_BIND if packet.verdict == GLB_HOST else packet.verdict
    taken.table = packet.table
    if packet.table != GLB_NO_TABLE:
        taken.bank = is_in_second_bank(plan, packet)
        taken.hash = packet.hash
        taken.row = <uint32_t>packet.hash & plan.tables[packet.table].row_mask
    if packet.sends:
        start = packet.frame
        taken.sent_bytes = packet.length
        taken.link_bytes = packet.link_bytes
        memcpy(taken.link, received.link, packet.link_bytes)
        taken.ip_at = received.frame + packet.link_bytes - start
        taken.kept_bytes = taken.ip_at + min(received.length, tap.wanted.snap_bytes) - packet.link_bytes
    room = TAP_BYTES - (head - glb_acquire_u64(&tap.tail))
    if record_bytes(taken.kept_bytes) > room:
        tap.missed += 1
        return
    put_bytes(tap, head, <const uint8_t*>&taken, sizeof(taken))
    put_bytes(tap, head + sizeof(taken), start, taken.kept_bytes)
    glb_release_u64(&tap.head, head + record_bytes(taken.kept_bytes))


cdef inline uint64_t record_bytes(uint32_t kept_bytes) noexcept nogil:
    return (sizeof(glb_captured) + kept_bytes + 7) & ~<uint64_t>7


cdef inline void put_bytes(Tap* tap, uint64_t at, const uint8_t* bytes, uint32_t n) noexcept nogil:
    """Into the ring, round its end."""
    cdef uint32_t place = at % TAP_BYTES
    cdef uint32_t first = min(n, TAP_BYTES - place)
    memcpy(tap.ring + place, bytes, first)
    memcpy(tap.ring, bytes + first, n - first)
