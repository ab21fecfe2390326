/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What the programs of the second chance share with proxy_agent: reasons, counters, constants, settings, questions.
 * tests/unit/test_agent_xdp_layout.py holds the two together, and the reasons to proxy_agent/decide.py.
 */
#ifndef GLB_VERDICTS_H
#define GLB_VERDICTS_H

#include <linux/types.h>

#define GLB_MAX_NAMESPACES 16       /* network namespaces, besides the interface's own, whose sockets are looked up */
#define GLB_MAX_VIPS 4096           /* prefixes of one address family in the agent's configuration */
#define GLB_MAX_SOURCES 16384       /* prefixes in the agent's configuration */
#define GLB_MAX_OWN_ADDRESSES 16384
#define GLB_MAX_COOKIES 65536       /* flows that are remembered after a SYN cookie; the oldest is forgotten */
#define GLB_COOKIE_MS 2000          /* for how long */
#define GLB_SHORT_LIST 4            /* prefixes that are compared one by one before a trie is asked */
#define GLB_OWN_FILTER_WORDS 4

/* The order is that of decide.REASONS. */
enum glb_why {
    GLB_WHY_SYN,
    GLB_WHY_ESTABLISHED,
    GLB_WHY_SYN_COOKIE,
    GLB_WHY_UDP,
    GLB_WHY_ICMP_ERROR,
    GLB_WHY_ICMP,
    GLB_WHY_FRAGMENT,
    GLB_WHY_LAST_RESORT,
    GLB_WHY_BOUNCE,
    GLB_WHY_NOT_ALLOWED,
    GLB_WHY_NOT_VIP,
    GLB_WHY_TTL,
    GLB_WHY_UNKNOWN_PROTOCOL,
    GLB_WHY_MALFORMED,
    GLB_WHY_OUTER_MALFORMED,
    GLB_WHY_OUTER_CHECKSUM,
    GLB_WHY_OUTER_FRAGMENT,
    GLB_WHY_GUE_MALFORMED,
    GLB_WHY_LOOK_UP_FAILED,
    GLB_WHY_UNDELIVERED,
    GLB_N_REASONS
};

/* Entries of the per-CPU array glb_counters: first one for each reason, then these. */
enum glb_counter {
    GLB_COUNT_RECALLED = GLB_N_REASONS, /* accepted from the memory of SYN cookies */
    GLB_COUNT_BY_HOST,                  /* bounced packets that the host's stack sends */
    GLB_COUNT_COOKIES_JUDGED,           /* segments to a listener that might have answered a SYN cookie */
    GLB_COUNT_HOPS,                     /* bounced packets by position in the hop list, GLB_MAX_GUE_HOPS entries */
};

/* Never change while a program runs: the verifier drops what they switch off. */
struct glb_agent_options {
    __be16 gue_port;
    __u16 unused;
    __u32 ifindex;     /* bounced packets whose route leaves by it are sent by the program */
    __u32 by_redirect; /* 1: with bpf_redirect; 0: with XDP_TX */
};
_Static_assert(sizeof(struct glb_agent_options) == 12, "glb_agent_options is written by xdp.py as 12 bytes");

/* What an address has to be after the mask; a free place has a network outside its mask, which matches nothing. */
struct glb_masked4 {
    __be32 network;
    __be32 mask;
};

struct glb_masked6 {
    __be64 network[2];
    __be64 mask[2];
};

/* An entry of glb_agent_settings. The short lists hold the first prefixes of the tries: what is found there needs no trie. */
struct glb_agent_settings {
    __u64 own_filter[GLB_OWN_FILTER_WORDS]; /* a bit of no address of this host is clear: see glb_filter_bit */
    struct glb_masked6 vips6[GLB_SHORT_LIST];
    struct glb_masked4 vips4[GLB_SHORT_LIST];
    struct glb_masked4 sources[GLB_SHORT_LIST];
    __be32 address; /* of this host: where most tunnel packets are sent to */
    __u32 n_namespaces;
    __s32 namespaces[GLB_MAX_NAMESPACES]; /* ids as seen from the interface's namespace */
};
_Static_assert(sizeof(struct glb_agent_settings) == 296, "glb_agent_settings is written by xdp.py as 296 bytes");

/* The bit of an address, its 4 bytes taken as a little-endian number. */
static inline __u32 glb_filter_bit(__u32 address)
{
    return address * 0x9e3779b1U >> 24;
}

/* A segment that may acknowledge a SYN cookie, as bpf/syncookie.bpf.c is asked about it. The fixed parts of its headers, in wire
 * order: options and extension headers are left out. Of `ip`, IPv4 fills the first 20 bytes. */
#define GLB_COOKIE_QUESTIONS 32 /* of one call: the answers are the bits of its return value */
struct glb_cookie_question {
    __u8 ip[40];
    __u8 tcp[20];
};
_Static_assert(sizeof(struct glb_cookie_question) == 60, "glb_cookie_question is two headers without a gap");

/* Keys of the two kinds of prefixes. */
struct glb_prefix4 {
    __u32 bits;
    __be32 address;
};

struct glb_prefix6 {
    __u32 bits;
    __be32 address[4];
};

#endif
