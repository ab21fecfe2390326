/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* A tunnel packet read in packet order: outer IPv4, UDP, GUE, inner packet. read_outer, read_gue and read_inner end in a reason or in
 * LOOK_UP, with the flow whose socket decides; they write nothing. proxy_agent/_tunnel.pxd is the same in Cython.
 */
#ifndef GLB_TUNNEL_BPF_H
#define GLB_TUNNEL_BPF_H

#include <linux/bpf.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "glb_protocol.h"
#include "glb_verdicts.h"
#include "guard.bpf.h"
#include "ip_headers.h"

#define ETHERNET_BYTES 14
#define IPV4_BYTES 20
#define IPV6_BYTES 40
#define UDP_BYTES 8
#define TCP_BYTES 20
#define ICMP_BYTES 8 /* of an error: type, code, checksum, four bytes by type; then the quoted packet */
#define GUE_FRONT_BYTES (GLB_GUE_BASE_BYTES + GLB_GUE_PRIVATE_BYTES)
#define MAX_IPV6_EXTENSIONS 8
#define MAX_AT 0x7fff /* headers begin before this offset; the longest frame of a veth is 64 KiB of data */
#define FRAGMENT_OFFSET 0x1fff
#define MORE_FRAGMENTS 0x2000
#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_ACK 0x10

/* Beside the reasons of glb_verdicts.h. */
enum {
    NOT_OURS = GLB_N_REASONS, /* no tunnel packet for this host */
    TRANSPORT,                /* nothing wrong so far: what follows decides */
    LOOK_UP,                  /* the flow's socket decides */
};

struct udp {
    __be16 source;
    __be16 destination;
    __be16 length;
    __be16 checksum;
};

struct tcp {
    __be16 source;
    __be16 destination;
    __be32 seq;
    __be32 ack_seq;
    __u8 offset;
    __u8 flags;
    __be16 window;
    __be16 checksum;
    __be16 urgent;
};

struct gue {
    __u8 version_hlen;
    __u8 protocol;
    __be16 flags;
    __be16 private_type;
    __u8 next_hop;
    __u8 n_hops;
    __be32 hops[];
};

/* Key of the memory of SYN cookies; all of it is defined. */
struct flow {
    struct bpf_sock_tuple tuple; /* source: the client; destination: our side */
    __u32 family;
};

/* What is known of the packet. Places are offsets into the frame. */
struct tunnel {
    __u32 gue_at;
    __u32 inner_at;
    __u32 end;       /* of what is being read: the UDP payload, then the inner packet */
    __u32 total;     /* outer total length */
    __be32 source;   /* outer */
    __u32 n_hops;
    __u32 next_hop;  /* as received; after give_chance the position of the hop to bounce to */
    __be32 hop;      /* its address */
    __u32 family;    /* of the inner packet, 4 or 6 */
    __u32 tcp_at;
    __u32 tcp_flags; /* 0 for ICMP errors */
    __u32 is_error;  /* the flow is one that an ICMP error quotes */
    struct flow flow;
    const struct glb_agent_settings *settings;
};
_Static_assert(__builtin_offsetof(struct tunnel, flow) % 8 == 0, "IPv6 addresses are written into it by 8 bytes");

const volatile struct glb_agent_options glb_agent_options = {};

/* `length` bytes of the frame at offset `at`, or NULL: they are not in its first buffer. */
static __always_inline void *peek(const struct xdp_md *ctx, __u32 at, __u32 length)
{
    void *data = (void *)(long)ctx->data, *data_end = (void *)(long)ctx->data_end, *behind;

    if (at > MAX_AT)
        return 0;
    data += at;
    behind = data + length;
    asm volatile("" : "+r"(behind)); /* or clang calculates with data_end, which the verifier forbids */
    return behind > data_end ? 0 : data;
}

/* Like peek, within the packet: it ends at offset `end`. */
static __always_inline void *take(const struct xdp_md *ctx, __u32 at, __u32 end, __u32 length)
{
    return at + length > end ? 0 : peek(ctx, at, length);
}

/* The reason why `take` gave NULL: `cut`, or that a driver spread the headers over several buffers, which cannot be stripped. */
static __always_inline __u32 missing(__u32 at, __u32 end, __u32 length, __u32 cut)
{
    return at + length > end ? cut : GLB_WHY_UNDELIVERED;
}

static __always_inline __u32 fold(__u64 sum)
{
    sum = (sum & 0xffffffff) + (sum >> 32);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16); /* three: the first leaves up to 0x1ffff, the second up to 0x10000 */
    return sum;
}

/* -- outer headers ---------------------------------------------------------------------------------------------------------- */

/* Whether the IPv4 header can be that of a tunnel packet for this host; the UDP port behind it decides. Packets with an offset show
 * no port: the host's stack puts them together, if the rest ever comes. */
static __always_inline int may_be_ours(const struct glb_agent_settings *settings, __be16 ethertype, const struct ipv4 *ip)
{
    return ethertype == bpf_htons(GLB_ETH_P_IP) && ip->version_ihl >= 0x45 && ip->version_ihl <= 0x4f
           && ip->protocol == GLB_PROTO_UDP && !(ip->fragment & bpf_htons(FRAGMENT_OFFSET)) && is_own(settings, ip->destination);
}

/* A frame of several buffers, the first of which is too short to tell: the same question, by copies. */
__noinline int spread_and_ours(struct xdp_md *ctx)
{
    const struct glb_agent_settings *settings = current_settings();
    struct ipv4 ip;
    __be16 type, ports[2];

    if (!settings || bpf_xdp_load_bytes(ctx, 12, &type, sizeof(type)) || bpf_xdp_load_bytes(ctx, ETHERNET_BYTES, &ip, sizeof(ip))
        || !may_be_ours(settings, type, &ip)
        || bpf_xdp_load_bytes(ctx, ETHERNET_BYTES + (ip.version_ihl & 0x0f) * 4, ports, sizeof(ports)))
        return 0;
    return ports[1] == glb_agent_options.gue_port;
}

static __always_inline __u32 read_outer(struct xdp_md *ctx, struct tunnel *t)
{
    void *data = (void *)(long)ctx->data, *data_end = (void *)(long)ctx->data_end;
    struct ipv4 *ip = data + ETHERNET_BYTES;
    __u32 ihl, total, udp_length;
    struct udp *udp;
    __u64 sum = 0;

    if ((void *)(ip + 1) > data_end)
        goto short_buffer;
    if (!may_be_ours(t->settings, *(__be16 *)(data + 12), ip))
        return NOT_OURS;
    ihl = (ip->version_ihl & 0x0f) * 4;
    udp = (void *)ip + ihl;
    if ((void *)(udp + 1) > data_end)
        goto short_buffer;
    if (udp->destination != glb_agent_options.gue_port)
        return NOT_OURS;

    /* It is ours, for better or worse. First what a stranger could provoke. */
    t->source = ip->source;
    if (!is_allowed(t->settings, ip->source))
        return GLB_WHY_NOT_ALLOWED;
    total = bpf_ntohs(ip->total_length);
    if (total < ihl + UDP_BYTES
        || (data + ETHERNET_BYTES + total > data_end && ETHERNET_BYTES + total > bpf_xdp_get_buff_len(ctx)))
        return GLB_WHY_OUTER_MALFORMED;
#pragma unroll
    for (int i = 0; i < IPV4_BYTES / 4; i++)
        sum += ((__u32 *)ip)[i];
    for (__u32 at = IPV4_BYTES; at < 60; at += 4) {
        __u32 *word;

        if (at >= ihl)
            break;
        word = peek(ctx, ETHERNET_BYTES + at, 4);
        if (!word)
            return GLB_WHY_UNDELIVERED;
        sum += *word;
    }
    if (fold(sum) != 0xffff)
        return GLB_WHY_OUTER_CHECKSUM;
    if (ip->fragment & bpf_htons(MORE_FRAGMENTS))
        return GLB_WHY_OUTER_FRAGMENT;
    udp_length = bpf_ntohs(udp->length);
    if (udp_length < UDP_BYTES || udp_length > total - ihl)
        return GLB_WHY_OUTER_MALFORMED;
    t->total = total;
    t->gue_at = ETHERNET_BYTES + ihl + UDP_BYTES;
    t->end = ETHERNET_BYTES + ihl + udp_length;
    return TRANSPORT;

short_buffer:
    if (bpf_xdp_get_buff_len(ctx) == data_end - data)
        return NOT_OURS; /* too short for anybody */
    return spread_and_ours(ctx) ? GLB_WHY_UNDELIVERED : NOT_OURS;
}

static __always_inline __u32 read_gue(struct xdp_md *ctx, struct tunnel *t)
{
    struct gue *gue = take(ctx, t->gue_at, t->end, GUE_FRONT_BYTES);

    if (!gue)
        return missing(t->gue_at, t->end, GUE_FRONT_BYTES, GLB_WHY_GUE_MALFORMED);
    /* version 0, C bit 0; hlen counts the words after the first: the private data's own and one for each hop */
    if (gue->version_hlen >> 5 || gue->version_hlen != 1 + gue->n_hops || gue->flags || gue->private_type
        || gue->next_hop > gue->n_hops)
        return GLB_WHY_GUE_MALFORMED;
    if (gue->protocol == GLB_PROTO_IPIP)
        t->family = 4;
    else if (gue->protocol == GLB_PROTO_IPV6)
        t->family = 6;
    else
        return GLB_WHY_GUE_MALFORMED;
    t->next_hop = gue->next_hop;
    t->n_hops = gue->n_hops;
    t->inner_at = t->gue_at + GUE_FRONT_BYTES + 4 * gue->n_hops;
    return t->inner_at > t->end ? GLB_WHY_GUE_MALFORMED : TRANSPORT;
}

/* -- inner packet ------------------------------------------------------------------------------------------------------------- */

/* Past the IPv6 extension headers at offset `at`, the first being a `protocol`. Returns reason | protocol << 8 | at << 16: TRANSPORT
 * with the number of what follows them and where, else what is wrong. After 8 headers the walk ends: the ninth's number is then no
 * protocol that anyone knows. Not static: the verifier looks at it once, not per call. */
__noinline __u64 walk_extensions(struct xdp_md *ctx, __u32 at, __u32 end, __u32 protocol)
{
    for (int i = 0; i < MAX_IPV6_EXTENSIONS; i++) {
        __u8 *header;
        __u32 is_fragment = protocol == 44, length;

        if (protocol != 0 && protocol != 43 && protocol != 44 && protocol != 60)
            break;
        header = take(ctx, at, end, 8);
        if (!header)
            return missing(at, end, 8, GLB_WHY_MALFORMED);
        protocol = header[0];
        length = is_fragment ? 8 : 8 + 8 * header[1];
        if (is_fragment && *(__be16 *)(header + 2) & bpf_htons(0xfff8))
            return GLB_WHY_FRAGMENT;
        if (at + length > end)
            return GLB_WHY_MALFORMED;
        at += length;
    }
    return TRANSPORT | (protocol & 0xff) << 8 | (__u64)at << 16;
}

static __always_inline __u32 quoted_ipv4(struct xdp_md *ctx, struct tunnel *t, __u32 at)
{
    struct ipv4 *ip = take(ctx, at, t->end, IPV4_BYTES);
    __be16 *ports;
    __u32 ihl;

    if (!ip)
        return missing(at, t->end, IPV4_BYTES, GLB_WHY_ICMP);
    ihl = (ip->version_ihl & 0x0f) * 4;
    if (ip->version_ihl >> 4 != 4 || ihl < IPV4_BYTES || bpf_ntohs(ip->total_length) < ihl || at + ihl > t->end)
        return GLB_WHY_ICMP;
    /* An error about a flow of some other address of this host has no business in the tunnel. */
    if (!is_vip4(t->settings, ip->source))
        return GLB_WHY_NOT_VIP;
    if (ip->fragment & bpf_htons(FRAGMENT_OFFSET) || ip->protocol != GLB_PROTO_TCP)
        return GLB_WHY_ICMP;
    ports = take(ctx, at + ihl, t->end, 4);
    if (!ports)
        return missing(at + ihl, t->end, 4, GLB_WHY_ICMP);
    t->flow.tuple.ipv4.saddr = ip->destination;
    t->flow.tuple.ipv4.daddr = ip->source;
    t->flow.tuple.ipv4.sport = ports[1];
    t->flow.tuple.ipv4.dport = ports[0];
    t->is_error = 1;
    return LOOK_UP;
}

static __always_inline __u32 quoted_ipv6(struct xdp_md *ctx, struct tunnel *t, __u32 at)
{
    struct ipv6 *ip = take(ctx, at, t->end, IPV6_BYTES);
    struct ipv6_pair *addresses, *pair;
    __be16 *ports;
    __u64 walked;

    if (!ip)
        return missing(at, t->end, IPV6_BYTES, GLB_WHY_ICMP);
    if ((bpf_ntohl(ip->version_label) >> 28) != 6)
        return GLB_WHY_ICMP;
    addresses = (void *)ip->source;
    if (!is_vip6(t->settings, addresses->source))
        return GLB_WHY_NOT_VIP;
    walked = walk_extensions(ctx, at + IPV6_BYTES, t->end, ip->next_header);
    if ((walked & 0xff) == GLB_WHY_UNDELIVERED)
        return GLB_WHY_UNDELIVERED;
    if ((walked & 0xffff) != (TRANSPORT | GLB_PROTO_TCP << 8))
        return GLB_WHY_ICMP;
    ports = take(ctx, walked >> 16, t->end, 4);
    if (!ports)
        return missing(walked >> 16, t->end, 4, GLB_WHY_ICMP);
    pair = (void *)&t->flow.tuple;
    pair->source[0] = addresses->destination[0];
    pair->source[1] = addresses->destination[1];
    pair->destination[0] = addresses->source[0];
    pair->destination[1] = addresses->source[1];
    t->flow.tuple.ipv6.sport = ports[1];
    t->flow.tuple.ipv6.dport = ports[0];
    t->is_error = 1;
    return LOOK_UP;
}

static __always_inline struct tcp *read_tcp(struct xdp_md *ctx, struct tunnel *t, __u32 at)
{
    struct tcp *tcp = take(ctx, at, t->end, TCP_BYTES);

    if (tcp) {
        t->tcp_at = at;
        t->tcp_flags = tcp->flags;
    }
    return tcp;
}

static __always_inline __u32 read_ipv4(struct xdp_md *ctx, struct tunnel *t)
{
    struct ipv4 *ip = take(ctx, t->inner_at, t->end, IPV4_BYTES);
    __u32 ihl, total, at;
    struct tcp *tcp;
    __u8 *icmp;

    if (!ip)
        return missing(t->inner_at, t->end, IPV4_BYTES, GLB_WHY_MALFORMED);
    ihl = (ip->version_ihl & 0x0f) * 4;
    total = bpf_ntohs(ip->total_length);
    if (ip->version_ihl >> 4 != 4 || ihl < IPV4_BYTES || total < ihl || t->inner_at + total > t->end)
        return GLB_WHY_MALFORMED;
    t->end = t->inner_at + total;
    if (!is_vip4(t->settings, ip->destination))
        return GLB_WHY_NOT_VIP;
    if (ip->fragment & bpf_htons(FRAGMENT_OFFSET))
        return GLB_WHY_FRAGMENT;
    at = t->inner_at + ihl;
    switch (ip->protocol) {
    case GLB_PROTO_TCP:
        tcp = read_tcp(ctx, t, at);
        if (!tcp)
            return missing(at, t->end, TCP_BYTES, GLB_WHY_MALFORMED);
        t->flow.tuple.ipv4.saddr = ip->source;
        t->flow.tuple.ipv4.daddr = ip->destination;
        t->flow.tuple.ipv4.sport = tcp->source;
        t->flow.tuple.ipv4.dport = tcp->destination;
        return tcp->flags & TCP_SYN ? GLB_WHY_SYN : LOOK_UP;
    case GLB_PROTO_UDP:
        return GLB_WHY_UDP;
    case GLB_PROTO_ICMP:
        icmp = take(ctx, at, t->end, ICMP_BYTES);
        if (!icmp)
            return missing(at, t->end, ICMP_BYTES, GLB_WHY_ICMP);
        if (icmp[0] != 3 && icmp[0] != 11 && icmp[0] != 12)
            return GLB_WHY_ICMP;
        return quoted_ipv4(ctx, t, at + ICMP_BYTES);
    }
    return GLB_WHY_UNKNOWN_PROTOCOL;
}

static __always_inline __u32 read_ipv6(struct xdp_md *ctx, struct tunnel *t)
{
    struct ipv6 *ip = take(ctx, t->inner_at, t->end, IPV6_BYTES);
    struct ipv6_pair *addresses;
    __u32 total, protocol, at;
    struct tcp *tcp;
    __u64 walked;
    __u8 *icmp;

    if (!ip)
        return missing(t->inner_at, t->end, IPV6_BYTES, GLB_WHY_MALFORMED);
    total = IPV6_BYTES + bpf_ntohs(ip->payload_length);
    if ((bpf_ntohl(ip->version_label) >> 28) != 6 || t->inner_at + total > t->end)
        return GLB_WHY_MALFORMED;
    t->end = t->inner_at + total;
    addresses = (void *)ip->source;
    if (!is_vip6(t->settings, addresses->destination))
        return GLB_WHY_NOT_VIP;
    protocol = ip->next_header;
    at = t->inner_at + IPV6_BYTES;
    if (protocol != GLB_PROTO_TCP) {
        walked = walk_extensions(ctx, at, t->end, protocol);
        if ((walked & 0xff) != TRANSPORT)
            return walked & 0xff;
        protocol = walked >> 8 & 0xff;
        at = walked >> 16;
    }
    switch (protocol) {
    case GLB_PROTO_TCP:
        tcp = read_tcp(ctx, t, at);
        if (!tcp)
            return missing(at, t->end, TCP_BYTES, GLB_WHY_MALFORMED);
        *(struct ipv6_pair *)&t->flow.tuple = *addresses;
        t->flow.tuple.ipv6.sport = tcp->source;
        t->flow.tuple.ipv6.dport = tcp->destination;
        return tcp->flags & TCP_SYN ? GLB_WHY_SYN : LOOK_UP;
    case GLB_PROTO_UDP:
        return GLB_WHY_UDP;
    case GLB_PROTO_ICMPV6:
        icmp = take(ctx, at, t->end, ICMP_BYTES);
        if (!icmp)
            return missing(at, t->end, ICMP_BYTES, GLB_WHY_ICMP);
        if (icmp[0] < 1 || icmp[0] > 4)
            return GLB_WHY_ICMP;
        return quoted_ipv6(ctx, t, at + ICMP_BYTES);
    }
    return GLB_WHY_UNKNOWN_PROTOCOL;
}

static __always_inline __u32 read_inner(struct xdp_md *ctx, struct tunnel *t)
{
    t->flow.family = t->family;
    return t->family == 4 ? read_ipv4(ctx, t) : read_ipv6(ctx, t);
}

#endif
