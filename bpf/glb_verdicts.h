/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What the second chance in the kernel shares with proxy_agent/xdp.py: reasons, counters, constants and settings.
 * tests/unit/test_agent_xdp_layout.py holds the two together, and the reasons to proxy_agent/decide.py.
 */
#ifndef GLB_VERDICTS_H
#define GLB_VERDICTS_H

#include <linux/types.h>

#define GLB_MAX_NAMESPACES 16       /* network namespaces, besides the interface's own, whose sockets are looked up */
#define GLB_MAX_VIPS 4096           /* prefixes */
#define GLB_MAX_SOURCES 16384       /* prefixes */
#define GLB_MAX_OWN_ADDRESSES 16384
#define GLB_MAX_COOKIES 65536       /* flows that are remembered after a SYN cookie; the oldest is forgotten */
#define GLB_COOKIE_MS 2000          /* for how long */

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
    GLB_COUNT_LOOK_UPS = GLB_N_REASONS, /* questions to the socket table */
    GLB_COUNT_RECALLED,                 /* accepted from the memory of SYN cookies */
    GLB_COUNT_BY_HOST,                  /* bounced packets that the host's stack sends */
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

/* The one entry of glb_agent_settings; replaced whole. */
struct glb_agent_settings {
    __u32 n_namespaces;
    __s32 namespaces[GLB_MAX_NAMESPACES]; /* ids as seen from the interface's namespace */
};
_Static_assert(sizeof(struct glb_agent_settings) == 68, "glb_agent_settings is written by xdp.py as 68 bytes");

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
