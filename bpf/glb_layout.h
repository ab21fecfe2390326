/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What a director forwards by, as bytes that the eBPF program and Cython read alike: all of one generation but the rows in
 * one block, the rows of each table in chunks. One pointer swap publishes the block, and with it everything that it names.
 * glb/table/binds.py computes the binds, glb/_fastpath.pyx packs the block, into memory that it shares with the kernel.
 *
 * Bind look-up: the prefix lengths in use, longest first; one hash probe sequence each. Every prefix carries the port
 * segments that are in force for it, those inherited from shorter prefixes included, so the first prefix found is the answer.
 */
#ifndef GLB_LAYOUT_H
#define GLB_LAYOUT_H

#include <linux/types.h>

#define GLB_PREFIX_SLOTS 65536 /* a power of two, like slot_mask + 1, of which at most a quarter is used: a seed with short
                                * probe sequences is found */
#define GLB_MAX_PREFIXES 16384 /* distinct bind prefixes, all tables together */
#define GLB_MAX_PROBES 8
#define GLB_MAX_SEGMENTS 131072 /* 2^17: a binary search ends after 18 steps */
#define GLB_SEARCH_STEPS 18
#define GLB_NEAR_SEGMENTS 2    /* as many as make struct glb_prefix a cache line */
#define GLB_MAX_LENGTHS 130    /* distinct prefix lengths of one family, and a terminating 0xff */
#define GLB_NO_TABLE 0xffff
#define GLB_MAX_EXTENSION_HEADERS 8
#define GLB_MAX_TAGS 2 /* VLAN tags of a frame */
#define GLB_MAX_TABLES 256
#define GLB_MAX_BACKENDS 16384 /* of all tables together; a power of two */
#define GLB_CHUNK_ROWS 65536   /* rows that one chunk holds; larger tables have several */
#define GLB_MAX_STRIDE 4       /* backend indexes that a row takes at most */
#define GLB_CHUNK_BYTES (GLB_CHUNK_ROWS * GLB_MAX_STRIDE * 2)
#define GLB_BANK_CHUNKS 512    /* chunks that one generation can have; the next one uses the other bank of map slots */
#define GLB_NO_HOP 0xffff      /* unused entry of a row */
#define GLB_NEXT_HOP_KNOWN_BIT 48
#define GLB_NEXT_HOP_EGRESS_BIT 56 /* and up: index into glb_generation.egresses */
#define GLB_MAX_EGRESSES 256 /* what 8 bits count */

/* What becomes of a frame that a director receives; each but the first two is a reason to drop it, and has a counter. */
enum glb_verdict {
    GLB_FORWARD,         /* encapsulated and sent */
    GLB_HOST,            /* not ours: untouched to the host's stack */
    GLB_DROP_MALFORMED,  /* header fields that contradict themselves: a broken or hostile sender */
    GLB_DROP_TRUNCATED,  /* shorter than its own length fields say, or ports cut off */
    GLB_DROP_FRAGMENT,   /* a later fragment where ports would be needed to choose the proxy */
    GLB_DROP_TOO_BIG,    /* the tunnel packet would not fit the path to the proxy: MTU of the core too small */
    GLB_DROP_NO_NEXT_HOP, /* no route to the proxy, or its gateway does not answer ARP */
    GLB_DROP_NO_BACKEND, /* the row names no proxy; cannot be built, kept as a guard */
    GLB_DROP_STALE_BIND, /* the kernel still classified by the binds before a reload */
    GLB_N_VERDICTS
};

struct glb_segment {
    __u32 first; /* protocol << 16 | port, host order, inclusive; segments of a prefix ascend and do not overlap */
    __u32 last;
    __u32 table;
};

struct glb_prefix {
    __u64 high;               /* address, host order; IPv4 is ::ffff:a.b.c.d */
    __u64 low;
    __u8 length;              /* bits of 128 (IPv4: 96 + its own) */
    __u8 used;                /* 0: an empty slot ends a probe sequence */
    __u16 echo_table;         /* table of ICMP echo requests */
    __u16 fragment_tables[2]; /* table of later fragments of TCP [0] and UDP [1]; GLB_NO_TABLE: more than one, or none */
    __u32 first_segment;      /* index into glb_generation.segments */
    __u32 n_segments;
    struct glb_segment near[GLB_NEAR_SEGMENTS]; /* copies of the first ones, in this cache line; where there is none, last < first */
    __u64 reserved;
};

struct glb_backend {
    __u64 next_hop;    /* MAC address in memory order in the low 48 bits, bit 48 set when known, egress in the high 8; one aligned
                        * store changes it */
    __u32 mtu_bytes;   /* of the path to it, for the tunnel packet's IP length */
    __u32 header_sum;  /* one's complement sum of the outer IPv4 header without its length, as 16-bit words in memory order */
    __u8 address[4];   /* wire order */
    __u32 counter;     /* index of its counters in a worker */
    __u32 slot;        /* index of its counters in the kernel: the same in every generation */
    __u32 reserved;
};

/* An interface that tunnel packets leave by; 0 stands for the one that their packets came in by, and is not filled in. While a
 * next hop names an entry it does not change. */
struct glb_egress {
    __u32 ifindex;
    __u8 source_mac[6];
    __u8 redirects; /* flag: its driver takes what an XDP program redirects; else the AF_XDP worker sends */
    __u8 reserved[5];
};

struct glb_table {
    __u64 key0;          /* hash key, little-endian halves */
    __u64 key1;
    __u32 row_mask;      /* rows - 1 */
    __u32 stride;        /* backend indexes that a row takes: 2 or 4 */
    __u32 first_chunk;   /* slot of its first chunk in the map of chunks */
    __u32 first_backend; /* index into glb_generation.backends; the rows count from here */
    __u32 n_backends;
    __u32 keep_duplicates; /* row rule glb2: an alternative row's hops are appended even if already listed */
};

struct glb_generation {
    __u64 seed;                          /* of glb_prefix_slot */
    __u32 forward_echo;                  /* 0: echo requests go to the host's stack */
    __u32 n_prefixes;
    __u32 n_tables;
    __u32 slot_mask;                     /* slots in use - 1 */
    __u8 lengths[2][GLB_MAX_LENGTHS];    /* [0] IPv4, [1] IPv6: prefix lengths of 128, longest first, ended by 0xff */
    __u8 reserved[36];
    struct glb_table tables[GLB_MAX_TABLES];
    struct glb_egress egresses[GLB_MAX_EGRESSES];
    struct glb_backend backends[GLB_MAX_BACKENDS];
    struct glb_prefix slots[GLB_PREFIX_SLOTS];
    struct glb_segment segments[GLB_MAX_SEGMENTS];
};

/* Row r of a table: GLB_CHUNK_ROWS rows a chunk, `stride` indexes from (r mod GLB_CHUNK_ROWS) * stride on. */
struct glb_rows {
    __u16 hops[GLB_CHUNK_ROWS * GLB_MAX_STRIDE];
};

/* How the program forwards; constant from its loading on, so that the verifier removes what is not used. */
struct glb_options {
    __u32 accelerate;      /* 0: every packet of a bind goes to the AF_XDP socket */
    __u32 hash_fields;     /* bits: source address 1, destination address 2, source port 4, destination port 8 */
    __u32 alt_hash_fields; /* 0: no alternative row */
    __u32 ifindex;         /* 0: what leaves by the interface it came in by is redirected there, too; else sent by XDP_TX */
    __u64 front[5];        /* the first bytes of every frame sent, as words in memory order; 0 where they vary */
};

/* What is raised when a director could not go on with the maps of one before it: another struct glb_count, other counters or sizes of
 * the maps in glb/director/kept.py, another ledger (glb/director/ledger.py). Tables and their layout are not adopted. */
#define GLB_LAYOUT_VERSION 1

#define GLB_COUNT_SLOTS (2 * GLB_MAX_BACKENDS) /* two generations without a backend in common can have counters at once */

/* Counted per CPU, by glb_backend.slot: tunnel packets with the backend as outer destination. */
struct glb_count {
    __u64 packets;
    __u64 bytes; /* as received */
};

_Static_assert(sizeof(struct glb_prefix) == 64, "glb_prefix is a cache line");
_Static_assert(sizeof(struct glb_segment) == 12, "glb_segment has no holes");
_Static_assert(sizeof(struct glb_backend) == 32, "glb_backend has no holes");
_Static_assert(sizeof(struct glb_egress) == 16, "glb_egress has no holes");
_Static_assert(sizeof(struct glb_table) == 40, "glb_table has no holes");
_Static_assert(sizeof(struct glb_options) == 56, "glb_options has no holes");
_Static_assert(__builtin_offsetof(struct glb_generation, tables) == 320, "glb_generation has no holes");
_Static_assert(__builtin_offsetof(struct glb_generation, slots) % 64 == 0, "a glb_prefix does not cross cache lines");
_Static_assert(sizeof(struct glb_rows) == GLB_CHUNK_BYTES && GLB_CHUNK_BYTES % 65536 == 0, "glb_rows fills whole pages");

/* Slot at which the probe sequence of a prefix starts, before the mask. */
static inline __attribute__((always_inline)) __u32 glb_prefix_slot(__u64 high, __u64 low, __u32 length, __u64 seed)
{
    __u64 x = (high ^ seed) * 0x9e3779b97f4a7c15ULL;

    x ^= x >> 32;
    x = (x ^ low ^ length) * 0xbf58476d1ce4e5b9ULL;
    return (__u32)(x >> 40);
}

#endif
