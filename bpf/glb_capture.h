/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Packet capture: what is wanted (written by glb/_capture.pyx, read by the kernel's program and the workers alike), and one
 * packet that was taken (written by those two, read by glb/_capture.pyx and glb/director/captured.py).
 */
#ifndef GLB_CAPTURE_H
#define GLB_CAPTURE_H

#include <linux/types.h>

#define GLB_ANY_TABLE 0x10000       /* tables wanted: every one, and packets that end before they have one */
#define GLB_LOST_NO_SOCKET 0xff     /* a "verdict" of the kernel's program alone: no worker on the frame's receive queue */
#define GLB_CAPTURE_MAX_KEPT 4096   /* of one packet, a power of two */
#define GLB_CAPTURE_MAX_SNAP (GLB_CAPTURE_MAX_KEPT - 96) /* of snap_bytes: the tunnel's front comes on top */
#define GLB_CAPTURE_LINK_BYTES 24   /* Ethernet header and two VLAN tags, which sending overwrites, and 2 bytes to spare */

enum glb_capture_engine {
    GLB_BY_XDP,
    GLB_BY_CYTHON,
};

struct glb_capture {
    __u32 tables[2];    /* by bank: index of the table wanted, GLB_NO_TABLE (none of that name) or GLB_ANY_TABLE */
    __u32 address_bytes; /* of the client prefix: 4, 16, or 0 for any client */
    __u32 sample;       /* one matching packet in so many, by chance */
    __u32 snap_bytes;   /* kept of a received frame at most */
    __u32 unused;
    __u64 client[2];    /* memory order; IPv4 as ::ffff:a.b.c.d */
    __u64 mask[2];
    __u64 missed;       /* by the kernel's program: its buffer was full */
    __u64 until_ns;     /* CLOCK_MONOTONIC: nothing is wanted from then on. The reader moves it on */
};

/* A packet that was taken. `kept_bytes` of a frame follow: of the one sent, or where none was, of the one received. Behind its
 * link header the received frame lies whole within what was sent, so it is link[0..link_bytes) and what follows from `ip_at` on.
 */
struct glb_captured {
    __u64 at_ns;          /* CLOCK_MONOTONIC */
    __u64 hash;           /* of the flow; if there is no table: 0 */
    __u32 received_bytes;
    __u32 sent_bytes;     /* 0: nothing was sent */
    __u32 kept_bytes;
    __u32 row;
    __u16 table;          /* index, or GLB_NO_TABLE */
    __u16 ip_at;
    __u8 bank;            /* of the generation whose table it is */
    __u8 verdict;         /* enum glb_verdict, or GLB_LOST_NO_SOCKET */
    __u8 engine;          /* enum glb_capture_engine */
    __u8 link_bytes;      /* 0: the received frame is what follows */
    __u8 link[GLB_CAPTURE_LINK_BYTES];
};

_Static_assert(sizeof(struct glb_capture) == 72, "glb_capture has no holes");
_Static_assert(sizeof(struct glb_captured) == 64, "glb_captured has no holes");

/* Whether a client's address, as words in memory order (IPv4: as ::ffff:a.b.c.d), is wanted. */
static inline __attribute__((always_inline)) int glb_client_wanted(const struct glb_capture *capture, __u64 high, __u64 low,
                                                                   __u32 address_bytes)
{
    return !capture->address_bytes
           || (capture->address_bytes == address_bytes
               && !((high ^ capture->client[0]) & capture->mask[0] || (low ^ capture->client[1]) & capture->mask[1]));
}

#endif
