"""A batch of packets through the stages: parse (_parse.pxd), hash and row (_flows.pxd), encapsulate (_encapsulate.pxd)."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from glb._counters cimport count_drop
from glb._encapsulate cimport encapsulate, fetch_headers
from glb._fastpath cimport BATCH, GLB_DROP_FRAGMENT, GLB_DROP_TOO_BIG, GLB_FORWARD, Counters, Packet, Plan, glb_flows
from glb._flows cimport find_rows, start_flows
from glb._machine cimport unlikely
from glb._parse cimport parse
from glb._too_big cimport answer_too_big
from glb._wire cimport GLB_PROTO_IPIP, GLB_PROTO_IPV6


cdef enum:
    AHEAD = 8  # packets that a frame's headers are fetched before it is parsed


cdef inline void run_stages(const Plan* plan, Counters* counters, Packet* packets, int n) noexcept nogil:
    """Take up to BATCH packets through all stages, one stage after the other; each ends with a verdict, counted once."""
    cdef int i
    cdef Packet* packet
    cdef glb_flows flows[2]        # by family: [1] is IPv4
    cdef glb_flows alternatives[2]
    for i in range(min(n, AHEAD)):
        fetch_headers(&packets[i])
    start_flows(flows, plan.hash_fields)
    start_flows(alternatives, plan.alt_hash_fields)
    for i in range(n):
        if i + AHEAD < n:
            fetch_headers(&packets[i + AHEAD])
        packet = &packets[i]
        if unlikely(parse(plan, packet, flows, alternatives) != GLB_FORWARD):
            packet.sends = False
            counters.verdicts[packet.verdict] += 1
            if packet.verdict == GLB_DROP_FRAGMENT:
                count_drop(plan, counters, packet)
    send_flows(plan, counters, &flows[0], &alternatives[0], GLB_PROTO_IPV6)
    send_flows(plan, counters, &flows[1], &alternatives[1], GLB_PROTO_IPIP)


cdef inline void send_flows(
    const Plan* plan, Counters* counters, const glb_flows* flows, const glb_flows* alternatives, uint8_t inner_protocol
) noexcept nogil:
    """Encapsulate what one family has in the batch."""
    cdef uint64_t hashes[BATCH]
    cdef uint64_t others[BATCH]
    cdef const uint16_t* rows[BATCH]
    cdef const uint16_t* alternative_rows[BATCH]
    cdef uint32_t i, forwarded = flows.count
    cdef uint8_t verdict
    cdef Packet* packet
    if not flows.count:
        return
    find_rows(flows, plan, hashes, rows)
    if plan.alt_hash_fields:
        find_rows(alternatives, plan, others, alternative_rows)
    for i in range(flows.count):
        packet = <Packet*>flows.packets[i]
        packet.hash = hashes[i]
        verdict = encapsulate(plan, packet, rows[i], alternative_rows[i], counters, inner_protocol)
        if unlikely(verdict != GLB_FORWARD):  # keeps the answer's code out of the loop
            packet.verdict = verdict
            packet.sends = False
            forwarded -= 1
            counters.verdicts[verdict] += 1
            count_drop(plan, counters, packet)
            if verdict == GLB_DROP_TOO_BIG:
                answer_too_big(plan, packet, counters)
    counters.verdicts[GLB_FORWARD] += forwarded
