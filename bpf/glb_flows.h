/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* How bpf/flows.bpf.c and proxy_agent/_flows.pyx talk: one struct glb_walk in memory that both see. */
#ifndef GLB_FLOWS_H
#define GLB_FLOWS_H

#include <linux/types.h>

#define GLB_WALK_NAMESPACES 17 /* the agent's own, and GLB_MAX_NAMESPACES others */
#define GLB_WALK_SOCKETS 16384 /* of one call; no bucket holds nearly as many */
/* ESTABLISHED, FIN_WAIT1, FIN_WAIT2, CLOSE_WAIT, LAST_ACK, CLOSING: something may still be delivered */
#define GLB_LIVE_STATES (1 << 1 | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 11)

struct glb_socket {
    __u8 local[16]; /* local address, wire order: IPv6, or IPv4 in the first 4 bytes */
    __u16 port;     /* local port, host order */
    __u16 family;   /* 4 or 6; an IPv4 flow of a socket for both families is 6, ::ffff:a.b.c.d */
};

struct glb_walk {
    __u32 bucket;       /* asked: where to begin; answered: where to go on */
    __u32 n_buckets;    /* asked: how many at most */
    __u32 table_size;   /* answered: buckets of the kernel's table; 0: its sockets are larger than is known here */
    __u32 n_sockets;    /* answered */
    __u32 n_namespaces; /* asked: network namespaces whose sockets count, by inode number */
    __u32 namespaces[GLB_WALK_NAMESPACES];
    struct glb_socket sockets[GLB_WALK_SOCKETS];
};

_Static_assert(sizeof(struct glb_socket) == 20, "records follow each other without gaps");

#endif
