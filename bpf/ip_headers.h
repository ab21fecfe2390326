/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The fixed parts of the IP headers (RFC 791, RFC 8200), in wire order. */
#ifndef GLB_IP_HEADERS_H
#define GLB_IP_HEADERS_H

#include <linux/types.h>

struct ipv4 {
    __u8 version_ihl;
    __u8 tos;
    __be16 total_length;
    __be16 id;
    __be16 fragment;
    __u8 ttl;
    __u8 protocol;
    __be16 checksum;
    __be32 source;
    __be32 destination;
};

struct ipv6 {
    __be32 version_label;
    __be16 payload_length;
    __u8 next_header;
    __u8 hop_limit;
    __be32 source[4];
    __be32 destination[4];
};

/* Both addresses of an IPv6 header or of a socket's tuple, by halves: half the loads, and the kernel compares them by halves, too. */
struct ipv6_pair {
    __u64 source[2];
    __u64 destination[2];
} __attribute__((may_alias));

#endif
