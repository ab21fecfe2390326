"""From a frame to its flow and table, or to the verdict that ends its way: bounds, headers, binds (_binds.pxd).

bpf/classify.bpf.h follows these functions one by one; tests/parity/ holds the two together.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from glb._binds cimport find_ipv4, find_ipv6, find_table
from glb._fastpath cimport (
    GLB_DROP_FRAGMENT, GLB_DROP_MALFORMED, GLB_DROP_TRUNCATED, GLB_FORWARD, GLB_HOST, GLB_MAX_EXTENSION_HEADERS, GLB_MAX_TAGS,
    GLB_NO_TABLE, HASH_DST_PORT, HASH_SRC_PORT, Flow, Packet, Plan, glb_flows, glb_prefix,
)
from glb._flows cimport put_flows
from glb._machine cimport likely, unlikely
from glb._wire cimport (
    GLB_ETH_P_8021AD, GLB_ETH_P_8021Q, GLB_ETH_P_IP, GLB_ETH_P_IPV6, GLB_PROTO_ICMP, GLB_PROTO_ICMPV6, GLB_PROTO_IPIP,
    GLB_PROTO_IPV6, GLB_PROTO_TCP, GLB_PROTO_UDP, Cursor, left, load_be16, load_word16, load_word32, take,
)


cdef enum:
    ETHERNET_BYTES = 14
    TAG_BYTES = 4
    IPV4_BYTES = 20
    IPV6_BYTES = 40
    PORT_BYTES = 4
    COMMON_IPV4_BYTES = 38  # of a frame, at least: Ethernet, IPv4, ports
    COMMON_IPV6_BYTES = 58
    ICMP_BYTES = 8
    FRAGMENT_OFFSET = 0x1fff
    # IPv6 next headers that are walked past (RFC 8200 section 4)
    HOP_BY_HOP = 0
    ROUTING = 43
    FRAGMENT = 44
    DESTINATION_OPTIONS = 60


cdef inline uint8_t parse(const Plan* plan, Packet* packet, glb_flows* flows, glb_flows* alternatives) noexcept nogil:
    """Fill in the packet, and put its flow among those of its family. Anything but GLB_FORWARD ends its way here."""
    cdef Flow flow
    cdef uint32_t type_and_version
    if likely(packet.length >= COMMON_IPV4_BYTES):
        type_and_version = load_word32(packet.frame + ETHERNET_BYTES - 2)
        if type_and_version & 0x00ffffff == 0x00450008:
            if likely(parse_common_ipv4(plan, packet, &flow)):
                put_flows(plan, packet, &flow, flows + 1, alternatives + 1, True)
                return GLB_FORWARD
        elif type_and_version & 0x00f0ffff == 0x0060dd86:
            if likely(parse_common_ipv6(plan, packet, &flow)):
                put_flows(plan, packet, &flow, flows, alternatives, False)
                return GLB_FORWARD
    return parse_and_put(plan, packet, flows, alternatives)


cdef inline uint8_t parse_and_put(
    const Plan* plan, Packet* packet, glb_flows* flows, glb_flows* alternatives
) noexcept nogil:
    cdef Flow flow
    cdef bint ipv4
    packet.verdict = parse_any(plan, packet, &flow)
    if packet.verdict == GLB_FORWARD:
        ipv4 = packet.inner_protocol == GLB_PROTO_IPIP
        put_flows(plan, packet, &flow, flows + ipv4, alternatives + ipv4, ipv4)
    return packet.verdict


cdef inline bint parse_common_ipv4(const Plan* plan, Packet* packet, Flow* flow) noexcept nogil:
    """As parse_any, for nearly all that is forwarded: TCP and UDP, without VLAN tag and options, no later fragment.

    False, and nothing is changed: it is something else, or something is wrong with it.
    """
    cdef const uint8_t* ip = packet.frame + ETHERNET_BYTES
    cdef uint32_t total = load_be16(ip + 2), table
    cdef const glb_prefix* prefix
    if unlikely(load_word16(ip + 6) & 0xff1f):  # the fragment offset
        return False
    # Unsigned: less than the ports, or more than there is?
    if unlikely(total - (IPV4_BYTES + PORT_BYTES) > packet.length - COMMON_IPV4_BYTES):
        return False
    prefix = find_ipv4(plan.generation, ip + 16)
    if unlikely(prefix == NULL):
        return False
    table = find_table(plan.generation, prefix, ip[9], load_be16(ip + IPV4_BYTES + 2))
    if unlikely(table == GLB_NO_TABLE):  # so it is of all protocols but TCP and UDP
        return False
    begin(packet, GLB_PROTO_IPIP, ETHERNET_BYTES + 12)
    packet.ip_length = total
    packet.table = table
    packet.hint_be = load_word16(ip + IPV4_BYTES)
    flow.source = ip + 12
    flow.destination = ip + 16
    flow.ports = load_word32(ip + IPV4_BYTES)
    return True


cdef inline bint parse_common_ipv6(const Plan* plan, Packet* packet, Flow* flow) noexcept nogil:
    """The same without extension headers."""
    cdef const uint8_t* ip = packet.frame + ETHERNET_BYTES
    cdef uint32_t payload = load_be16(ip + 4), table
    cdef const glb_prefix* prefix
    if unlikely(packet.length < COMMON_IPV6_BYTES or payload - PORT_BYTES > packet.length - COMMON_IPV6_BYTES):
        return False
    prefix = find_ipv6(plan.generation, ip + 24)
    if unlikely(prefix == NULL):
        return False
    table = find_table(plan.generation, prefix, ip[6], load_be16(ip + IPV6_BYTES + 2))
    if unlikely(table == GLB_NO_TABLE):
        return False
    begin(packet, GLB_PROTO_IPV6, ETHERNET_BYTES + 8)
    packet.ip_length = payload + IPV6_BYTES
    packet.table = table
    packet.hint_be = load_word16(ip + IPV6_BYTES)
    flow.source = ip + 8
    flow.destination = ip + 24
    flow.ports = load_word32(ip + IPV6_BYTES)
    return True


cdef inline void begin(Packet* packet, uint8_t inner_protocol, uint16_t source_at) noexcept nogil:
    """The eight bytes of a packet that is forwarded, as they mostly are, by one store."""
    cdef uint64_t word = (<uint64_t>GLB_FORWARD | <uint64_t>inner_protocol << 8 | <uint64_t>ETHERNET_BYTES << 16
                          | <uint64_t>1 << 24 | <uint64_t>1 << 32 | <uint64_t>source_at << 48)
    memcpy(&packet.verdict, &word, 8)


cdef inline uint8_t parse_any(const Plan* plan, Packet* packet, Flow* flow) noexcept nogil:
    cdef Cursor cursor
    cursor.at = packet.frame
    cursor.end = packet.frame + packet.length
    begin(packet, 0, 0)
    cdef const uint8_t* ethernet = take(&cursor, ETHERNET_BYTES)
    if ethernet == NULL:
        return GLB_HOST
    cdef uint16_t ethertype = load_be16(ethernet + 12)
    if ethertype != GLB_ETH_P_IP and ethertype != GLB_ETH_P_IPV6:
        ethertype = skip_tags(&cursor, ethertype)
        packet.link_bytes = cursor.at - packet.frame
    if ethertype == GLB_ETH_P_IP:
        return parse_ipv4(plan, packet, flow, cursor)
    if ethertype == GLB_ETH_P_IPV6:
        return parse_ipv6(plan, packet, flow, cursor)
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


cdef inline uint8_t parse_ipv4(const Plan* plan, Packet* packet, Flow* flow, Cursor cursor) noexcept nogil:
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
    flow.source = header + 12
    packet.source_at = flow.source - packet.frame
    flow.destination = header + 16
    packet.hint_be = load_word16(header + 4)
    if load_be16(header + 6) & FRAGMENT_OFFSET:
        return classify_later_fragment(plan, packet, flow, prefix, header[9], GLB_PROTO_ICMP)
    if header[9] == GLB_PROTO_ICMP:
        return parse_icmpv4(plan, packet, flow, prefix, cursor)
    return parse_ports(plan, packet, flow, prefix, header[9], cursor)


cdef inline uint8_t parse_ipv6(const Plan* plan, Packet* packet, Flow* flow, Cursor cursor) noexcept nogil:
    cdef size_t available = left(&cursor)
    cdef const uint8_t* header = take(&cursor, IPV6_BYTES)
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
    flow.source = header + 8
    packet.source_at = flow.source - packet.frame
    flow.destination = header + 24
    packet.hint_be = load_word16(header + 2)  # the flow label's low 16 bits
    cdef uint8_t protocol = header[6]
    cdef bint later_fragment = False
    cdef uint8_t verdict = walk_extensions(&cursor, &protocol, &later_fragment)
    if verdict != GLB_FORWARD:
        return verdict
    if later_fragment:
        return classify_later_fragment(plan, packet, flow, prefix, protocol, GLB_PROTO_ICMPV6)
    if protocol == GLB_PROTO_ICMPV6:
        return parse_icmpv6(plan, packet, flow, prefix, cursor)
    return parse_ports(plan, packet, flow, prefix, protocol, cursor)


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
    const Plan* plan, Packet* packet, Flow* flow, const glb_prefix* prefix, uint8_t protocol, Cursor cursor
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
    flow.ports = load_word32(ports)
    packet.hint_be = load_word16(ports)
    packet.table = table
    return GLB_FORWARD


cdef inline uint8_t classify_later_fragment(
    const Plan* plan, Packet* packet, Flow* flow, const glb_prefix* prefix, uint8_t protocol, uint8_t icmp
) noexcept nogil:
    """No ports: forwarded where neither the table nor the row depends on them."""
    cdef uint32_t table
    packet.answerable = False
    if protocol == icmp:  # of an echo request, whose ports count as 0 in every piece
        return classify_echo(plan, packet, flow, prefix)
    if protocol != GLB_PROTO_TCP and protocol != GLB_PROTO_UDP:
        return GLB_HOST
    table = prefix.fragment_tables[0 if protocol == GLB_PROTO_TCP else 1]
    packet.table = table
    if table == GLB_NO_TABLE or (plan.hash_fields | plan.alt_hash_fields) & (HASH_SRC_PORT | HASH_DST_PORT):
        return GLB_DROP_FRAGMENT
    packet.hint_be = 0
    return GLB_FORWARD


cdef inline uint8_t classify_echo(const Plan* plan, Packet* packet, Flow* flow, const glb_prefix* prefix) noexcept nogil:
    if not plan.generation.forward_echo:
        return GLB_HOST
    packet.table = prefix.echo_table
    flow.ports = 0
    return GLB_FORWARD


cdef inline uint8_t parse_icmpv4(const Plan* plan, Packet* packet, Flow* flow, const glb_prefix* prefix, Cursor cursor) noexcept nogil:
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
        return classify_echo(plan, packet, flow, prefix)
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
    flow.source = quoted + 16
    packet.source_at = flow.source - packet.frame
    flow.destination = quoted + 12
    return classify_quoted(plan, packet, flow, prefix, quoted[9], cursor)


cdef inline uint8_t parse_icmpv6(const Plan* plan, Packet* packet, Flow* flow, const glb_prefix* prefix, Cursor cursor) noexcept nogil:
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
        return classify_echo(plan, packet, flow, prefix)
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
    flow.source = quoted + 24
    packet.source_at = flow.source - packet.frame
    flow.destination = quoted + 8
    return classify_quoted(plan, packet, flow, prefix, protocol, cursor)


cdef inline uint8_t classify_quoted(
    const Plan* plan, Packet* packet, Flow* flow, const glb_prefix* prefix, uint8_t protocol, Cursor cursor
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
    flow.ports = <uint32_t>load_word16(ports) << 16 | load_word16(ports + 2)
    packet.hint_be = load_word16(ports + 2)
    packet.table = table
    packet.answerable = False
    return GLB_FORWARD
