/* One source of lanes, compiled for several instruction sets: who wants that defines GLB_LANES as the source's name, includes
 * this file once, and makes a table of what came out with GLB_ENGINES(X), which is X(name, lanes) for each, fastest first.
 * In GLB_LANES are then defined
 *
 *   LANES            how many 64-bit numbers a V has
 *   NAME(f)          the engine's name for a function
 *   TARGET           the attribute that lets the compiler use the engine's instructions
 *   V                the type, with + ^ | >> of C
 *   SPLAT(x)         x in every lane
 *   LOAD(p), STORE(p, v)   unaligned
 *   ROTL(v, n)       rotate left
 *   REVERSED(v)      bytes of each lane in the other order
 *   LOWER, HIGHER    the lower, the higher of two per lane
 *   ANY_BELOW(a, b)  whether a lane of a is below that of b
 *   BIAS             what keys are xored with so that these three order them as unsigned numbers
 *
 * and the functions of _sip_lanes.h. All engines of a source give the same results, bit for bit.
 */
#ifndef GLB_SIMD_H
#define GLB_SIMD_H

#include <stddef.h>
#include <stdint.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "addresses and hashes are read as little-endian words here"
#endif

#define GLB_MAX_LANES 8 /* of any engine */
#define INLINE inline __attribute__((always_inline))

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
#include "_sip_lanes.h"
#include GLB_LANES
#include "_simd_end.h"

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
#include "_sip_lanes.h"
#include GLB_LANES
#include "_simd_end.h"

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
#include "_sip_lanes.h"
#include GLB_LANES
#include "_simd_end.h"

#endif /* __x86_64__ */

#if defined(__x86_64__)
#define GLB_ENGINES(X) X(avx512, 8) X(avx2, 4) X(scalar, 1)
#else
#define GLB_ENGINES(X) X(scalar, 1)
#endif

/* Whether this machine can do what the engine of so many lanes needs. */
static inline int glb_lanes_run(uint32_t lanes)
{
#if defined(__x86_64__)
    if (lanes == 8)
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw");
    if (lanes == 4)
        return __builtin_cpu_supports("avx2") != 0;
#endif
    return lanes == 1;
}

#endif
