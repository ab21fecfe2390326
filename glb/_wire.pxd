"""Bytes on the wire: the one bounds-checked cursor, byte order, and the Internet checksum. Inline leaves, nogil."""

from libc.stdint cimport uint16_t, uint32_t, uint64_t, uint8_t
from libc.string cimport memcpy


cdef extern from "glb_protocol.h" nogil:
    enum:
        GLB_GUE_PORT
        GLB_GUE_BASE_BYTES
        GLB_GUE_PRIVATE_BYTES
        GLB_SOURCE_PORT_BASE
        GLB_OUTER_TTL
        GLB_MAX_HOPS
        GLB_MAX_GUE_HOPS
        GLB_PROTO_ICMP
        GLB_PROTO_IPIP
        GLB_PROTO_TCP
        GLB_PROTO_UDP
        GLB_PROTO_IPV6
        GLB_PROTO_ICMPV6
        GLB_ETH_P_IP
        GLB_ETH_P_IPV6
        GLB_ETH_P_8021Q
        GLB_ETH_P_8021AD


cdef struct Cursor:
    const uint8_t* at   # next byte to read
    const uint8_t* end  # one past the last byte of the packet


cdef inline size_t left(const Cursor* cursor) noexcept nogil:
    """Bytes between the cursor and the end of the packet."""
    return cursor.end - cursor.at


cdef inline const uint8_t* take(Cursor* cursor, size_t length) noexcept nogil:
    """The next `length` bytes, and the cursor moves past them; NULL, and it stays, if they are not all there."""
    cdef const uint8_t* start = cursor.at
    if <size_t>(cursor.end - start) < length:
        return NULL
    cursor.at = start + length
    return start


cdef inline uint16_t load_be16(const uint8_t* at) noexcept nogil:
    return <uint16_t>((<uint16_t>at[0] << 8) | at[1])


cdef inline uint32_t load_be32(const uint8_t* at) noexcept nogil:
    return (<uint32_t>at[0] << 24) | (<uint32_t>at[1] << 16) | (<uint32_t>at[2] << 8) | at[3]


cdef inline uint64_t load_be64(const uint8_t* at) noexcept nogil:
    return (<uint64_t>load_be32(at) << 32) | load_be32(at + 4)


# Words are bytes in the order of memory: what is stored whole needs no order but that of its parts, see swap16.

cdef inline uint16_t load_word16(const uint8_t* at) noexcept nogil:
    cdef uint16_t word
    memcpy(&word, at, 2)
    return word


cdef inline uint32_t load_word32(const uint8_t* at) noexcept nogil:
    cdef uint32_t word
    memcpy(&word, at, 4)
    return word


cdef inline uint64_t load_word64(const uint8_t* at) noexcept nogil:
    cdef uint64_t word
    memcpy(&word, at, 8)
    return word


cdef inline void store_word16(uint8_t* at, uint16_t word) noexcept nogil:
    memcpy(at, &word, 2)


cdef inline void store_word32(uint8_t* at, uint32_t word) noexcept nogil:
    memcpy(at, &word, 4)


cdef inline void store_word64(uint8_t* at, uint64_t word) noexcept nogil:
    memcpy(at, &word, 8)


cdef inline uint16_t swap16(uint16_t value) noexcept nogil:
    """A value in host order -> as it stands in a word that is stored to the wire whole."""
    return <uint16_t>(value << 8 | value >> 8)


cdef inline void store_be16(uint8_t* at, uint16_t value) noexcept nogil:
    at[0] = <uint8_t>(value >> 8)
    at[1] = <uint8_t>value


cdef inline void store_be32(uint8_t* at, uint32_t value) noexcept nogil:
    at[0] = <uint8_t>(value >> 24)
    at[1] = <uint8_t>(value >> 16)
    at[2] = <uint8_t>(value >> 8)
    at[3] = <uint8_t>value


cdef inline uint32_t sum_be16(const uint8_t* at, size_t length, uint32_t total) noexcept nogil:
    """Add `length` bytes as big-endian 16-bit words (an odd last byte is the high half). No overflow below 128 KiB."""
    cdef size_t i = 0
    while i + 2 <= length:
        total += load_be16(at + i)
        i += 2
    if i < length:
        total += <uint32_t>at[i] << 8
    return total


cdef inline uint16_t fold_sum(uint32_t total) noexcept nogil:
    """A one's complement sum in 16 bits (RFC 1071). Two folds leave no carry: the first gives at most 0x1fffe."""
    total = (total & 0xffff) + (total >> 16)
    return <uint16_t>((total & 0xffff) + (total >> 16))


cdef inline uint16_t fold_checksum(uint32_t total) noexcept nogil:
    """One's complement of the folded sum (RFC 1071), host order."""
    return <uint16_t>~fold_sum(total)
