"""The answer to a packet whose tunnel packet would exceed the path MTU (docs/operate/mtu.md): made in place of the frame.

ICMP "fragmentation needed" (RFC 792, RFC 1191; also where the packet allows fragments: a director makes none) or ICMPv6
"packet too big" (RFC 4443 section 3.2). What is never answered: RFC 1812 section 4.3.2.7 and RFC 4443 section 2.4 (e).
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from glb._fastpath cimport UNLIMITED, Counters, Packet, Plan
from glb._wire cimport (
    GLB_OUTER_TTL, GLB_PROTO_ICMP, GLB_PROTO_ICMPV6, GLB_PROTO_IPIP, fold_checksum, store_be16, store_be32, sum_be16,
)


cdef extern from *:
    """
    #include <time.h>
    static inline unsigned long long glb_monotonic_ns(void)
    {
        struct timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        return now.tv_sec * 1000000000ULL + now.tv_nsec;
    }
    """
    uint64_t glb_monotonic_ns() nogil


cdef enum:
    IPV4_ANSWER_BYTES = 576    # at most, quote included (RFC 1812 section 4.3.2.3)
    IPV6_ANSWER_BYTES = 1280   # the same (RFC 4443 section 2.4 (c))
    IPV4_LEAST_MTU = 68        # no sender goes below (RFC 791), so no less is stated
    IPV6_LEAST_MTU = 1280      # the same (RFC 8200 section 5); less would be ignored (RFC 8201 section 4)
    IPV4_FRONT_BYTES = 28      # IPv4 and ICMP header before the quote
    IPV6_FRONT_BYTES = 48
    SECOND_NS = 1000000000


cdef inline void answer_too_big(const Plan* plan, Packet* packet, Counters* counters) noexcept nogil:
    """Turn the frame into the answer to its sender, who may send `packet.room` bytes.

    Sets `packet.sends` where there is one to send. The packet itself is dropped, and counted, in any case.
    """
    cdef bint ipv4 = packet.inner_protocol == GLB_PROTO_IPIP
    cdef uint8_t* ip = packet.frame + packet.link_bytes
    cdef uint32_t mtu_bytes = max(<uint32_t>packet.room, <uint32_t>(IPV4_LEAST_MTU if ipv4 else IPV6_LEAST_MTU))
    if not packet.answerable or packet.ip_length <= mtu_bytes:  # smaller than any sender may be asked to send
        return
    if (packet.frame[0] | packet.frame[6]) & 1:  # to or from more than one station
        return
    if not (is_one_host_ipv4(ip + 12) if ipv4 else is_one_host_ipv6(ip + 8)):
        return
    if not allow_answer(plan, counters):
        counters.answers_limited += 1
        return
    cdef uint32_t front = IPV4_FRONT_BYTES if ipv4 else IPV6_FRONT_BYTES
    cdef uint32_t most = IPV4_ANSWER_BYTES if ipv4 else IPV6_ANSWER_BYTES
    cdef uint32_t quote = min(packet.ip_length, most - front)
    cdef uint8_t* frame = packet.frame - front
    # The new headers end where the quote begins: copy from the old link header before they overwrite it.
    memcpy(frame, packet.frame + 6, 6)
    memcpy(frame + 6, packet.frame, 6)
    memcpy(frame + 12, packet.frame + 12, packet.link_bytes - 12)
    if ipv4:
        write_icmpv4(ip, quote, mtu_bytes)
    else:
        write_icmpv6(ip, quote, mtu_bytes)
    packet.frame = frame
    packet.length = packet.link_bytes + front + quote
    packet.sends = True
    counters.answers_sent += 1


cdef inline bint allow_answer(const Plan* plan, Counters* counters) noexcept nogil:
    """A token bucket of one second's answers, kept as the time at which it would be full."""
    cdef uint64_t now, full_at
    if plan.answers_per_s == UNLIMITED:
        return True
    if plan.answers_per_s == 0:
        return False
    now = glb_monotonic_ns()
    full_at = max(counters.bucket_full_at_ns, now) + SECOND_NS // plan.answers_per_s
    if full_at - now > SECOND_NS:
        return False
    counters.bucket_full_at_ns = full_at
    return True


cdef inline bint is_one_host_ipv4(const uint8_t* source) noexcept nogil:
    """Neither unspecified (0/8), loopback, multicast, reserved nor broadcast."""
    return source[0] != 0 and source[0] != 127 and source[0] < 224


cdef inline bint is_one_host_ipv6(const uint8_t* source) noexcept nogil:
    """Neither unspecified, loopback nor multicast."""
    cdef int i
    if source[0] == 0xff:
        return False
    for i in range(15):
        if source[i]:
            return True
    return source[15] > 1


cdef inline void write_icmpv4(uint8_t* quoted, uint32_t quote, uint32_t mtu_bytes) noexcept nogil:
    """IPv4 and ICMP header right before the packet quoted, by which they are addressed: from the VIP to the sender."""
    cdef uint8_t* icmp = quoted - 8
    cdef uint8_t* ip = icmp - 20
    ip[0] = 0x45
    ip[1] = 0xc0  # precedence "internetwork control" (RFC 1812 section 4.3.2.5)
    store_be16(ip + 2, IPV4_FRONT_BYTES + quote)
    store_be16(ip + 4, 0)
    store_be16(ip + 6, 0x4000)  # don't fragment: needs no identification (RFC 6864)
    ip[8] = GLB_OUTER_TTL
    ip[9] = GLB_PROTO_ICMP
    store_be16(ip + 10, 0)
    memcpy(ip + 12, quoted + 16, 4)
    memcpy(ip + 16, quoted + 12, 4)
    store_be16(ip + 10, fold_checksum(sum_be16(ip, 20, 0)))
    icmp[0] = 3
    icmp[1] = 4
    memset(icmp + 2, 0, 4)
    store_be16(icmp + 6, mtu_bytes)
    store_be16(icmp + 2, fold_checksum(sum_be16(icmp, 8 + quote, 0)))


cdef inline void write_icmpv6(uint8_t* quoted, uint32_t quote, uint32_t mtu_bytes) noexcept nogil:
    """The same with IPv6."""
    cdef uint8_t* icmp = quoted - 8
    cdef uint8_t* ip = icmp - 40
    store_be32(ip, 0x60000000)
    store_be16(ip + 4, 8 + quote)
    ip[6] = GLB_PROTO_ICMPV6
    ip[7] = GLB_OUTER_TTL
    memcpy(ip + 8, quoted + 24, 16)
    memcpy(ip + 24, quoted + 8, 16)
    icmp[0] = 2
    icmp[1] = 0
    store_be16(icmp + 2, 0)
    store_be32(icmp + 4, mtu_bytes)
    # The pseudo-header (RFC 8200 section 8.1): both addresses, the length and the protocol.
    store_be16(icmp + 2, fold_checksum(sum_be16(ip + 8, 32 + 8 + quote, 8 + quote + GLB_PROTO_ICMPV6)))
