// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* The second chance in the kernel: a tunnel packet to this host is accepted (tunnel headers off, up to the host's stack), bounced
 * to the next hop of its list, or dropped. The rules are those of docs/protocol/gue.md; proxy_agent/_tunnel.pxd and _judge.pxd are
 * the same in Cython, and one corpus of packets holds the two together. What is no tunnel packet for this host passes untouched.
 *
 * In packet order: read_outer, read_gue, read_inner end in a reason or in LOOK_UP, and write nothing; look_up asks for the flow's
 * socket; give_chance chooses the hop; `act` carries out the reason.
 */
#include <linux/bpf.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "glb_protocol.h"
#include "glb_verdicts.h"

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
#define AF_INET 2
#define STATE_LISTEN 10
#define WAYS 256
#define WAY_MS 20 /* a change of routes or neighbours takes effect that much later */

/* Beside the reasons of glb_verdicts.h. */
enum {
    NOT_OURS = GLB_N_REASONS, /* no tunnel packet for this host */
    TRANSPORT,                /* nothing wrong so far: what follows decides */
    LOOK_UP,                  /* the flow's socket decides */
};

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

const volatile struct glb_agent_options glb_agent_options = {};

struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(max_entries, 2);
    __type(key, __u32);
    __type(value, struct glb_agent_settings);
} glb_agent_settings SEC(".maps");

/* Which of the two is in force: the other one is written, then this. */
struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(max_entries, 1);
    __type(key, __u32);
    __type(value, __u32);
} glb_agent_current SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_LPM_TRIE);
    __uint(map_flags, BPF_F_NO_PREALLOC);
    __uint(max_entries, GLB_MAX_SOURCES);
    __type(key, struct glb_prefix4);
    __type(value, __u8);
} glb_sources SEC(".maps"); /* allowed_sources; 0.0.0.0/0 where any source is */

struct {
    __uint(type, BPF_MAP_TYPE_LPM_TRIE);
    __uint(map_flags, BPF_F_NO_PREALLOC);
    __uint(max_entries, GLB_MAX_VIPS);
    __type(key, struct glb_prefix4);
    __type(value, __u8);
} glb_vips4 SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_LPM_TRIE);
    __uint(map_flags, BPF_F_NO_PREALLOC);
    __uint(max_entries, GLB_MAX_VIPS);
    __type(key, struct glb_prefix6);
    __type(value, __u8);
} glb_vips6 SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_HASH);
    __uint(map_flags, BPF_F_NO_PREALLOC);
    __uint(max_entries, GLB_MAX_OWN_ADDRESSES);
    __type(key, __be32);
    __type(value, __u8);
} glb_own_addresses SEC(".maps"); /* IPv4 addresses of this host */

struct {
    __uint(type, BPF_MAP_TYPE_LRU_HASH);
    __uint(max_entries, GLB_MAX_COOKIES);
    __type(key, struct flow);
    __type(value, __u64);
} glb_cookies SEC(".maps"); /* flow -> until when, on the coarse monotonic clock */

struct {
    __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
    __uint(max_entries, GLB_COUNT_HOPS + GLB_MAX_GUE_HOPS);
    __type(key, __u32);
    __type(value, __u64);
} glb_counters SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(max_entries, GLB_N_REASONS);
    __type(key, __u32);
    __type(value, __be32);
} glb_last_sources SEC(".maps"); /* outer source of the last packet dropped for a reason */

/* The way to a hop, as bpf_fib_lookup told it a moment ago: the look-up is most of what a bounce costs. */
struct way {
    __be32 hop;
    __be32 source;
    __u64 until; /* on the coarse monotonic clock; 0: nothing is known */
    __u32 total; /* the largest packet that the route was asked about: its MTU is no less */
    __u8 macs[12]; /* destination, source */
};

struct {
    __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
    __uint(max_entries, WAYS);
    __type(key, __u32);
    __type(value, struct way);
} glb_ways SEC(".maps"); /* by the hop's hash: 256 hops of a busy proxy seldom meet */

/* When the last remembered flow will be forgotten: before the first cookie and long after the last, nobody looks in the memory. */
volatile __u64 glb_cookies_until = 0;

static __always_inline void count(__u32 which)
{
    __u64 *value = bpf_map_lookup_elem(&glb_counters, &which);

    if (value)
        *value += 1;
}

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

static __always_inline const struct glb_agent_settings *current_settings(void)
{
    __u32 zero = 0, *current = bpf_map_lookup_elem(&glb_agent_current, &zero);

    return current ? bpf_map_lookup_elem(&glb_agent_settings, current) : 0;
}

static __always_inline int in_short_list(const struct glb_masked4 *list, __be32 address)
{
#pragma unroll
    for (int i = 0; i < GLB_SHORT_LIST; i++)
        if ((address & list[i].mask) == list[i].network)
            return 1;
    return 0;
}

static __always_inline int is_own(const struct glb_agent_settings *settings, __be32 address)
{
    __u32 bit = glb_filter_bit(address);

    if (!(settings->own_filter[bit / 64 % GLB_OWN_FILTER_WORDS] >> bit % 64 & 1))
        return 0;
    return address == settings->address || bpf_map_lookup_elem(&glb_own_addresses, &address) != 0;
}

static __always_inline int is_allowed(const struct glb_agent_settings *settings, __be32 address)
{
    struct glb_prefix4 key = {32, address};

    return in_short_list(settings->sources, address) || bpf_map_lookup_elem(&glb_sources, &key);
}

static __always_inline int is_vip4(const struct glb_agent_settings *settings, __be32 address)
{
    struct glb_prefix4 key = {32, address};

    return in_short_list(settings->vips4, address) || bpf_map_lookup_elem(&glb_vips4, &key);
}

static __always_inline int is_vip6(const struct glb_agent_settings *settings, const __be32 *address)
{
    struct glb_prefix6 key = {128, {address[0], address[1], address[2], address[3]}};
    /* In memory order, as the halves of struct glb_masked6 are. */
    __u64 first = (__u64)address[1] << 32 | address[0], second = (__u64)address[3] << 32 | address[2];

#pragma unroll
    for (int i = 0; i < GLB_SHORT_LIST; i++)
        if ((first & settings->vips6[i].mask[0]) == settings->vips6[i].network[0]
            && (second & settings->vips6[i].mask[1]) == settings->vips6[i].network[1])
            return 1;
    return bpf_map_lookup_elem(&glb_vips6, &key) != 0;
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
    __be16 *ports;
    __u64 walked;

    if (!ip)
        return missing(at, t->end, IPV6_BYTES, GLB_WHY_ICMP);
    if ((bpf_ntohl(ip->version_label) >> 28) != 6)
        return GLB_WHY_ICMP;
    if (!is_vip6(t->settings, ip->source))
        return GLB_WHY_NOT_VIP;
    walked = walk_extensions(ctx, at + IPV6_BYTES, t->end, ip->next_header);
    if ((walked & 0xff) == GLB_WHY_UNDELIVERED)
        return GLB_WHY_UNDELIVERED;
    if ((walked & 0xffff) != (TRANSPORT | GLB_PROTO_TCP << 8))
        return GLB_WHY_ICMP;
    ports = take(ctx, walked >> 16, t->end, 4);
    if (!ports)
        return missing(walked >> 16, t->end, 4, GLB_WHY_ICMP);
#pragma unroll
    for (int i = 0; i < 4; i++) {
        t->flow.tuple.ipv6.saddr[i] = ip->destination[i];
        t->flow.tuple.ipv6.daddr[i] = ip->source[i];
    }
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
    if (!is_vip6(t->settings, ip->destination))
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
#pragma unroll
        for (int i = 0; i < 4; i++) {
            t->flow.tuple.ipv6.saddr[i] = ip->source[i];
            t->flow.tuple.ipv6.daddr[i] = ip->destination[i];
        }
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

/* -- sockets ------------------------------------------------------------------------------------------------------------------ */

/* Whether the segment acknowledges a SYN cookie of the listener. */
static __always_inline int answers_cookie(struct xdp_md *ctx, struct tunnel *t, void *listener)
{
    void *ip, *tcp = peek(ctx, t->tcp_at, TCP_BYTES);

    if (!tcp)
        return 0;
    if (t->family == 4) {
        ip = peek(ctx, t->inner_at, IPV4_BYTES);
        if (!ip)
            return 0;
        return bpf_tcp_check_syncookie(listener, ip, IPV4_BYTES, tcp, TCP_BYTES) == 0;
    }
    ip = peek(ctx, t->inner_at, IPV6_BYTES);
    if (!ip)
        return 0;
    asm volatile("" ::: "memory"); /* clang would make one call of the two, with a length that the verifier cannot follow */
    return bpf_tcp_check_syncookie(listener, ip, IPV6_BYTES, tcp, TCP_BYTES) == 0;
}

/* Within 2 s of the flow's cookie: the segments that follow it in a burst come before the stack has made the socket. */
static __always_inline int recall_cookie(struct tunnel *t)
{
    __u64 now, *until;

    if (!glb_cookies_until)
        return 0;
    now = bpf_ktime_get_coarse_ns();
    if (now >= glb_cookies_until)
        return 0;
    until = bpf_map_lookup_elem(&glb_cookies, &t->flow);
    return until && now < *until;
}

static __always_inline void remember_cookie(struct tunnel *t)
{
    __u64 until = bpf_ktime_get_coarse_ns() + GLB_COOKIE_MS * 1000000ULL;

    bpf_map_update_elem(&glb_cookies, &t->flow, &until, BPF_ANY);
    glb_cookies_until = until;
}

static __always_inline __u32 look_up(struct xdp_md *ctx, struct tunnel *t)
{
    __u32 size = t->family == 4 ? sizeof(t->flow.tuple.ipv4) : sizeof(t->flow.tuple.ipv6);
    const struct glb_agent_settings *settings = t->settings;
    int may_be_cookie = (t->tcp_flags & (TCP_ACK | TCP_FIN | TCP_RST)) == TCP_ACK;
    __u64 namespace = BPF_F_CURRENT_NETNS;

    for (__u32 i = 0; i <= GLB_MAX_NAMESPACES; i++) {
        struct bpf_sock *socket;
        __u32 state;

        socket = bpf_skc_lookup_tcp(ctx, &t->flow.tuple, size, namespace, 0);
        if (socket) {
            state = socket->state;
            if (state == STATE_LISTEN && may_be_cookie && answers_cookie(ctx, t, socket)) {
                bpf_sk_release(socket);
                remember_cookie(t);
                return GLB_WHY_SYN_COOKIE;
            }
            bpf_sk_release(socket);
            if (state != STATE_LISTEN)
                return t->is_error ? GLB_WHY_ICMP_ERROR : GLB_WHY_ESTABLISHED;
        }
        if (i >= settings->n_namespaces || i >= GLB_MAX_NAMESPACES)
            break;
        namespace = (__u32)settings->namespaces[i];
    }
    if (!t->is_error && recall_cookie(t)) {
        count(GLB_COUNT_RECALLED);
        return GLB_WHY_SYN_COOKIE;
    }
    return LOOK_UP;
}

/* -- bounce ------------------------------------------------------------------------------------------------------------------- */

/* Nobody here knows the flow: on to the first hop not yet tried that is not this host. */
static __always_inline __u32 give_chance(struct xdp_md *ctx, struct tunnel *t)
{
    struct ipv4 *ip = peek(ctx, ETHERNET_BYTES, IPV4_BYTES);

    if (!ip)
        return GLB_WHY_UNDELIVERED;
    for (__u32 i = 0; i < GLB_MAX_GUE_HOPS; i++) {
        __be32 *hop;

        if (i < t->next_hop)
            continue;
        if (i >= t->n_hops)
            break;
        hop = peek(ctx, t->gue_at + GUE_FRONT_BYTES + 4 * i, 4);
        if (!hop)
            return GLB_WHY_UNDELIVERED;
        if (is_own(t->settings, *hop))
            continue;
        t->next_hop = i;
        t->hop = *hop;
        return ip->ttl <= 1 ? GLB_WHY_TTL : GLB_WHY_BOUNCE;
    }
    return GLB_WHY_LAST_RESORT;
}

/* RFC 1624, equation 3: the checksum after the words whose sum is `old` have become those whose sum is `new`. Any byte order. */
static __always_inline __u16 amend(__u16 checksum, __u64 old, __u64 new)
{
    /* 0xffff counts nothing; with it the sum is never 0, which would come out as the other of the two zeros. */
    return ~fold((__u64)(__u16)~checksum + (__u16)~fold(old) + new + 0xffff);
}

/* The way of the readdressed packet, or NULL: it is not for the program to send. */
static __always_inline struct way *find_way(struct xdp_md *ctx, struct tunnel *t, const struct ipv4 *ip, const struct udp *udp)
{
    __u32 index = glb_filter_bit(ip->destination) % WAYS;
    struct way *way = bpf_map_lookup_elem(&glb_ways, &index);
    __u64 now = bpf_ktime_get_coarse_ns();
    struct bpf_fib_lookup route = {};

    if (!way || !glb_agent_options.ifindex)
        return 0;
    if (way->hop == ip->destination && way->source == ip->source && now < way->until && t->total <= way->total)
        return way;
    route.family = AF_INET;
    route.tos = ip->tos;
    route.l4_protocol = GLB_PROTO_UDP;
    route.sport = udp->source;
    route.dport = udp->destination;
    route.tot_len = t->total;
    route.ipv4_src = ip->source;
    route.ipv4_dst = ip->destination;
    route.ifindex = ctx->ingress_ifindex;
    if (bpf_fib_lookup(ctx, &route, sizeof(route), 0) != BPF_FIB_LKUP_RET_SUCCESS || route.ifindex != glb_agent_options.ifindex)
        return 0;
    way->until = 0; /* until it is whole again */
    way->hop = ip->destination;
    way->source = ip->source;
    way->total = t->total;
    __builtin_memcpy(way->macs, route.dmac, 6);
    __builtin_memcpy(way->macs + 6, route.smac, 6);
    way->until = now + WAY_MS * 1000000ULL;
    return way;
}

static __always_inline int bounce(struct xdp_md *ctx, struct tunnel *t)
{
    struct way *way;
    struct gue *gue;
    struct udp *udp;
    struct ipv4 *ip;
    __u8 *ethernet;
    __u64 old, new;
    __be16 *hop_word;

    ethernet = peek(ctx, 0, ETHERNET_BYTES);
    ip = peek(ctx, ETHERNET_BYTES, IPV4_BYTES);
    udp = peek(ctx, t->gue_at - UDP_BYTES, UDP_BYTES);
    gue = peek(ctx, t->gue_at, GUE_FRONT_BYTES);
    if (!ethernet || !ip || !udp || !gue)
        return XDP_DROP; /* cannot be: all of it was read before */

    /* The old destination moves to the source and counts on both sides, so it drops out. */
    old = ip->source;
    new = t->hop;
    ip->checksum = amend(ip->checksum, old, new);
    ip->source = ip->destination;
    ip->destination = t->hop;
    hop_word = (__be16 *)&gue->next_hop;
    old += *hop_word;
    gue->next_hop = t->next_hop + 1;
    new += *hop_word;
    if (udp->checksum) { /* 0: the sender sent none (RFC 768). The addresses count because the checksum covers a pseudo-header. */
        __u16 checksum = amend(udp->checksum, old, new);

        udp->checksum = checksum ? checksum : 0xffff;
    }

    way = find_way(ctx, t, ip, udp);
    if (!way) {
        /* No neighbour yet, another interface, a route of a special kind: the host's stack forwards it, and lowers the TTL. */
        count(GLB_COUNT_BY_HOST);
        return XDP_PASS;
    }
    ip->checksum = amend(ip->checksum, bpf_htons(ip->ttl << 8 | GLB_PROTO_UDP), bpf_htons((ip->ttl - 1) << 8 | GLB_PROTO_UDP));
    ip->ttl -= 1;
    __builtin_memcpy(ethernet, way->macs, sizeof(way->macs));
    return glb_agent_options.by_redirect ? bpf_redirect(glb_agent_options.ifindex, 0) : XDP_TX;
}

/* -- verdict to action -------------------------------------------------------------------------------------------------------- */

/* Tunnel headers off; the frame's addresses stay, the type becomes the inner packet's. Nonzero: it cannot be done. */
static __always_inline int strip(struct xdp_md *ctx, struct tunnel *t)
{
    __u32 addresses[3], *ethernet = peek(ctx, 0, ETHERNET_BYTES);

    if (!ethernet)
        return -1;
    addresses[0] = ethernet[0];
    addresses[1] = ethernet[1];
    addresses[2] = ethernet[2];
    if (bpf_xdp_adjust_head(ctx, t->inner_at - ETHERNET_BYTES))
        return -1;
    ethernet = peek(ctx, 0, ETHERNET_BYTES);
    if (!ethernet)
        return -1;
    ethernet[0] = addresses[0];
    ethernet[1] = addresses[1];
    ethernet[2] = addresses[2];
    *(__be16 *)&ethernet[3] = t->family == 4 ? bpf_htons(GLB_ETH_P_IP) : bpf_htons(GLB_ETH_P_IPV6);
    return 0;
}

static __always_inline int act(struct xdp_md *ctx, struct tunnel *t, __u32 why)
{
    __be32 *last_source;

    if (why < GLB_WHY_BOUNCE && strip(ctx, t))
        why = GLB_WHY_UNDELIVERED;
    if (why >= GLB_N_REASONS)
        return XDP_PASS; /* NOT_OURS */
    count(why);
    if (why < GLB_WHY_BOUNCE)
        return XDP_PASS;
    if (why == GLB_WHY_BOUNCE) {
        count(GLB_COUNT_HOPS + t->next_hop);
        return bounce(ctx, t);
    }
    last_source = bpf_map_lookup_elem(&glb_last_sources, &why);
    if (last_source)
        *last_source = t->source;
    return XDP_DROP;
}

/* Accepts frames of several buffers (jumbo MTU on the interface), as drivers demand it there before they attach anything. */
SEC("xdp.frags")
int glb_second_chance(struct xdp_md *ctx)
{
    struct tunnel t = {.settings = current_settings()};
    __u32 why;

    if (!t.settings)
        return XDP_PASS;
    why = read_outer(ctx, &t);
    if (why == TRANSPORT)
        why = read_gue(ctx, &t);
    if (why == TRANSPORT) {
        t.flow.family = t.family;
        why = t.family == 4 ? read_ipv4(ctx, &t) : read_ipv6(ctx, &t);
    }
    if (why == LOOK_UP) {
        why = look_up(ctx, &t);
        if (why == LOOK_UP)
            why = give_chance(ctx, &t);
    }
    return act(ctx, &t, why);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
