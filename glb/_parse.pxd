"""From a frame to its flow and table, or to the verdict that ends its way: bounds, headers, binds (docs/protocol/binds.md).

bpf/classify.bpf.h follows these functions one by one; tests/parity/ holds the two together.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from glb._fastpath cimport (
    GLB_DROP_FRAGMENT, GLB_DROP_MALFORMED, GLB_DROP_TRUNCATED, GLB_FORWARD, GLB_HOST, GLB_MAX_EXTENSION_HEADERS,
    GLB_MAX_LENGTHS, GLB_MAX_PROBES, GLB_MAX_TAGS, GLB_NEAR_SEGMENTS, GLB_NO_TABLE, HASH_DST_PORT, HASH_SRC_PORT, Packet,
    Plan,
    glb_generation, glb_prefix, glb_prefix_slot,
)
from glb._machine cimport unlikely
from glb._wire cimport (
    GLB_ETH_P_8021AD, GLB_ETH_P_8021Q, GLB_ETH_P_IP, GLB_ETH_P_IPV6, GLB_PROTO_ICMP, GLB_PROTO_ICMPV6, GLB_PROTO_IPIP, GLB_PROTO_IPV6, GLB_PROTO_TCP,
    GLB_PROTO_UDP, Cursor, left, load_be16, load_be32, load_word16, take,
)


cdef enum:
    ETHERNET_BYTES = 14
    TAG_BYTES = 4
    IPV4_BYTES = 20
    IPV6_BYTES = 40
    PORT_BYTES = 4
    ICMP_BYTES = 8
    FRAGMENT_OFFSET = 0x1fff
    WHOLE_ADDRESS = 128     # length of a prefix
    IPV4_FAMILY = 0         # index into glb_generation.lengths
    IPV6_FAMILY = 1
    # IPv6 next headers that are walked past (RFC 8200 section 4)
    HOP_BY_HOP = 0
    ROUTING = 43
    FRAGMENT = 44
    DESTINATION_OPTIONS = 60


# ---- classify: address, protocol, port -> table --------------------------------------------------------------------

cdef inline const glb_prefix* find_prefix(const glb_generation* generation, uint64_t high, uint64_t low, int family) noexcept nogil:
    """The longest bound prefix that holds an address, or NULL: the address is no VIP."""
    cdef const glb_prefix* slot
    if generation.lengths[family][0] == WHOLE_ADDRESS:  # bound mostly, and looked for with less ado
        slot = &generation.slots[glb_prefix_slot(high, low, WHOLE_ADDRESS, generation.seed) & generation.slot_mask]
        if slot.low == low and slot.high == high and slot.length == WHOLE_ADDRESS:
            return slot
    return find_longest(generation, high, low, family)


cdef inline const glb_prefix* find_longest(const glb_generation* generation, uint64_t high, uint64_t low, int family) noexcept nogil:
    """The same by all lengths in use, longest first."""
    cdef const glb_prefix* slot
    cdef uint64_t masked_high, masked_low
    cdef uint32_t at, length
    cdef int i, probe
    for i in range(GLB_MAX_LENGTHS):
        length = generation.lengths[family][i]
        if length == 0xff:
            return NULL
        if length > 64:
            masked_high = high
            masked_low = low & (<uint64_t>0xffffffffffffffff << (128 - length))
        else:
            masked_high = high & (<uint64_t>0xffffffffffffffff << (64 - length)) if length else 0
            masked_low = 0
        at = glb_prefix_slot(masked_high, masked_low, length, generation.seed)
        for probe in range(GLB_MAX_PROBES):
            slot = &generation.slots[(at + probe) & generation.slot_mask]
            if not slot.used:
                break
            if slot.low == masked_low and slot.high == masked_high and slot.length == length:
                return slot
    return NULL


cdef inline const glb_prefix* find_ipv4(const glb_generation* generation, const uint8_t* address) noexcept nogil:
    return find_prefix(generation, 0, (<uint64_t>0xffff << 32) | load_be32(address), IPV4_FAMILY)


cdef inline const glb_prefix* find_ipv6(const glb_generation* generation, const uint8_t* address) noexcept nogil:
    cdef uint64_t high = (<uint64_t>load_be32(address) << 32) | load_be32(address + 4)
    cdef uint64_t low = (<uint64_t>load_be32(address + 8) << 32) | load_be32(address + 12)
    if high == 0 and low >> 32 == 0xffff:  # IPv4-mapped: in the bind table these are the IPv4 prefixes
        return NULL
    return find_prefix(generation, high, low, IPV6_FAMILY)


cdef inline uint32_t find_table(const glb_generation* generation, const glb_prefix* prefix, uint32_t protocol, uint32_t port) noexcept nogil:
    """Table of a protocol and port (host order) at a VIP, or GLB_NO_TABLE."""
    cdef uint32_t key = (protocol << 16) | port
    cdef int i
    for i in range(GLB_NEAR_SEGMENTS):
        if prefix.near[i].first <= key <= prefix.near[i].last:
            return prefix.near[i].table
    if prefix.n_segments <= GLB_NEAR_SEGMENTS:
        return GLB_NO_TABLE
    return search_segments(generation, prefix, key)


cdef inline uint32_t search_segments(const glb_generation* generation, const glb_prefix* prefix, uint32_t key) noexcept nogil:
    cdef uint32_t low = prefix.first_segment
    cdef uint32_t high = low + prefix.n_segments
    cdef uint32_t middle
    while low < high:
        middle = (low + high) >> 1
        if generation.segments[middle].last < key:
            low = middle + 1
        else:
            high = middle
    if low < prefix.first_segment + prefix.n_segments and generation.segments[low].first <= key:
        return generation.segments[low].table
    return GLB_NO_TABLE


# ---- parse: frame -> flow and table, or the verdict ----------------------------------------------------------------

cdef inline uint8_t parse(const Plan* plan, Packet* packet) noexcept nogil:
    """Fill in the packet's flow and table. Anything but GLB_FORWARD ends its way here."""
    cdef Cursor cursor
    cursor.at = packet.frame
    cursor.end = packet.frame + packet.length
    packet.link_bytes = ETHERNET_BYTES
    packet.answerable = True
    packet.sends = False
    cdef const uint8_t* ethernet = take(&cursor, ETHERNET_BYTES)
    if ethernet == NULL:
        return GLB_HOST
    cdef uint16_t ethertype = load_be16(ethernet + 12)
    if unlikely(ethertype != GLB_ETH_P_IP and ethertype != GLB_ETH_P_IPV6):
        ethertype = skip_tags(&cursor, ethertype)
        packet.link_bytes = cursor.at - packet.frame
    if ethertype == GLB_ETH_P_IP:
        return parse_ipv4(plan, packet, cursor)
    if ethertype == GLB_ETH_P_IPV6:
        return parse_ipv6(plan, packet, cursor)
    return GLB_HOST


cdef inline uint16_t skip_tags(Cursor* cursor, uint16_t ethertype) noexcept nogil:
    """Move past up to GLB_MAX_TAGS VLAN tags; the type that follows them."""
    cdef const uint8_t* tag
    cdef int i
    for i in range(GLB_MAX_TAGS):
        if ethertype != GLB_ETH_P_8021Q and ethertype != GLB_ETH_P_8021AD:
            break
        tag = take(cursor, TAG_BYTES)
        if tag == NULL:
            break  # the type stays that of a tag, which is nobody's
        ethertype = load_be16(tag + 2)
    return ethertype


cdef inline uint8_t parse_ipv4(const Plan* plan, Packet* packet, Cursor cursor) noexcept nogil:
    cdef size_t available = left(&cursor)
    cdef const uint8_t* start = cursor.at
    cdef const uint8_t* header = take(&cursor, IPV4_BYTES)
    if header == NULL:
        return GLB_HOST
    cdef const glb_prefix* prefix = find_ipv4(plan.generation, header + 16)
    if prefix == NULL:
        return GLB_HOST
    # From here on the packet is for a VIP: what is wrong with it is counted.
    cdef size_t header_bytes = IPV4_BYTES
    cdef size_t total = load_be16(header + 2)
    if unlikely(header[0] != 0x45):
        header_bytes = (header[0] & 0x0f) * 4
        if header[0] >> 4 != 4 or header_bytes < IPV4_BYTES:
            return GLB_DROP_MALFORMED
    if total < header_bytes:
        return GLB_DROP_MALFORMED
    if total > available:
        return GLB_DROP_TRUNCATED
    cursor.at = start + header_bytes
    cursor.end = start + total  # Ethernet padding is no part of the packet
    packet.ip_length = total
    packet.inner_protocol = GLB_PROTO_IPIP
    packet.address_bytes = 4
    packet.source = header + 12
    packet.destination = header + 16
    packet.hint_be = load_word16(header + 4)
    if load_be16(header + 6) & FRAGMENT_OFFSET:
        return classify_later_fragment(plan, packet, prefix, header[9], GLB_PROTO_ICMP)
    if header[9] == GLB_PROTO_ICMP:
        return parse_icmpv4(plan, packet, prefix, cursor)
    return parse_ports(plan, packet, prefix, header[9], cursor)


cdef inline uint8_t parse_ipv6(const Plan* plan, Packet* packet, Cursor cursor) noexcept nogil:
    cdef size_t available = left(&cursor)
    cdef const uint8_t* header = take(&cursor, IPV6_BYTES)
    cdef const uint8_t* extension
    if header == NULL:
        return GLB_HOST
    cdef const glb_prefix* prefix = find_ipv6(plan.generation, header + 24)
    if prefix == NULL:
        return GLB_HOST
    cdef size_t total = load_be16(header + 4) + IPV6_BYTES
    if header[0] >> 4 != 6:
        return GLB_DROP_MALFORMED
    if total > available:
        return GLB_DROP_TRUNCATED
    cursor.end = header + total
    packet.ip_length = total
    packet.inner_protocol = GLB_PROTO_IPV6
    packet.address_bytes = 16
    packet.source = header + 8
    packet.destination = header + 24
    packet.hint_be = load_word16(header + 2)  # the flow label's low 16 bits
    cdef uint8_t protocol = header[6]
    cdef bint later_fragment = False
    cdef uint8_t verdict = walk_extensions(&cursor, &protocol, &later_fragment)
    if verdict != GLB_FORWARD:
        return verdict
    if later_fragment:
        return classify_later_fragment(plan, packet, prefix, protocol, GLB_PROTO_ICMPV6)
    if protocol == GLB_PROTO_ICMPV6:
        return parse_icmpv6(plan, packet, prefix, cursor)
    return parse_ports(plan, packet, prefix, protocol, cursor)


cdef inline uint8_t walk_extensions(Cursor* cursor, uint8_t* protocol, bint* later_fragment) noexcept nogil:
    """Move past IPv6 extension headers (RFC 8200 section 4); `protocol` becomes the first that is none."""
    cdef const uint8_t* extension
    cdef int i
    for i in range(GLB_MAX_EXTENSION_HEADERS + 1):
        if protocol[0] != HOP_BY_HOP and protocol[0] != ROUTING and protocol[0] != FRAGMENT \
                and protocol[0] != DESTINATION_OPTIONS:
            return GLB_FORWARD
        if i == GLB_MAX_EXTENSION_HEADERS:
            break
        extension = take(cursor, 8)
        if extension == NULL:
            return GLB_DROP_TRUNCATED
        if protocol[0] == FRAGMENT:
            protocol[0] = extension[0]
            if load_be16(extension + 2) >> 3:
                later_fragment[0] = True
                return GLB_FORWARD
            continue
        if take(cursor, extension[1] * 8) == NULL and extension[1]:
            return GLB_DROP_TRUNCATED
        protocol[0] = extension[0]
    return GLB_DROP_MALFORMED  # more headers than any honest sender uses


cdef inline uint8_t parse_ports(
    const Plan* plan, Packet* packet, const glb_prefix* prefix, uint8_t protocol, Cursor cursor
) noexcept nogil:
    """TCP and UDP: the ports stand first in both."""
    if protocol != GLB_PROTO_TCP and protocol != GLB_PROTO_UDP:
        return GLB_HOST
    cdef const uint8_t* ports = take(&cursor, PORT_BYTES)
    if ports == NULL:
        return GLB_DROP_TRUNCATED
    cdef uint32_t table = find_table(plan.generation, prefix, protocol, load_be16(ports + 2))
    if table == GLB_NO_TABLE:
        return GLB_HOST
    memcpy(packet.ports, ports, PORT_BYTES)
    packet.hint_be = load_word16(ports)
    packet.table = table
    packet.by = &plan.tables[table]
    return GLB_FORWARD


cdef inline uint8_t classify_later_fragment(
    const Plan* plan, Packet* packet, const glb_prefix* prefix, uint8_t protocol, uint8_t icmp
) noexcept nogil:
    """No ports: forwarded where neither the table nor the row depends on them."""
    cdef uint32_t table
    packet.answerable = False
    if protocol == icmp:  # of an echo request, whose ports count as 0 in every piece
        return classify_echo(plan, packet, prefix)
    if protocol != GLB_PROTO_TCP and protocol != GLB_PROTO_UDP:
        return GLB_HOST
    table = prefix.fragment_tables[0 if protocol == GLB_PROTO_TCP else 1]
    packet.table = table
    if table == GLB_NO_TABLE or (plan.hash_fields | plan.alt_hash_fields) & (HASH_SRC_PORT | HASH_DST_PORT):
        return GLB_DROP_FRAGMENT
    packet.hint_be = 0
    packet.by = &plan.tables[table]
    return GLB_FORWARD


cdef inline uint8_t classify_echo(const Plan* plan, Packet* packet, const glb_prefix* prefix) noexcept nogil:
    if not plan.generation.forward_echo:
        return GLB_HOST
    packet.table = prefix.echo_table
    packet.by = &plan.tables[prefix.echo_table]
    memset(packet.ports, 0, PORT_BYTES)
    return GLB_FORWARD


cdef inline uint8_t parse_icmpv4(const Plan* plan, Packet* packet, const glb_prefix* prefix, Cursor cursor) noexcept nogil:
    if left(&cursor) < 2:
        return GLB_DROP_TRUNCATED
    cdef uint8_t kind = cursor.at[0]
    cdef uint8_t code = cursor.at[1]
    cdef bint error = kind == 3 or kind == 11 or kind == 12
    if not error and not (kind == 8 and code == 0):
        return GLB_HOST
    if take(&cursor, ICMP_BYTES) == NULL:
        return GLB_DROP_TRUNCATED
    if not error:
        return classify_echo(plan, packet, prefix)
    # Destination unreachable, time exceeded, parameter problem: the quoted packet is one that a proxy sent.
    cdef const uint8_t* start = cursor.at
    cdef const uint8_t* quoted = take(&cursor, IPV4_BYTES)
    if quoted == NULL:
        return GLB_DROP_TRUNCATED
    cdef size_t quoted_bytes = (quoted[0] & 0x0f) * 4
    if quoted[0] >> 4 != 4 or quoted_bytes < IPV4_BYTES:
        return GLB_DROP_MALFORMED
    if quoted_bytes > <size_t>(cursor.end - start):
        return GLB_DROP_TRUNCATED
    cursor.at = start + quoted_bytes
    prefix = find_ipv4(plan.generation, quoted + 12)
    if load_be16(quoted + 6) & FRAGMENT_OFFSET:
        prefix = NULL  # quotes no ports: cannot be followed
    packet.source = quoted + 16
    packet.destination = quoted + 12
    return classify_quoted(plan, packet, prefix, quoted[9], cursor)


cdef inline uint8_t parse_icmpv6(const Plan* plan, Packet* packet, const glb_prefix* prefix, Cursor cursor) noexcept nogil:
    if left(&cursor) < 2:
        return GLB_DROP_TRUNCATED
    cdef uint8_t kind = cursor.at[0]
    cdef uint8_t code = cursor.at[1]
    cdef bint error = 1 <= kind <= 4
    if not error and not (kind == 128 and code == 0):
        return GLB_HOST
    if take(&cursor, ICMP_BYTES) == NULL:
        return GLB_DROP_TRUNCATED
    if not error:
        return classify_echo(plan, packet, prefix)
    # Unreachable, packet too big, time exceeded, parameter problem.
    cdef const uint8_t* quoted = take(&cursor, IPV6_BYTES)
    if quoted == NULL:
        return GLB_DROP_TRUNCATED
    if quoted[0] >> 4 != 6:
        return GLB_DROP_MALFORMED
    cdef uint8_t protocol = quoted[6]
    cdef bint later_fragment = False
    cdef uint8_t verdict = walk_extensions(&cursor, &protocol, &later_fragment)
    if verdict != GLB_FORWARD:
        return verdict
    prefix = find_ipv6(plan.generation, quoted + 8)
    if later_fragment:
        prefix = NULL  # quotes no ports: cannot be followed
    packet.source = quoted + 24
    packet.destination = quoted + 8
    return classify_quoted(plan, packet, prefix, protocol, cursor)


cdef inline uint8_t classify_quoted(
    const Plan* plan, Packet* packet, const glb_prefix* prefix, uint8_t protocol, Cursor cursor
) noexcept nogil:
    """The flow that an ICMP error quotes, reversed: it hashes as the client's own packets do."""
    if prefix == NULL or (protocol != GLB_PROTO_TCP and protocol != GLB_PROTO_UDP):
        return GLB_HOST
    cdef const uint8_t* ports = take(&cursor, PORT_BYTES)
    if ports == NULL:
        return GLB_DROP_TRUNCATED
    cdef uint32_t table = find_table(plan.generation, prefix, protocol, load_be16(ports))
    if table == GLB_NO_TABLE:
        return GLB_HOST
    memcpy(packet.ports, ports + 2, 2)
    memcpy(packet.ports + 2, ports, 2)
    packet.hint_be = load_word16(ports + 2)
    packet.table = table
    packet.by = &plan.tables[table]
    packet.answerable = False
    return GLB_FORWARD
