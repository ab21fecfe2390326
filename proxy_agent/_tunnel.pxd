"""A tunnel packet read in packet order: outer IPv4, UDP, GUE, inner packet. Inline leaves, nogil, no allocation.

`read_tunnel` ends in a reason, or in WHY_LOOK_UP with the TCP flow whose socket decides. `next_hop` and `redirect` are the bounce.
The rules are those of docs/protocol/gue.md; every byte is read through the Cursor of glb/_wire.pxd.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from glb._wire cimport (
    GLB_GUE_BASE_BYTES,
    GLB_GUE_PRIVATE_BYTES,
    GLB_PROTO_ICMP,
    GLB_PROTO_ICMPV6,
    GLB_PROTO_IPIP,
    GLB_PROTO_IPV6,
    GLB_PROTO_TCP,
    GLB_PROTO_UDP,
    Cursor,
    fold_checksum,
    left,
    load_be16,
    load_be32,
    store_be16,
    store_be32,
    sum_be16,
    take,
)


cdef enum Why:
    # The order is that of decide.REASONS.
    WHY_SYN
    WHY_ESTABLISHED
    WHY_SYN_COOKIE
    WHY_UDP
    WHY_ICMP_ERROR
    WHY_ICMP
    WHY_FRAGMENT
    WHY_LAST_RESORT
    WHY_BOUNCE
    WHY_NOT_ALLOWED
    WHY_NOT_VIP
    WHY_TTL
    WHY_UNKNOWN_PROTOCOL
    WHY_MALFORMED
    WHY_OUTER_MALFORMED
    WHY_OUTER_CHECKSUM
    WHY_OUTER_FRAGMENT
    WHY_GUE_MALFORMED
    WHY_LOOK_UP_FAILED
    WHY_UNDELIVERED
    N_REASONS
    WHY_LOOK_UP      # not a reason: the flow's socket decides
    WHY_TRANSPORT    # not a reason: a readable transport header follows


cdef enum:
    MIN_IPV4_BYTES = 20
    IPV6_BYTES = 40
    UDP_BYTES = 8
    TCP_BYTES = 20
    ICMP_BYTES = 8           # of an error: type, code, checksum, four bytes by type; then the quoted packet
    MAX_IPV6_EXTENSIONS = 8
    GUE_FRONT_BYTES = 8      # GLB_GUE_BASE_BYTES + GLB_GUE_PRIVATE_BYTES, which read_gue takes in one piece
    TCP_FIN = 0x01
    TCP_SYN = 0x02
    TCP_RST = 0x04
    TCP_ACK = 0x10
    FLOW_BYTES = 40          # of struct Flow, all of them defined: it is hashed and compared as bytes


cdef struct Range4:
    uint32_t first   # host order
    uint32_t last    # host order, inclusive
    uint32_t entry   # index of the prefix in the configuration


cdef struct Range6:
    uint64_t first_high, first_low   # host order
    uint64_t last_high, last_low     # host order, inclusive
    uint32_t entry


cdef struct AddressSet:
    Range4* v4       # ascending, no overlap; owned by the Settings object
    size_t n_v4
    Range6* v6
    size_t n_v6


cdef struct Guard:
    AddressSet sources      # allowed_sources
    bint any_source         # allowed_sources is not set
    AddressSet vips
    AddressSet own          # IPv4 addresses of this host: hops that a packet never bounces to


cdef struct Flow:
    uint8_t local[16]       # our side, wire order; IPv4 in the first 4 bytes, the rest 0
    uint8_t remote[16]      # the client
    uint8_t local_port_be[2]
    uint8_t remote_port_be[2]
    uint32_t family         # 4 or 6


cdef struct Tunnel:
    uint8_t* start          # outer IPv4 header, in the buffer that the packet was received into
    uint32_t length         # of the whole tunnel packet: the outer total length
    uint32_t outer_header   # bytes of the outer IPv4 header
    uint32_t gue_at         # offset of the GUE header
    uint32_t inner_at       # offset of the inner packet
    uint32_t inner_length   # by the inner header's own length field
    uint32_t inner_header   # IPv4: bytes of the inner header, as its length nibble says; IPv6: 40
    uint8_t family          # of the inner packet, 4 or 6
    uint8_t next_hop        # as received
    uint8_t n_hops
    uint8_t tcp_flags       # of the inner TCP segment; 0 for ICMP errors
    uint32_t tcp_at         # offset of its header
    uint32_t tcp_seq        # host order
    bint is_error           # the flow is one that an ICMP error quotes
    Flow flow               # valid after WHY_LOOK_UP, and for TCP also after WHY_SYN


# -- addresses ---------------------------------------------------------------------------------------------------------

cdef inline long find4(const AddressSet* addresses, uint32_t address) noexcept nogil:
    """Index of the configured prefix that holds `address` (host order), or -1."""
    cdef size_t low = 0, high = addresses.n_v4, middle
    while low < high:
        middle = (low + high) // 2
        if address > addresses.v4[middle].last:
            low = middle + 1
        elif address < addresses.v4[middle].first:
            high = middle
        else:
            return addresses.v4[middle].entry
    return -1


cdef inline uint64_t load_be64(const uint8_t* at) noexcept nogil:
    return (<uint64_t>load_be32(at) << 32) | load_be32(at + 4)


cdef inline long find6(const AddressSet* addresses, const uint8_t* address) noexcept nogil:
    """Index of the configured prefix that holds the 16 bytes at `address`, or -1."""
    cdef uint64_t h = load_be64(address), l = load_be64(address + 8)
    cdef size_t low = 0, high = addresses.n_v6, middle
    cdef const Range6* r
    while low < high:
        middle = (low + high) // 2
        r = &addresses.v6[middle]
        if h > r.last_high or (h == r.last_high and l > r.last_low):
            low = middle + 1
        elif h < r.first_high or (h == r.first_high and l < r.first_low):
            high = middle
        else:
            return r.entry
    return -1


cdef inline long find_address(const AddressSet* addresses, const uint8_t* address, int family) noexcept nogil:
    """Index of the configured prefix that holds the address (4 or 16 bytes by `family`), or -1."""
    if family == 4:
        return find4(addresses, load_be32(address))
    return find6(addresses, address)


# -- outer headers -----------------------------------------------------------------------------------------------------

cdef inline Why read_outer(uint8_t* start, size_t length, const Guard* guard, Tunnel* t, Cursor* cursor) noexcept nogil:
    """Outer IPv4 and UDP. Afterwards the cursor is the UDP payload, or a reason other than WHY_TRANSPORT says why not."""
    cdef Cursor header
    cdef const uint8_t* ip
    cdef const uint8_t* udp
    cdef size_t ihl, total, udp_length
    cursor.at = start
    cursor.end = start + length
    header = cursor[0]
    ip = take(&header, MIN_IPV4_BYTES)
    if ip == NULL or ip[0] >> 4 != 4:
        return WHY_OUTER_MALFORMED
    # Before everything else that a stranger could provoke.
    if not guard.any_source and find4(&guard.sources, load_be32(ip + 12)) < 0:
        return WHY_NOT_ALLOWED
    ihl = (ip[0] & 0x0f) * 4
    total = load_be16(ip + 2)
    if ihl < MIN_IPV4_BYTES or total > length or total < ihl + UDP_BYTES:
        return WHY_OUTER_MALFORMED
    if ip[9] != GLB_PROTO_UDP:
        return WHY_OUTER_MALFORMED
    cursor.end = start + total  # what follows the IP packet is the link's padding
    ip = take(cursor, ihl)
    if fold_checksum(sum_be16(ip, ihl, 0)) != 0:
        return WHY_OUTER_CHECKSUM
    if load_be16(ip + 6) & 0x3fff:  # more fragments, or an offset
        return WHY_OUTER_FRAGMENT
    udp = take(cursor, UDP_BYTES)
    udp_length = load_be16(udp + 4)
    if udp_length < UDP_BYTES or udp_length > total - ihl:
        return WHY_OUTER_MALFORMED
    cursor.end = udp + udp_length
    t.start = start
    t.length = <uint32_t>total
    t.outer_header = <uint32_t>ihl
    return WHY_TRANSPORT


cdef inline Why read_gue(Tunnel* t, Cursor* cursor) noexcept nogil:
    """GUE base header, private data and hop list; the cursor moves to the inner packet."""
    cdef const uint8_t* gue
    t.gue_at = <uint32_t>(cursor.at - t.start)
    gue = take(cursor, GUE_FRONT_BYTES)
    if gue == NULL:
        return WHY_GUE_MALFORMED
    # version 0, C bit 0; hlen counts the words after the first: the private data's own and one for each hop
    if gue[0] >> 5 != 0 or (gue[0] & 0x1f) != 1 + gue[7]:
        return WHY_GUE_MALFORMED
    if gue[1] == GLB_PROTO_IPIP:
        t.family = 4
    elif gue[1] == GLB_PROTO_IPV6:
        t.family = 6
    else:
        return WHY_GUE_MALFORMED
    if load_be16(gue + 2) != 0 or load_be16(gue + 4) != 0:  # flags, private data type
        return WHY_GUE_MALFORMED
    t.next_hop = gue[6]
    t.n_hops = gue[7]
    if t.next_hop > t.n_hops or take(cursor, 4 * <size_t>t.n_hops) == NULL:
        return WHY_GUE_MALFORMED
    t.inner_at = <uint32_t>(cursor.at - t.start)
    return WHY_TRANSPORT


# -- inner packet ------------------------------------------------------------------------------------------------------

cdef inline Why read_ipv4(Cursor* cursor, size_t* ihl, size_t* total, uint8_t* protocol) noexcept nogil:
    """An IPv4 header with options; the cursor moves behind it. WHY_FRAGMENT: no transport header follows."""
    cdef Cursor header = cursor[0]
    cdef const uint8_t* ip = take(&header, MIN_IPV4_BYTES)
    if ip == NULL or ip[0] >> 4 != 4:
        return WHY_MALFORMED
    ihl[0] = (ip[0] & 0x0f) * 4
    total[0] = load_be16(ip + 2)
    protocol[0] = ip[9]
    if ihl[0] < MIN_IPV4_BYTES or total[0] < ihl[0] or take(cursor, ihl[0]) == NULL:
        return WHY_MALFORMED
    if load_be16(ip + 6) & 0x1fff:
        return WHY_FRAGMENT
    return WHY_TRANSPORT


cdef inline Why read_ipv6_extensions(Cursor* cursor, uint8_t* protocol) noexcept nogil:
    """Walk hop-by-hop, routing, destination options and fragment headers, `protocol` being the first's number, then that of
    what follows them. After 8 headers the walk ends: the number of the ninth is then no protocol that anyone knows."""
    cdef const uint8_t* header
    cdef int i
    for i in range(MAX_IPV6_EXTENSIONS):
        if protocol[0] == 44:
            header = take(cursor, 8)
            if header == NULL:
                return WHY_MALFORMED
            protocol[0] = header[0]
            if load_be16(header + 2) & 0xfff8:
                return WHY_FRAGMENT
        elif protocol[0] == 0 or protocol[0] == 43 or protocol[0] == 60:
            header = take(cursor, 8)
            if header == NULL or take(cursor, 8 * <size_t>header[1]) == NULL:
                return WHY_MALFORMED
            protocol[0] = header[0]
        else:
            break
    return WHY_TRANSPORT


cdef inline void set_flow(Flow* flow, int family, const uint8_t* local, const uint8_t* remote,
                          const uint8_t* local_port, const uint8_t* remote_port) noexcept nogil:
    memset(flow, 0, sizeof(Flow))
    memcpy(flow.local, local, 4 if family == 4 else 16)
    memcpy(flow.remote, remote, 4 if family == 4 else 16)
    memcpy(flow.local_port_be, local_port, 2)
    memcpy(flow.remote_port_be, remote_port, 2)
    flow.family = family


cdef inline Why read_quoted(const Guard* guard, Tunnel* t, Cursor* cursor) noexcept nogil:
    """The packet that an ICMP error quotes, one of ours to a client: its flow is looked up reversed."""
    cdef const uint8_t* ip = cursor.at
    cdef const uint8_t* ports
    cdef size_t ihl = 0, total = 0
    cdef uint8_t protocol = 0
    cdef Why why
    cdef int source_at
    if t.family == 4:
        why = read_ipv4(cursor, &ihl, &total, &protocol)
        source_at = 12
    else:
        why = WHY_TRANSPORT
        source_at = 8
        ip = take(cursor, IPV6_BYTES)
        if ip == NULL or ip[0] >> 4 != 6:
            return WHY_ICMP
        protocol = ip[6]
    if why == WHY_MALFORMED:
        return WHY_ICMP
    # An error about a flow of some other address of this host has no business in the tunnel.
    if find_address(&guard.vips, ip + source_at, t.family) < 0:
        return WHY_NOT_VIP
    if t.family == 6:
        why = read_ipv6_extensions(cursor, &protocol)
    if why != WHY_TRANSPORT or protocol != GLB_PROTO_TCP:
        return WHY_ICMP
    ports = take(cursor, 4)
    if ports == NULL:
        return WHY_ICMP
    if t.family == 4:
        set_flow(&t.flow, 4, ip + 12, ip + 16, ports, ports + 2)
    else:
        set_flow(&t.flow, 6, ip + 8, ip + 24, ports, ports + 2)
    t.is_error = True
    return WHY_LOOK_UP


cdef inline bint quotes_a_packet(int family, uint8_t icmp_type) noexcept nogil:
    if family == 4:
        return icmp_type == 3 or icmp_type == 11 or icmp_type == 12
    return 1 <= icmp_type <= 4


cdef inline Why read_inner(const Guard* guard, Tunnel* t, Cursor* cursor) noexcept nogil:
    """The inner packet, to a reason or to WHY_LOOK_UP with the flow filled in."""
    cdef const uint8_t* ip = cursor.at
    cdef const uint8_t* tcp
    cdef const uint8_t* icmp
    cdef size_t available = left(cursor), ihl = IPV6_BYTES, total = 0
    cdef uint8_t protocol = 0
    cdef Why why = WHY_TRANSPORT
    cdef const uint8_t* source
    cdef const uint8_t* destination

    if t.family == 4:
        why = read_ipv4(cursor, &ihl, &total, &protocol)
        if why == WHY_MALFORMED:
            return WHY_MALFORMED
        source = ip + 12
        destination = ip + 16
    else:
        if take(cursor, IPV6_BYTES) == NULL or ip[0] >> 4 != 6:
            return WHY_MALFORMED
        total = IPV6_BYTES + <size_t>load_be16(ip + 4)
        protocol = ip[6]
        source = ip + 8
        destination = ip + 24
    if total > available:
        return WHY_MALFORMED
    cursor.end = ip + total
    t.inner_length = <uint32_t>total
    t.inner_header = <uint32_t>ihl
    if find_address(&guard.vips, destination, t.family) < 0:
        return WHY_NOT_VIP
    if t.family == 6:
        why = read_ipv6_extensions(cursor, &protocol)
    if why != WHY_TRANSPORT:
        return why  # WHY_FRAGMENT, or extension headers that are cut short

    if protocol == GLB_PROTO_TCP:
        tcp = take(cursor, TCP_BYTES)
        if tcp == NULL:
            return WHY_MALFORMED
        set_flow(&t.flow, t.family, destination, source, tcp + 2, tcp)
        t.tcp_at = <uint32_t>(tcp - t.start)
        t.tcp_seq = load_be32(tcp + 4)
        t.tcp_flags = tcp[13]
        return WHY_SYN if t.tcp_flags & TCP_SYN else WHY_LOOK_UP
    if protocol == GLB_PROTO_UDP:
        return WHY_UDP
    if protocol == (GLB_PROTO_ICMP if t.family == 4 else GLB_PROTO_ICMPV6):
        icmp = take(cursor, ICMP_BYTES)
        if icmp == NULL or not quotes_a_packet(t.family, icmp[0]):
            return WHY_ICMP
        return read_quoted(guard, t, cursor)
    return WHY_UNKNOWN_PROTOCOL


cdef inline Why read_tunnel(uint8_t* start, size_t length, const Guard* guard, Tunnel* t) noexcept nogil:
    """A whole tunnel packet, from the outer IPv4 header on: a reason, or WHY_LOOK_UP with `t.flow` filled in."""
    cdef Cursor cursor
    cdef Why why
    memset(t, 0, sizeof(Tunnel))
    why = read_outer(start, length, guard, t, &cursor)
    if why != WHY_TRANSPORT:
        return why
    why = read_gue(t, &cursor)
    if why != WHY_TRANSPORT:
        return why
    return read_inner(guard, t, &cursor)


# -- bounce ------------------------------------------------------------------------------------------------------------

cdef inline int next_hop(const Guard* guard, const Tunnel* t) noexcept nogil:
    """Position in the hop list of the first hop not yet tried that is not this host, or -1."""
    cdef int hop
    for hop in range(t.next_hop, t.n_hops):
        if find4(&guard.own, load_be32(t.start + t.gue_at + GUE_FRONT_BYTES + 4 * hop)) < 0:
            return hop
    return -1


cdef inline uint16_t amend_checksum(uint16_t checksum, const uint8_t* old, const uint8_t* new, size_t length) noexcept nogil:
    """RFC 1624, equation 3: the checksum (host order) after `length` bytes, even and at an even offset, went from old to new."""
    cdef uint32_t total = <uint16_t>~checksum
    cdef size_t i
    for i in range(0, length, 2):
        total += <uint16_t>~load_be16(old + i)
        total += load_be16(new + i)
    return fold_checksum(total)


cdef inline void redirect(Tunnel* t, int hop) noexcept nogil:
    """Readdress the tunnel packet, in place, from this host to hop number `hop`. The TTL is left to whoever forwards it."""
    cdef uint8_t* ip = t.start
    cdef uint8_t* udp = ip + t.outer_header
    cdef uint8_t* gue = ip + t.gue_at
    cdef uint8_t before[10]  # source, destination, next hop and hop count
    cdef uint8_t after[10]
    cdef uint16_t checksum
    memcpy(before, ip + 12, 8)
    memcpy(before + 8, gue + 6, 2)
    memcpy(after, before + 4, 4)
    memcpy(after + 4, gue + GUE_FRONT_BYTES + 4 * hop, 4)
    after[8] = <uint8_t>(hop + 1)
    after[9] = before[9]

    memcpy(ip + 12, after, 8)
    memcpy(gue + 6, after + 8, 2)
    store_be16(ip + 10, amend_checksum(load_be16(ip + 10), before, after, 8))
    checksum = load_be16(udp + 6)
    if checksum != 0:  # 0: the sender sent none (RFC 768)
        # The addresses count because the UDP checksum covers a pseudo-header with them.
        checksum = amend_checksum(checksum, before, after, 10)
        store_be16(udp + 6, checksum if checksum != 0 else 0xffff)
