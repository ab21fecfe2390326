"""SipHash-2-4 (Aumasson and Bernstein, 2012) over short messages; inline, no allocation, no Python."""

from libc.stdint cimport uint64_t, uint8_t
from libc.string cimport memcpy


cdef struct SipKey:
    uint64_t k0  # first 8 key bytes, little-endian
    uint64_t k1  # last 8 key bytes, little-endian


cdef inline SipKey sip_key(const uint8_t* key) noexcept nogil:
    """16 key bytes -> SipKey. (The machines we run on are little-endian; setup.py's targets are x86-64 and arm64.)"""
    cdef SipKey result
    memcpy(&result.k0, key, 8)
    memcpy(&result.k1, key + 8, 8)
    return result


cdef inline uint64_t _rotl(uint64_t x, int bits) noexcept nogil:
    return (x << bits) | (x >> (64 - bits))


cdef inline void _round(uint64_t* v0, uint64_t* v1, uint64_t* v2, uint64_t* v3) noexcept nogil:
    v0[0] += v1[0]
    v1[0] = _rotl(v1[0], 13)
    v1[0] ^= v0[0]
    v0[0] = _rotl(v0[0], 32)
    v2[0] += v3[0]
    v3[0] = _rotl(v3[0], 16)
    v3[0] ^= v2[0]
    v0[0] += v3[0]
    v3[0] = _rotl(v3[0], 21)
    v3[0] ^= v0[0]
    v2[0] += v1[0]
    v1[0] = _rotl(v1[0], 17)
    v1[0] ^= v2[0]
    v2[0] = _rotl(v2[0], 32)


cdef inline uint64_t siphash24(SipKey key, const uint8_t* message, size_t length) noexcept nogil:
    """The 64-bit hash as the algorithm's standard little-endian number. `length` < 256."""
    cdef uint64_t v0 = key.k0 ^ <uint64_t>0x736f6d6570736575
    cdef uint64_t v1 = key.k1 ^ <uint64_t>0x646f72616e646f6d
    cdef uint64_t v2 = key.k0 ^ <uint64_t>0x6c7967656e657261
    cdef uint64_t v3 = key.k1 ^ <uint64_t>0x7465646279746573
    cdef uint64_t word
    cdef size_t at = 0
    while at + 8 <= length:
        memcpy(&word, message + at, 8)
        v3 ^= word
        _round(&v0, &v1, &v2, &v3)
        _round(&v0, &v1, &v2, &v3)
        v0 ^= word
        at += 8
    word = 0
    memcpy(&word, message + at, length - at)
    word |= <uint64_t>length << 56
    v3 ^= word
    _round(&v0, &v1, &v2, &v3)
    _round(&v0, &v1, &v2, &v3)
    v0 ^= word
    v2 ^= 0xff
    _round(&v0, &v1, &v2, &v3)
    _round(&v0, &v1, &v2, &v3)
    _round(&v0, &v1, &v2, &v3)
    _round(&v0, &v1, &v2, &v3)
    return v0 ^ v1 ^ v2 ^ v3
