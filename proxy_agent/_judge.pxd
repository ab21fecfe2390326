"""The decision on one packet: what it and the memory can tell, and what the kernel's answer makes of it. Inline leaves, nogil."""

from libc.stdint cimport uint32_t, uint64_t, uint8_t

from glb._wire cimport fold_checksum, sum_be16
from proxy_agent._diag cimport TCP_STATE_LISTEN, TCP_STATE_NONE, TCP_STATE_UNKNOWN
from proxy_agent._cookie cimport UNKNOWN_COOKIE, VALID_COOKIE, Cookie
from proxy_agent._memory cimport COOKIE_MS, Memory, flow_tag, forget, note_syn, recall, remember
from proxy_agent._tunnel cimport *


cdef inline Why first_look(const Guard* guard, Memory* memory, Tunnel* t, uint8_t* packet, size_t length, uint32_t now_ms,
                           uint64_t* tag) noexcept nogil:
    """What the packet itself and the memory can tell; WHY_LOOK_UP: the kernel has to say whether `t.flow` has a socket."""
    cdef Why why = read_tunnel(packet, length, guard, t)
    if why == WHY_SYN:
        # Only a SYN of its own is answered by a cookie; a SYN+ACK answers somebody else's SYN.
        if memory.n_slots and not t.tcp_flags & TCP_ACK:
            note_syn(memory, flow_tag(memory, &t.flow), t.tcp_seq, now_ms)
        return why
    if why != WHY_LOOK_UP:
        return why
    tag[0] = flow_tag(memory, &t.flow)
    if not recall(memory, memory.recent, tag[0], now_ms):
        return WHY_LOOK_UP
    if t.tcp_flags & TCP_RST:
        forget(memory, memory.recent, tag[0])  # the stack ends the flow now
    return WHY_ICMP_ERROR if t.is_error else WHY_ESTABLISHED


cdef inline Why second_look(const Guard* guard, Memory* memory, const Tunnel* t, uint64_t tag, int state, Cookie cookie,
                            uint32_t now_ms, uint32_t remember_ms, int* hop) noexcept nogil:
    """The reason, given the state of the socket that the kernel found (TCP_STATE_NONE: none). `cookie`: whether the segment answers
    one, for those that reach a listener and `may_answer_cookie`; NO_COOKIE for all others."""
    if state == TCP_STATE_UNKNOWN:
        return WHY_LOOK_UP_FAILED
    if state != TCP_STATE_NONE and state != TCP_STATE_LISTEN:
        if remember_ms and not t.tcp_flags & TCP_RST:
            remember(memory, memory.recent, tag, now_ms, remember_ms)
        return WHY_ICMP_ERROR if t.is_error else WHY_ESTABLISHED
    if not t.is_error:
        if cookie == VALID_COOKIE:
            remember(memory, memory.cookies, tag, now_ms, COOKIE_MS)
            return WHY_SYN_COOKIE
        # What follows the cookie in a burst arrives before the stack has made the socket, often in the same batch.
        if recall(memory, memory.cookies, tag, now_ms):
            return WHY_SYN_COOKIE
        if cookie == UNKNOWN_COOKIE:
            return WHY_LOOK_UP_FAILED
    hop[0] = next_hop(guard, t)
    if hop[0] < 0:
        return WHY_LAST_RESORT
    if t.start[8] <= 1:  # TTL: the kernel, which lowers it, would answer with an ICMP error
        return WHY_TTL
    return WHY_BOUNCE


cdef inline bint is_accept(Why why) noexcept nogil:
    return why < WHY_BOUNCE


cdef inline bint fits_in_place(const Tunnel* t) noexcept nogil:
    """Whether the kernel may go on with the inner packet where the tunnel packet was.

    By then it has checked the IPv4 header and noted where it ends, for the outer one; so the inner one must end at the same
    place and be sound. Every other packet enters by the TUN device and is checked like one from a wire."""
    cdef const uint8_t* ip = t.start + t.inner_at
    return (t.family == 4 and t.inner_header == t.outer_header
            and fold_checksum(sum_be16(ip, t.inner_header, 0)) == 0)
