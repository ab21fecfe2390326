/* The engines that rank backends: one source (_rendezvous_lanes.h), compiled for several instruction sets, chosen at run time. */
#ifndef GLB_RENDEZVOUS_ENGINES_H
#define GLB_RENDEZVOUS_ENGINES_H

#include <stddef.h>
#include <stdint.h>

#define GLB_KEPT 8 /* candidates that `best` can keep */

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

#define GLB_LANES "_rendezvous_lanes.h"
#include "_simd.h"

#define GLB_ENGINE(engine, lanes_) \
    {#engine, lanes_, glb_ranks_##engine, glb_ranks_each_##engine, glb_ranks_of_row_##engine, glb_best_##engine},

static const struct glb_engine glb_engines[] = {GLB_ENGINES(GLB_ENGINE)};

#define GLB_N_ENGINES (sizeof glb_engines / sizeof glb_engines[0])

/* Whether this machine has what glb_engines[number] needs. Fastest first; the last one always runs. */
static inline int glb_engine_runs(size_t number)
{
    return number < GLB_N_ENGINES && glb_lanes_run(glb_engines[number].lanes);
}

/* The upper half of the 128-bit product. */
static inline uint64_t glb_high_product(uint64_t a, uint64_t b)
{
    return (uint64_t)((unsigned __int128)a * b >> 64);
}

#endif
