"""The packet path, in packet order: parse, classify, hash, row, encapsulate; then the batch that calls them.

Frames come in with HEADROOM free bytes before them and leave as tunnel packets in place (docs/protocol/gue.md).
Everything per packet is `noexcept nogil` and returns a verdict (bpf/glb_layout.h); set-up code below it raises.
"""

from ipaddress import IPv4Address

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcmp, memcpy, memset

from glb._siphash cimport sip_key, siphash24
from glb._wire cimport (
    GLB_ETH_P_IP, GLB_ETH_P_IPV6, GLB_GUE_PORT, GLB_OUTER_TTL, GLB_PROTO_ICMP, GLB_PROTO_ICMPV6, GLB_PROTO_IPIP,
    GLB_PROTO_IPV6, GLB_PROTO_TCP, GLB_PROTO_UDP, GLB_SOURCE_PORT_BASE, Cursor, fold_checksum, left, load_be16,
    load_be32, store_be16, sum_be16, take,
)

from glb.errors import TableError


cdef extern from *:
    """
    #include <time.h>
    #define glb_prefetch(p) __builtin_prefetch(p)
    static inline unsigned long long glb_now_ns(void)
    {
        struct timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        return now.tv_sec * 1000000000ULL + now.tv_nsec;
    }
    """
    void glb_prefetch(const void* p) nogil
    uint64_t glb_now_ns() nogil


cdef enum:
    ETHERNET_BYTES = 14
    IPV4_BYTES = 20
    IPV6_BYTES = 40
    PORT_BYTES = 4
    ICMP_BYTES = 8
    FRAGMENT_OFFSET = 0x1fff
    NEXT_HOP_KNOWN_BIT = 48
    OVERHEAD_BYTES = 36     # outer IPv4, UDP, GUE and private data header; 4 more for each hop after the first
    IPV4_FAMILY = 0         # index into glb_binds.lengths
    IPV6_FAMILY = 1

cdef enum:
    HOP_BY_HOP = 0
    ROUTING = 43
    FRAGMENT = 44
    DESTINATION_OPTIONS = 60

DROP_REASONS = ("malformed", "truncated", "fragment", "too_big", "no_next_hop", "no_backend", "stale_bind")
VERDICTS = ("forward", "host", *DROP_REASONS)
assert len(VERDICTS) == GLB_N_VERDICTS


# ---- classify: address, protocol, port -> table --------------------------------------------------------------------

cdef inline const glb_prefix* find_prefix(const glb_binds* binds, uint64_t high, uint64_t low, int family) noexcept nogil:
    """The longest bound prefix that holds an address, or NULL: the address is no VIP."""
    cdef const glb_prefix* slot
    cdef uint64_t masked_high, masked_low
    cdef uint32_t at, length
    cdef int i, probe
    for i in range(GLB_MAX_LENGTHS):
        length = binds.lengths[family][i]
        if length == 0xff:
            return NULL
        if length > 64:
            masked_high = high
            masked_low = low & (<uint64_t>0xffffffffffffffff << (128 - length))
        else:
            masked_high = high & (<uint64_t>0xffffffffffffffff << (64 - length)) if length else 0
            masked_low = 0
        at = glb_prefix_slot(masked_high, masked_low, length, binds.seed)
        for probe in range(GLB_MAX_PROBES):
            slot = &binds.slots[(at + probe) & (GLB_PREFIX_SLOTS - 1)]
            if not slot.used:
                break
            if slot.low == masked_low and slot.high == masked_high and slot.length == length:
                return slot
    return NULL


cdef inline const glb_prefix* find_ipv4(const glb_binds* binds, const uint8_t* address) noexcept nogil:
    return find_prefix(binds, 0, (<uint64_t>0xffff << 32) | load_be32(address), IPV4_FAMILY)


cdef inline const glb_prefix* find_ipv6(const glb_binds* binds, const uint8_t* address) noexcept nogil:
    cdef uint64_t high = (<uint64_t>load_be32(address) << 32) | load_be32(address + 4)
    cdef uint64_t low = (<uint64_t>load_be32(address + 8) << 32) | load_be32(address + 12)
    if high == 0 and low >> 32 == 0xffff:  # IPv4-mapped: in the bind table these are the IPv4 prefixes
        return NULL
    return find_prefix(binds, high, low, IPV6_FAMILY)


cdef inline uint32_t find_table(const glb_binds* binds, const glb_prefix* prefix, uint32_t protocol, uint32_t port) noexcept nogil:
    """Table of a protocol and port (host order) at a VIP, or GLB_NO_TABLE."""
    cdef uint32_t key = (protocol << 16) | port
    cdef uint32_t low = prefix.first_segment
    cdef uint32_t high = low + prefix.n_segments
    cdef uint32_t middle
    while low < high:
        middle = (low + high) >> 1
        if binds.segments[middle].last < key:
            low = middle + 1
        else:
            high = middle
    if low < prefix.first_segment + prefix.n_segments and binds.segments[low].first <= key:
        return binds.segments[low].table
    return GLB_NO_TABLE


# ---- parse: frame -> flow and table, or the verdict ----------------------------------------------------------------

cdef inline uint8_t parse(const Plan* plan, Packet* packet) noexcept nogil:
    """Fill in the packet's flow and table. Anything but GLB_FORWARD ends its way here."""
    cdef Cursor cursor
    cursor.at = packet.frame
    cursor.end = packet.frame + packet.length
    cdef const uint8_t* ethernet = take(&cursor, ETHERNET_BYTES)
    if ethernet == NULL:
        return GLB_HOST
    cdef uint16_t ethertype = load_be16(ethernet + 12)
    if ethertype == GLB_ETH_P_IP:
        return parse_ipv4(plan, packet, cursor)
    if ethertype == GLB_ETH_P_IPV6:
        return parse_ipv6(plan, packet, cursor)
    return GLB_HOST


cdef inline uint8_t parse_ipv4(const Plan* plan, Packet* packet, Cursor cursor) noexcept nogil:
    cdef size_t available = left(&cursor)
    cdef const uint8_t* start = cursor.at
    cdef const uint8_t* header = take(&cursor, IPV4_BYTES)
    if header == NULL:
        return GLB_HOST
    cdef const glb_prefix* prefix = find_ipv4(plan.binds, header + 16)
    if prefix == NULL:
        return GLB_HOST
    # From here on the packet is for a VIP: what is wrong with it is counted.
    cdef size_t header_bytes = (header[0] & 0x0f) * 4
    cdef size_t total = load_be16(header + 2)
    if header[0] >> 4 != 4 or header_bytes < IPV4_BYTES or total < header_bytes:
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
    packet.hint = load_be16(header + 4)
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
    cdef const glb_prefix* prefix = find_ipv6(plan.binds, header + 24)
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
    packet.hint = load_be16(header + 2)  # the flow label's low 16 bits
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
    cdef uint32_t table = find_table(plan.binds, prefix, protocol, load_be16(ports + 2))
    if table == GLB_NO_TABLE:
        return GLB_HOST
    memcpy(packet.ports, ports, PORT_BYTES)
    packet.hint = load_be16(ports)
    packet.table = table
    return GLB_FORWARD


cdef inline uint8_t classify_later_fragment(
    const Plan* plan, Packet* packet, const glb_prefix* prefix, uint8_t protocol, uint8_t icmp
) noexcept nogil:
    """No ports: forwarded where neither the table nor the row depends on them."""
    cdef uint32_t table
    if protocol == icmp:  # of an echo request, whose ports count as 0 in every piece
        return classify_echo(plan, packet, prefix)
    if protocol != GLB_PROTO_TCP and protocol != GLB_PROTO_UDP:
        return GLB_HOST
    table = prefix.fragment_tables[0 if protocol == GLB_PROTO_TCP else 1]
    if table == GLB_NO_TABLE or (plan.hash_fields | plan.alt_hash_fields) & (HASH_SRC_PORT | HASH_DST_PORT):
        return GLB_DROP_FRAGMENT
    packet.hint = 0
    packet.table = table
    return GLB_FORWARD


cdef inline uint8_t classify_echo(const Plan* plan, Packet* packet, const glb_prefix* prefix) noexcept nogil:
    if not plan.binds.forward_echo:
        return GLB_HOST
    packet.table = prefix.echo_table
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
    prefix = find_ipv4(plan.binds, quoted + 12)
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
    prefix = find_ipv6(plan.binds, quoted + 8)
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
    cdef uint32_t table = find_table(plan.binds, prefix, protocol, load_be16(ports))
    if table == GLB_NO_TABLE:
        return GLB_HOST
    memcpy(packet.ports, ports + 2, 2)
    memcpy(packet.ports + 2, ports, 2)
    packet.hint = load_be16(ports + 2)
    packet.table = table
    return GLB_FORWARD


# ---- hash: the flow's chosen fields -> 64 bits ---------------------------------------------------------------------

cdef inline uint64_t flow_hash(const Table* table, const Packet* packet, uint32_t fields) noexcept nogil:
    """SipHash-2-4 over the fields in their fixed order (docs/protocol/table.md, flow hash)."""
    cdef uint8_t message[MESSAGE_BYTES]
    cdef size_t length = 0
    if fields == HASH_SRC_ADDR:
        return siphash24(table.hash_key, packet.source, packet.address_bytes)
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
    return siphash24(table.hash_key, message, length)


# ---- row: hash -> hops ---------------------------------------------------------------------------------------------

cdef inline const uint16_t* row_of(const Table* table, uint64_t hash) noexcept nogil:
    return table.rows + (<uint32_t>hash & table.row_mask) * table.stride


cdef inline int list_hops(const Plan* plan, const Table* table, const Packet* packet, uint16_t* hops) noexcept nogil:
    """Backend indexes of the packet's row, then of its alternative row; returns how many."""
    cdef const uint16_t* row = row_of(table, packet.hash)
    cdef int n = 0
    cdef uint32_t i
    cdef int k
    for i in range(table.stride):
        if row[i] == NO_HOP:
            break
        hops[n] = row[i]
        n += 1
    if not plan.alt_hash_fields:
        return n
    row = row_of(table, flow_hash(table, packet, plan.alt_hash_fields))
    for i in range(table.stride):
        if row[i] == NO_HOP:
            break
        if not table.keep_duplicates:
            for k in range(n):
                if hops[k] == row[i]:
                    break
            else:
                hops[n] = row[i]
                n += 1
            continue
        hops[n] = row[i]
        n += 1
    return n


# ---- encapsulate: front before the packet --------------------------------------------------------------------------

cdef inline uint8_t encapsulate(const Plan* plan, Packet* packet, Counters* counters) noexcept nogil:
    cdef const Table* table = &plan.tables[packet.table]
    cdef uint16_t hops[MAX_LIST]
    cdef int n = list_hops(plan, table, packet, hops)
    if n == 0:
        return GLB_DROP_NO_BACKEND
    cdef const Backend* primary = &table.backends[hops[0]]
    cdef uint32_t further = n - 1
    cdef uint32_t overhead = OVERHEAD_BYTES + 4 * further
    cdef uint32_t outer_length = overhead + packet.ip_length
    if outer_length > primary.mtu_bytes:
        return GLB_DROP_TOO_BIG
    cdef uint64_t next_hop = primary.next_hop
    if not (next_hop >> NEXT_HOP_KNOWN_BIT) & 1:
        return GLB_DROP_NO_NEXT_HOP
    cdef uint8_t* ip = packet.frame + ETHERNET_BYTES - overhead
    cdef uint8_t* ethernet = ip - ETHERNET_BYTES
    cdef uint32_t i
    if plan.source_from_frame:
        # The front ends where the frame's own Ethernet header did: copy its destination before that is overwritten.
        memcpy(ethernet + 6, packet.frame, 6)
    else:
        memcpy(ethernet + 6, plan.source_mac, 6)
    memcpy(ethernet, &next_hop, 6)
    store_be16(ethernet + 12, GLB_ETH_P_IP)
    ip[0] = 0x45
    ip[1] = 0
    store_be16(ip + 2, outer_length)
    store_be16(ip + 4, 0)
    store_be16(ip + 6, 0x4000)  # don't fragment
    ip[8] = GLB_OUTER_TTL
    ip[9] = GLB_PROTO_UDP
    store_be16(ip + 10, fold_checksum(plan.fixed_sum + primary.address_sum + outer_length))
    memcpy(ip + 12, plan.source_ip, 4)
    memcpy(ip + 16, primary.address, 4)
    store_be16(ip + 20, GLB_SOURCE_PORT_BASE | ((<uint16_t>packet.hash ^ packet.hint) & 0x7fff))
    store_be16(ip + 22, GLB_GUE_PORT)
    store_be16(ip + 24, outer_length - IPV4_BYTES)
    store_be16(ip + 26, 0)  # no UDP checksum: the inner packet has its own (RFC 6935 does not concern IPv4)
    ip[28] = 1 + further
    ip[29] = packet.inner_protocol
    memset(ip + 30, 0, 5)  # GUE flags, private data type, next hop
    ip[35] = further
    for i in range(further):
        memcpy(ip + OVERHEAD_BYTES + 4 * i, table.backends[hops[1 + i]].address, 4)
    counters.tables[2 * packet.table] += 1
    counters.tables[2 * packet.table + 1] += packet.length
    counters.backends[primary.counter] += 1
    packet.length += overhead
    packet.frame = ethernet
    return GLB_FORWARD


# ---- the batch -----------------------------------------------------------------------------------------------------

cdef void run_batch(const Plan* plan, Counters* counters, Packet* packets, int n) noexcept nogil:
    """Take up to BATCH packets through all stages; each ends with a verdict, counted once."""
    cdef int i
    cdef Packet* packet
    cdef const Table* table
    for i in range(n):
        packet = &packets[i]
        packet.verdict = parse(plan, packet)
    for i in range(n):
        packet = &packets[i]
        if packet.verdict == GLB_FORWARD:
            table = &plan.tables[packet.table]
            packet.hash = flow_hash(table, packet, plan.hash_fields)
            glb_prefetch(row_of(table, packet.hash))
    for i in range(n):
        packet = &packets[i]
        if packet.verdict == GLB_FORWARD:
            packet.verdict = encapsulate(plan, packet, counters)
        counters.verdicts[packet.verdict] += 1


# ---- set-up --------------------------------------------------------------------------------------------------------

cdef class CounterBlock:
    """What one worker counted while it forwarded by one Forwarding."""

    def __cinit__(self, Forwarding owner not None):
        self.owner = owner
        self.counters.tables = <uint64_t*>calloc(max(1, 2 * owner.plan.n_tables), 8)
        self.counters.backends = <uint64_t*>calloc(max(1, owner.plan.n_backends), 8)
        if self.counters.tables == NULL or self.counters.backends == NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self.counters.tables)
        free(self.counters.backends)


cdef class Forwarding:
    """Tables, binds and options in the form the packet path reads; immutable but for next hops.

    `tables`: for each table (name, hash_key, rows, stride, backend addresses, keep_duplicates) with `rows` a buffer
    of uint16 backend indexes, native order, shape (n_rows * stride,), 0xffff where unused, and addresses 4 bytes each
    in wire order. `prefixes`: glb.table.binds.compile_binds of the same tables. `hash_fields`, `alt_hash_fields`:
    HashField bits. `source_mac` None: frames sent take the received frame's destination. Raises TableError.
    """

    def __cinit__(self, tables, prefixes, *, bytes source_ip not None, uint32_t hash_fields=HASH_SRC_ADDR,
                  uint32_t alt_hash_fields=0, bint forward_echo=True, source_mac=None):
        self._names = []
        self._counters = []
        self.plan = <Plan*>calloc(1, sizeof(Plan))
        if self.plan == NULL:
            raise MemoryError
        if len(source_ip) != 4:
            raise ValueError("source_ip is 4 bytes")
        memcpy(self.plan.source_ip, <const uint8_t*>source_ip, 4)
        self.plan.fixed_sum = (0x4500 + 0x4000 + (GLB_OUTER_TTL << 8) + GLB_PROTO_UDP
                               + sum_be16(self.plan.source_ip, 4, 0))
        self.plan.source_from_frame = source_mac is None
        if source_mac is not None:
            if len(source_mac) != 6:
                raise ValueError("source_mac is 6 bytes")
            memcpy(self.plan.source_mac, <const uint8_t*><bytes>source_mac, 6)
        self.plan.hash_fields = hash_fields
        self.plan.alt_hash_fields = alt_hash_fields
        self._fill_tables(tables)
        self._fill_binds(prefixes, forward_echo)

    cdef _fill_tables(self, tables):
        cdef Table* table
        cdef const uint16_t[::1] rows
        cdef uint32_t i, k, n_rows
        self.plan.tables = <Table*>calloc(max(1, len(tables)), sizeof(Table))
        if self.plan.tables == NULL:
            raise MemoryError
        for i, (name, hash_key, rows_buffer, stride, addresses, keep_duplicates) in enumerate(tables):
            rows = rows_buffer
            table = &self.plan.tables[i]
            n_rows = rows.shape[0] // stride
            if stride not in (2, 4) or n_rows * stride != rows.shape[0] or n_rows & (n_rows - 1) or not n_rows:
                raise TableError(f"table {name}: rows must be a power of two of 2 or 4 entries each")
            for k in range(<uint32_t>rows.shape[0]):
                if rows[k] != NO_HOP and rows[k] >= <uint32_t>len(addresses):
                    raise TableError(f"table {name}: row {k // stride} names a backend that is not there")
            table.hash_key = sip_key(<const uint8_t*><bytes>hash_key)
            table.row_mask = n_rows - 1
            table.stride = stride
            table.keep_duplicates = keep_duplicates
            table.rows = <uint16_t*>malloc(rows.shape[0] * 2)
            table.backends = <Backend*>calloc(max(1, len(addresses)), sizeof(Backend))
            # Counted only once both are there: __dealloc__ frees n_tables of them.
            self.plan.n_tables = i + 1
            if table.rows == NULL or table.backends == NULL:
                raise MemoryError
            memcpy(table.rows, &rows[0], rows.shape[0] * 2)
            table.n_backends = len(addresses)
            for k, address in enumerate(addresses):
                memcpy(table.backends[k].address, <const uint8_t*><bytes>address, 4)
                table.backends[k].address_sum = sum_be16(table.backends[k].address, 4, 0)
                table.backends[k].mtu_bytes = 0xffff
                table.backends[k].counter = self.plan.n_backends + k
            self.plan.n_backends += table.n_backends
            self._names.append((name, tuple(addresses)))

    cdef _fill_binds(self, prefixes, bint forward_echo):
        cdef glb_binds* binds = <glb_binds*>calloc(1, sizeof(glb_binds))
        cdef uint32_t n_segments = 0
        cdef int family
        self.plan.binds = binds
        if binds == NULL:
            raise MemoryError
        if len(prefixes) > GLB_MAX_PREFIXES:
            raise TableError(f"{len(prefixes)} distinct bind prefixes; at most {GLB_MAX_PREFIXES} are supported")
        binds.forward_echo = forward_echo
        binds.n_prefixes = len(prefixes)
        for family in range(2):
            lengths = sorted({p.length for p in prefixes if _is_ipv4(p) == (family == IPV4_FAMILY)}, reverse=True)
            for i, length in enumerate([*lengths, 0xff]):
                binds.lengths[family][i] = length
        placed = []
        for prefix in prefixes:
            placed.append((prefix, n_segments))
            if n_segments + len(prefix.segments) > GLB_MAX_SEGMENTS:
                raise TableError(f"more than {GLB_MAX_SEGMENTS} port segments in all binds together")
            for segment in prefix.segments:
                binds.segments[n_segments].first = segment.proto << 16 | segment.port_first
                binds.segments[n_segments].last = segment.proto << 16 | segment.port_last
                binds.segments[n_segments].table = segment.table
                n_segments += 1
        for seed in range(1, 65):
            if self._place(placed, seed):
                return
        # At most a quarter of the slots is used, so one seed failing is rare and 64 failing does not happen.
        raise TableError("no seed places the bind prefixes")

    cdef bint _place(self, list placed, uint64_t seed):
        """Put each prefix into the first free slot of its probe sequence; False if one sequence gets too long."""
        cdef glb_binds* binds = self.plan.binds
        cdef glb_prefix* slot
        cdef uint32_t at
        cdef int probe
        cdef uint64_t high, low
        memset(binds.slots, 0, sizeof(binds.slots))
        binds.seed = seed
        for prefix, first_segment in placed:
            high = prefix.address >> 64
            low = prefix.address & 0xffffffffffffffff
            at = glb_prefix_slot(high, low, prefix.length, seed)
            for probe in range(GLB_MAX_PROBES):
                slot = &binds.slots[(at + probe) & (GLB_PREFIX_SLOTS - 1)]
                if not slot.used:
                    break
            else:
                return False
            slot.used = 1
            slot.high = high
            slot.low = low
            slot.length = prefix.length
            slot.echo_table = prefix.echo_table
            slot.fragment_tables[0] = prefix.fragment_tables[0]
            slot.fragment_tables[1] = prefix.fragment_tables[1]
            slot.first_segment = first_segment
            slot.n_segments = len(prefix.segments)
        return True

    def __dealloc__(self):
        cdef uint32_t i
        if self.plan == NULL:
            return
        if self.plan.tables != NULL:
            for i in range(self.plan.n_tables):
                free(self.plan.tables[i].rows)
                free(self.plan.tables[i].backends)
        free(self.plan.tables)
        free(self.plan.binds)
        free(self.plan)

    # -- next hops

    def set_next_hop(self, bytes address not None, mac, uint32_t mtu_bytes=0xffff):
        """Send what goes to the backend `address` (4 bytes) by way of `mac` (6 bytes; None: unknown, drop).

        Safe while workers forward: the MAC address changes in one store.
        """
        cdef uint64_t next_hop = 0
        cdef uint32_t i, k
        if len(address) != 4 or (mac is not None and len(mac) != 6):
            raise ValueError("address is 4 bytes and mac 6")
        if mac is not None:
            memcpy(&next_hop, <const uint8_t*><bytes>mac, 6)
            next_hop |= <uint64_t>1 << NEXT_HOP_KNOWN_BIT
        for i in range(self.plan.n_tables):
            for k in range(self.plan.tables[i].n_backends):
                if memcmp(self.plan.tables[i].backends[k].address, <const uint8_t*>address, 4) == 0:
                    self.plan.tables[i].backends[k].mtu_bytes = mtu_bytes
                    self.plan.tables[i].backends[k].next_hop = next_hop

    # -- reading back

    @property
    def binds_block(self):
        """struct glb_binds as bytes: what the eBPF classifier gets."""
        return (<const char*>self.plan.binds)[:sizeof(glb_binds)]

    def table_rows(self, uint32_t table):
        """Rows of one table as the packet path holds them: bytes of uint16, native order, shape (n_rows, stride)."""
        if table >= self.plan.n_tables:
            raise IndexError(table)
        cdef Table* t = &self.plan.tables[table]
        return (<const char*>t.rows)[:(t.row_mask + 1) * t.stride * 2]

    cpdef CounterBlock new_counters(self):
        """Counters for one more worker; they count towards `counts()` from now on."""
        block = CounterBlock(self)
        self._counters.append(block)
        return block

    def counts(self):
        """Sums over all workers: {"verdicts": {name: frames}, "tables": [(frames, bytes)], "backends": {...}}.

        `backends` maps (table name, address text) to frames sent to it as primary.
        """
        verdicts = dict.fromkeys(VERDICTS, 0)
        tables = [[0, 0] for _ in self._names]
        backends = {}
        cdef CounterBlock block
        cdef uint32_t i, k
        for block in self._counters:
            for i in range(GLB_N_VERDICTS):
                verdicts[VERDICTS[i]] += block.counters.verdicts[i]
            k = 0
            for i, (name, addresses) in enumerate(self._names):
                tables[i][0] += block.counters.tables[2 * i]
                tables[i][1] += block.counters.tables[2 * i + 1]
                for address in addresses:
                    key = (name, str(IPv4Address(address)))
                    backends[key] = backends.get(key, 0) + block.counters.backends[k]
                    k += 1
        return {"verdicts": verdicts, "tables": {self._names[i][0]: tuple(t) for i, t in enumerate(tables)},
                "backends": backends}

    # -- over plain buffers

    def encapsulate(self, list frames not None, CounterBlock counters not None):
        """Take frames (bytes) through the packet path: a list of (verdict name, frame sent or None).

        Each frame is copied into a buffer of exactly its size, so that a sanitizer build sees every read beyond it.
        """
        cdef Packet packets[BATCH]
        cdef uint8_t* buffers[BATCH]
        cdef int n, i
        cdef bytes frame
        results = []
        for start in range(0, len(frames), BATCH):
            batch = frames[start:start + BATCH]
            n = 0
            try:
                for frame in batch:
                    buffers[n] = <uint8_t*>malloc(HEADROOM + len(frame))
                    if buffers[n] == NULL:
                        raise MemoryError
                    n += 1
                    packets[n - 1].frame = buffers[n - 1] + HEADROOM
                    packets[n - 1].length = len(frame)
                    memcpy(packets[n - 1].frame, <const uint8_t*>frame, len(frame))
                with nogil:
                    run_batch(self.plan, &counters.counters, packets, n)
                for i in range(n):
                    sent = None
                    if packets[i].verdict == GLB_FORWARD:
                        sent = (<const char*>packets[i].frame)[:packets[i].length]
                    results.append((VERDICTS[packets[i].verdict], sent))
            finally:
                for i in range(n):
                    free(buffers[i])
        return results

    def measure_ns(self, list frames not None, int rounds):
        """Nanoseconds a frame takes through the packet path, frames of 2 KiB apart in memory (bench/).

        Writing back the Ethernet header that encapsulation overwrote is included (14 bytes a frame).
        """
        cdef CounterBlock counters = CounterBlock(self)
        cdef int n = len(frames), i, k, r
        cdef size_t spacing = 2048
        cdef uint8_t* memory = <uint8_t*>malloc(n * spacing)
        cdef uint8_t* headers = <uint8_t*>malloc(n * ETHERNET_BYTES)
        cdef uint32_t* lengths = <uint32_t*>malloc(n * sizeof(uint32_t))
        cdef Packet packets[BATCH]
        cdef uint64_t began, forwarded
        if memory == NULL or headers == NULL or lengths == NULL:
            free(memory); free(headers); free(lengths)
            raise MemoryError
        for i in range(n):
            frame = <bytes>frames[i]
            lengths[i] = len(frame)
            memcpy(memory + i * spacing + HEADROOM, <const uint8_t*><bytes>frame, lengths[i])
            memcpy(headers + i * ETHERNET_BYTES, <const uint8_t*><bytes>frame, ETHERNET_BYTES)
        with nogil:
            began = glb_now_ns()
            for r in range(rounds):
                i = 0
                while i + BATCH <= n:
                    for k in range(BATCH):
                        packets[k].frame = memory + (i + k) * spacing + HEADROOM
                        packets[k].length = lengths[i + k]
                        memcpy(packets[k].frame, headers + (i + k) * ETHERNET_BYTES, ETHERNET_BYTES)
                    run_batch(self.plan, &counters.counters, packets, BATCH)
                    i += BATCH
            began = glb_now_ns() - began
        free(memory); free(headers); free(lengths)
        forwarded = counters.counters.verdicts[GLB_FORWARD]
        return began / forwarded if forwarded else float("nan")


def _is_ipv4(prefix):
    return prefix.length >= 96 and prefix.address >> 32 == 0xffff
