/* The flows of a batch as the hash takes them: one array per word of the message, so that several are hashed at once. */
#ifndef GLB_FLOWS_H
#define GLB_FLOWS_H

#include <stddef.h>
#include <stdint.h>

#define GLB_BATCH 64     /* packets that go through the stages together; a multiple of the lanes of any engine */
#define GLB_FLOW_WORDS 5 /* of the longest message: 36 bytes, and its length */

/* Flows of one address family: their messages have one length. */
struct glb_flows {
    uint32_t count;
    uint32_t n_words;           /* of each message; the last one has its length in the top byte */
    uint64_t k0[GLB_BATCH];     /* SipHash key: that of the flow's table */
    uint64_t k1[GLB_BATCH];
    uint64_t words[GLB_FLOW_WORDS][GLB_BATCH];
    void *packets[GLB_BATCH];   /* struct Packet: whose flow it is */
};

#endif
