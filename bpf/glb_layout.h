/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What a director forwards by, as bytes that the eBPF program and Cython read alike: the binds of one generation, in one
 * block, so that one pointer swap publishes all of them. glb/table/binds.py computes the content, glb/_fastpath.pyx packs it.
 *
 * Look-up: the prefix lengths in use, longest first; one hash probe sequence each. Every prefix carries the port segments
 * that are in force for it, those inherited from shorter prefixes included, so the first prefix found is the answer.
 */
#ifndef GLB_LAYOUT_H
#define GLB_LAYOUT_H

#include <linux/types.h>

#define GLB_PREFIX_SLOTS 65536 /* a power of two; at most a quarter is used, so a seed with short probe sequences is found */
#define GLB_MAX_PREFIXES 16384 /* distinct bind prefixes, all tables together */
#define GLB_MAX_PROBES 8
#define GLB_MAX_SEGMENTS 131072 /* 2^17: a binary search ends after 18 steps */
#define GLB_SEARCH_STEPS 18
#define GLB_MAX_LENGTHS 130    /* distinct prefix lengths of one family, and a terminating 0xff */
#define GLB_NO_TABLE 0xffff
#define GLB_MAX_EXTENSION_HEADERS 8

/* What becomes of a frame that a director receives; each but the first two is a reason to drop it, and has a counter. */
enum glb_verdict {
    GLB_FORWARD,         /* encapsulated and sent */
    GLB_HOST,            /* not ours: untouched to the host's stack */
    GLB_DROP_MALFORMED,  /* header fields that contradict themselves: a broken or hostile sender */
    GLB_DROP_TRUNCATED,  /* shorter than its own length fields say, or ports cut off */
    GLB_DROP_FRAGMENT,   /* a later fragment where ports would be needed to choose the proxy */
    GLB_DROP_TOO_BIG,    /* the tunnel packet would not fit the path to the proxy: MTU of the core too small */
    GLB_DROP_NO_NEXT_HOP, /* no route to the proxy by this interface, or its gateway does not answer ARP */
    GLB_DROP_NO_BACKEND, /* the row names no proxy; cannot be built, kept as a guard */
    GLB_DROP_STALE_BIND, /* the kernel still classified by the binds before a reload */
    GLB_N_VERDICTS
};

struct glb_prefix {
    __u64 high;               /* address, host order; IPv4 is ::ffff:a.b.c.d */
    __u64 low;
    __u8 length;              /* bits of 128 (IPv4: 96 + its own) */
    __u8 used;                /* 0: an empty slot ends a probe sequence */
    __u16 echo_table;         /* table of ICMP echo requests */
    __u16 fragment_tables[2]; /* table of later fragments of TCP [0] and UDP [1]; GLB_NO_TABLE: more than one, or none */
    __u32 first_segment;
    __u32 n_segments;
};

struct glb_segment {
    __u32 first; /* protocol << 16 | port, host order, inclusive; segments of a prefix ascend and do not overlap */
    __u32 last;
    __u32 table;
};

struct glb_binds {
    __u64 seed;
    __u32 forward_echo;                  /* 0: echo requests go to the host's stack */
    __u32 n_prefixes;
    __u8 lengths[2][GLB_MAX_LENGTHS];    /* [0] IPv4, [1] IPv6: prefix lengths of 128, longest first, ended by 0xff */
    __u8 reserved[4];
    struct glb_prefix slots[GLB_PREFIX_SLOTS];
    struct glb_segment segments[GLB_MAX_SEGMENTS];
};

_Static_assert(sizeof(struct glb_prefix) == 32, "glb_prefix has no holes");
_Static_assert(sizeof(struct glb_segment) == 12, "glb_segment has no holes");
_Static_assert(sizeof(struct glb_binds) == 16 + 264 + 32 * GLB_PREFIX_SLOTS + 12 * GLB_MAX_SEGMENTS, "glb_binds has no holes");

/* Slot at which the probe sequence of a prefix starts. */
static inline __attribute__((always_inline)) __u32 glb_prefix_slot(__u64 high, __u64 low, __u32 length, __u64 seed)
{
    __u64 x = (high ^ seed) * 0x9e3779b97f4a7c15ULL;

    x ^= x >> 32;
    x = (x ^ low ^ length) * 0xbf58476d1ce4e5b9ULL;
    return (__u32)(x >> 40) & (GLB_PREFIX_SLOTS - 1);
}

#endif
