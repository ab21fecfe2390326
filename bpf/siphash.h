/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* SipHash-2-4 over the chosen fields of a flow, for the eBPF program: inlined whole, one version per set of fields. */
#ifndef GLB_SIPHASH_H
#define GLB_SIPHASH_H

#include <linux/types.h>

#ifndef __always_inline
#define __always_inline inline __attribute__((always_inline))
#endif

struct sip {
    __u64 v0, v1, v2, v3;
};

#define ROTL(x, bits) (((x) << (bits)) | ((x) >> (64 - (bits))))

static __always_inline void sip_round(struct sip *s)
{
    s->v0 += s->v1;
    s->v1 = ROTL(s->v1, 13);
    s->v1 ^= s->v0;
    s->v0 = ROTL(s->v0, 32);
    s->v2 += s->v3;
    s->v3 = ROTL(s->v3, 16);
    s->v3 ^= s->v2;
    s->v0 += s->v3;
    s->v3 = ROTL(s->v3, 21);
    s->v3 ^= s->v0;
    s->v2 += s->v1;
    s->v1 = ROTL(s->v1, 17);
    s->v1 ^= s->v2;
    s->v2 = ROTL(s->v2, 32);
}

static __always_inline void sip_word(struct sip *s, __u64 word)
{
    s->v3 ^= word;
    sip_round(s);
    sip_round(s);
    s->v0 ^= word;
}

/* `words` whole words of the message, then `last` with the rest of it and the length. */
static __always_inline __u64 siphash(__u64 key0, __u64 key1, const __u64 *words, int n, __u64 last)
{
    struct sip s = {
        key0 ^ 0x736f6d6570736575ULL,
        key1 ^ 0x646f72616e646f6dULL,
        key0 ^ 0x6c7967656e657261ULL,
        key1 ^ 0x7465646279746573ULL,
    };

#pragma unroll
    for (int i = 0; i < n; i++)
        sip_word(&s, words[i]);
    sip_word(&s, last);
    s.v2 ^= 0xff;
    sip_round(&s);
    sip_round(&s);
    sip_round(&s);
    sip_round(&s);
    return s.v0 ^ s.v1 ^ s.v2 ^ s.v3;
}

#ifdef __bpf__
#define HASH_SRC_ADDR 1
#define HASH_DST_ADDR 2
#define HASH_SRC_PORT 4
#define HASH_DST_PORT 8

/* What is hashed, as 32-bit words in wire order, which is the order in memory. */
struct flow {
    __u32 source[4];      /* IPv4: the first one */
    __u32 destination[4];
    __u32 ports;          /* source port in the low half of the memory, then destination port */
};

/* The fields one after the other as 32-bit units; ports are half a unit each, and stand last. */
static __always_inline __u64 hash_of(const struct flow *flow, const int n_address, const __u32 fields, __u64 key0, __u64 key1)
{
    __u32 unit[10] = {};
    __u64 words[4];
    int n = 0;

    if (fields & HASH_SRC_ADDR) {
#pragma unroll
        for (int i = 0; i < n_address; i++)
            unit[n++] = flow->source[i];
    }
    if (fields & HASH_DST_ADDR) {
#pragma unroll
        for (int i = 0; i < n_address; i++)
            unit[n++] = flow->destination[i];
    }
    if ((fields & (HASH_SRC_PORT | HASH_DST_PORT)) == (HASH_SRC_PORT | HASH_DST_PORT))
        unit[n] = flow->ports;
    else if (fields & HASH_SRC_PORT)
        unit[n] = flow->ports & 0xffff;
    else if (fields & HASH_DST_PORT)
        unit[n] = flow->ports >> 16;
    const int bytes = 4 * n + (fields & HASH_SRC_PORT ? 2 : 0) + (fields & HASH_DST_PORT ? 2 : 0);
#pragma unroll
    for (int i = 0; i < 4; i++)
        words[i] = unit[2 * i] | (__u64)unit[2 * i + 1] << 32;
    const int whole = bytes / 8;
    __u64 last = (__u64)bytes << 56;

    if (bytes % 8)
        last |= unit[2 * whole] | (bytes % 8 > 4 ? (__u64)unit[2 * whole + 1] << 32 : 0);
    return siphash(key0, key1, words, whole, last);
}

/* `fields` is constant once the program is loaded: all cases but one are removed by the verifier. */
static __always_inline __u64 flow_hash(const struct flow *flow, const int n_address, __u32 fields, __u64 key0, __u64 key1)
{
#define FIELDS(set) case set: return hash_of(flow, n_address, set, key0, key1)
    switch (fields) {
    FIELDS(1); FIELDS(2); FIELDS(3); FIELDS(4); FIELDS(5); FIELDS(6); FIELDS(7); FIELDS(8);
    FIELDS(9); FIELDS(10); FIELDS(11); FIELDS(12); FIELDS(13); FIELDS(14); FIELDS(15);
    }
#undef FIELDS
    return 0;
}
#endif /* __bpf__ */

#endif
