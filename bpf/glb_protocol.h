/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Numbers of the tunnel protocol (docs/protocol/gue.md), for the eBPF programs and, by `cdef extern`, for Cython.
 * glb/wire/gue.py names the same ones for Python; tests/unit/test_constants.py holds the two together. */
#ifndef GLB_PROTOCOL_H
#define GLB_PROTOCOL_H

#define GLB_GUE_PORT 19523        /* UDP destination port of every tunnel packet, host order */
#define GLB_GUE_BASE_BYTES 4      /* version/control/hlen, protocol, flags */
#define GLB_GUE_PRIVATE_BYTES 4   /* private data type, next hop, hop count */
#define GLB_SOURCE_PORT_BASE 0x8000 /* UDP source ports are 0x8000 | 15 bits of hash */
#define GLB_OUTER_TTL 64
#define GLB_MAX_HOPS 4            /* hops of one row, the outer destination included */
#define GLB_MAX_GUE_HOPS 30       /* hops the GUE header can list: hlen is 5 bits, one word is the private header */

#define GLB_PROTO_ICMP 1
#define GLB_PROTO_IPIP 4
#define GLB_PROTO_TCP 6
#define GLB_PROTO_UDP 17
#define GLB_PROTO_IPV6 41
#define GLB_PROTO_ICMPV6 58

#define GLB_ETH_P_IP 0x0800
#define GLB_ETH_P_IPV6 0x86dd
#define GLB_ETH_P_8021Q 0x8100  /* VLAN tag */
#define GLB_ETH_P_8021AD 0x88a8 /* outer one of two */

#endif
