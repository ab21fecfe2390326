/* SipHash-2-4 (Aumasson and Bernstein, 2012), written plainly: what the baselines hash with. Little-endian machines. */
#ifndef GLB_BENCH_SIPHASH_H
#define GLB_BENCH_SIPHASH_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define SIP_ROTATE(x, bits) (((x) << (bits)) | ((x) >> (64 - (bits))))

static inline __attribute__((always_inline)) void sip_round(uint64_t v[4])
{
    v[0] += v[1];
    v[2] += v[3];
    v[1] = SIP_ROTATE(v[1], 13) ^ v[0];
    v[3] = SIP_ROTATE(v[3], 16) ^ v[2];
    v[0] = SIP_ROTATE(v[0], 32);
    v[2] += v[1];
    v[0] += v[3];
    v[1] = SIP_ROTATE(v[1], 17) ^ v[2];
    v[3] = SIP_ROTATE(v[3], 21) ^ v[0];
    v[2] = SIP_ROTATE(v[2], 32);
}

/* Inlined with a constant length, the loop and the tail fold away. */
static inline __attribute__((always_inline)) uint64_t siphash24(const uint8_t key[16], const uint8_t *message, size_t length)
{
    uint64_t k0, k1, word, v[4];
    size_t at = 0;

    memcpy(&k0, key, 8);
    memcpy(&k1, key + 8, 8);
    v[0] = k0 ^ 0x736f6d6570736575ULL;
    v[1] = k1 ^ 0x646f72616e646f6dULL;
    v[2] = k0 ^ 0x6c7967656e657261ULL;
    v[3] = k1 ^ 0x7465646279746573ULL;
    for (; at + 8 <= length; at += 8) {
        memcpy(&word, message + at, 8);
        v[3] ^= word;
        sip_round(v);
        sip_round(v);
        v[0] ^= word;
    }
    word = 0;
    memcpy(&word, message + at, length - at);
    word |= (uint64_t)length << 56;
    v[3] ^= word;
    sip_round(v);
    sip_round(v);
    v[0] ^= word;
    v[2] ^= 0xff;
    for (int i = 0; i < 4; i++)
        sip_round(v);
    return v[0] ^ v[1] ^ v[2] ^ v[3];
}

#endif
