/* The engines that rank backends: one source (_rendezvous_lanes.h), compiled for several instruction sets, chosen at run time. */
#ifndef GLB_RENDEZVOUS_ENGINES_H
#define GLB_RENDEZVOUS_ENGINES_H

#include <stddef.h>
#include <stdint.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "addresses and hashes are read as little-endian words here"
#endif

#define GLB_KEPT 8      /* candidates that `best` can keep */
#define GLB_MAX_LANES 8 /* of any engine */

/* The backends that are ranked, as the hash takes them. */
struct glb_ranked {
    uint64_t k0, k1;            /* SipHash key: the table's seed */
    size_t count;               /* backends */
    const uint64_t *last_words; /* count, and GLB_MAX_LANES - 1 more to read past the end: IPv4 address | message length << 56 */
    const uint64_t *ipv6;       /* 2 per backend: the address, where the message length is 24; NULL: it never is */
};

struct glb_engine {
    const char *name;
    uint32_t lanes; /* rows, or backends, at once */
    void (*ranks)(const struct glb_ranked *of, uint32_t first_row, size_t first, size_t count, uint64_t *ranks);
    void (*ranks_each)(const struct glb_ranked *of, const uint32_t *rows, const uint16_t *backends, uint64_t *ranks);
    void (*ranks_of_row)(const struct glb_ranked *of, uint32_t row, const uint16_t *backends, size_t count, uint64_t *ranks);
    uint32_t (*best)(const struct glb_ranked *of, uint32_t first_row, size_t keep, uint16_t *best);
};

#define INLINE inline __attribute__((always_inline))
#define GLB_ENGINE(engine, lanes_) \
    {#engine, lanes_, glb_ranks_##engine, glb_ranks_each_##engine, glb_ranks_of_row_##engine, glb_best_##engine}

/* ---- scalar: every machine */

#define LANES 1
#define NAME(f) glb_##f##_scalar
#define TARGET
#define V uint64_t
#define SPLAT(x) ((uint64_t)(x))
#define LOAD(p) (*(p))
#define STORE(p, v) (*(p) = (v))
#define ROTL(v, n) ((v) << (n) | (v) >> (64 - (n)))
#define REVERSED(v) __builtin_bswap64(v)
#define LOWER(a, b) ((a) < (b) ? (a) : (b))
#define HIGHER(a, b) ((a) < (b) ? (b) : (a))
#define ANY_BELOW(a, b) ((a) < (b))
#define BIAS ((uint64_t)0)
#include "_rendezvous_lanes.h"
#undef LANES
#undef NAME
#undef TARGET
#undef V
#undef SPLAT
#undef LOAD
#undef STORE
#undef ROTL
#undef REVERSED
#undef LOWER
#undef HIGHER
#undef ANY_BELOW
#undef BIAS

#if defined(__x86_64__)
#include <immintrin.h>

/* ---- AVX2: 4 lanes, no rotation, no unsigned comparison */

typedef uint64_t glb_v4 __attribute__((vector_size(32)));

#define LANES 4
#define NAME(f) glb_##f##_avx2
#define TARGET __attribute__((target("avx2")))
#define V glb_v4
#define SPLAT(x) ((glb_v4)_mm256_set1_epi64x((long long)(x)))
#define LOAD(p) ((glb_v4)_mm256_loadu_si256((const __m256i *)(p)))
#define STORE(p, v) _mm256_storeu_si256((__m256i *)(p), (__m256i)(v))
#define ROTL(v, n) GLB_ROTL4(v, n)
#define REVERSED(v) GLB_REVERSED4(v)
#define LOWER(a, b) ((glb_v4)_mm256_blendv_epi8((__m256i)(a), (__m256i)(b), _mm256_cmpgt_epi64((__m256i)(a), (__m256i)(b))))
#define HIGHER(a, b) ((glb_v4)_mm256_blendv_epi8((__m256i)(b), (__m256i)(a), _mm256_cmpgt_epi64((__m256i)(a), (__m256i)(b))))
#define ANY_BELOW(a, b) (!_mm256_testz_si256(_mm256_cmpgt_epi64((__m256i)(b), (__m256i)(a)), _mm256_set1_epi64x(-1)))
#define BIAS ((uint64_t)1 << 63)
/* Rotations by whole bytes are one shuffle: 32 of 32-bit words, 16 of bytes. */
#define GLB_ROTL4(v, n) \
    ((n) == 32   ? (glb_v4)_mm256_shuffle_epi32((__m256i)(v), 0xb1) \
     : (n) == 16 ? (glb_v4)_mm256_shuffle_epi8((__m256i)(v), _mm256_set_epi64x(0x0d0c0b0a09080f0e, 0x0504030201000706, \
                                                                             0x0d0c0b0a09080f0e, 0x0504030201000706)) \
                 : (v) << (n) | (v) >> (64 - (n)))
#define GLB_REVERSED4(v) \
    ((glb_v4)_mm256_shuffle_epi8((__m256i)(v), _mm256_set_epi64x(0x08090a0b0c0d0e0f, 0x0001020304050607, \
                                                                0x08090a0b0c0d0e0f, 0x0001020304050607)))
#include "_rendezvous_lanes.h"
#undef LANES
#undef NAME
#undef TARGET
#undef V
#undef SPLAT
#undef LOAD
#undef STORE
#undef ROTL
#undef REVERSED
#undef LOWER
#undef HIGHER
#undef ANY_BELOW
#undef BIAS

/* ---- AVX-512 (F and BW): 8 lanes */

typedef uint64_t glb_v8 __attribute__((vector_size(64)));

#define LANES 8
#define NAME(f) glb_##f##_avx512
#define TARGET __attribute__((target("avx512f,avx512bw")))
#define V glb_v8
#define SPLAT(x) ((glb_v8)_mm512_set1_epi64((long long)(x)))
#define LOAD(p) ((glb_v8)_mm512_loadu_si512((const void *)(p)))
#define STORE(p, v) _mm512_storeu_si512((void *)(p), (__m512i)(v))
#define ROTL(v, n) ((glb_v8)_mm512_rol_epi64((__m512i)(v), n))
#define REVERSED(v) \
    ((glb_v8)_mm512_shuffle_epi8((__m512i)(v), _mm512_set4_epi64(0x08090a0b0c0d0e0f, 0x0001020304050607, \
                                                                0x08090a0b0c0d0e0f, 0x0001020304050607)))
#define LOWER(a, b) ((glb_v8)_mm512_min_epu64((__m512i)(a), (__m512i)(b)))
#define HIGHER(a, b) ((glb_v8)_mm512_max_epu64((__m512i)(a), (__m512i)(b)))
#define ANY_BELOW(a, b) (_mm512_cmplt_epu64_mask((__m512i)(a), (__m512i)(b)) != 0)
#define BIAS ((uint64_t)0)
#include "_rendezvous_lanes.h"
#undef LANES
#undef NAME
#undef TARGET
#undef V
#undef SPLAT
#undef LOAD
#undef STORE
#undef ROTL
#undef REVERSED
#undef LOWER
#undef HIGHER
#undef ANY_BELOW
#undef BIAS

#endif /* __x86_64__ */

/* ---- the choice */

static const struct glb_engine glb_engines[] = {
#if defined(__x86_64__)
    GLB_ENGINE(avx512, 8),
    GLB_ENGINE(avx2, 4),
#endif
    GLB_ENGINE(scalar, 1),
};

#define GLB_N_ENGINES (sizeof glb_engines / sizeof glb_engines[0])

/* Whether this machine has what glb_engines[number] needs. Fastest first; the last one always runs. */
static inline int glb_engine_runs(size_t number)
{
#if defined(__x86_64__)
    if (glb_engines[number].lanes == 8)
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw");
    if (glb_engines[number].lanes == 4)
        return __builtin_cpu_supports("avx2") != 0;
#endif
    return number < GLB_N_ENGINES;
}

/* The upper half of the 128-bit product. */
static inline uint64_t glb_high_product(uint64_t a, uint64_t b)
{
    return (uint64_t)((unsigned __int128)a * b >> 64);
}

#endif
