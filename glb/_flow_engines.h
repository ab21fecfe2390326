/* The engines that hash flows: one source (_flow_lanes.h), compiled for several instruction sets. */
#ifndef GLB_FLOW_ENGINES_H
#define GLB_FLOW_ENGINES_H

#include "_flows.h"

#define GLB_LANES "_flow_lanes.h"
#include "_simd.h"

struct glb_flow_engine {
    const char *name;
    void (*hash)(const struct glb_flows *flows, uint64_t *hashes);
};

#define GLB_FLOW_ENGINE(engine, lanes) {#engine, glb_hash_##engine},

/* Which of them the machine can run, glb/_rendezvous.pyx knows: they have the same names there. */
static const struct glb_flow_engine glb_flow_engines[] = {GLB_ENGINES(GLB_FLOW_ENGINE)};

#define GLB_N_FLOW_ENGINES (sizeof glb_flow_engines / sizeof glb_flow_engines[0])

#endif
