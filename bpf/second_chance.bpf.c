// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* The second chance in the kernel: a tunnel packet to this host is accepted (tunnel headers off, up to the host's stack), bounced
 * to the next hop of its list, or dropped. The rules are those of docs/protocol/gue.md; proxy_agent/_tunnel.pxd and _judge.pxd are
 * the same in Cython, and one corpus of packets holds the two together. What is no tunnel packet for this host passes untouched.
 *
 * In order: tunnel.bpf.h reads the packet, to a reason or to LOOK_UP; look_up asks for the flow's socket; give_chance chooses the
 * hop; `act` carries out the reason.
 */
#include <linux/bpf.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "glb_protocol.h"
#include "glb_verdicts.h"
#include "tunnel.bpf.h"

#define AF_INET 2
#define STATE_LISTEN 10
#define WAYS 256
#define WAY_MS 20 /* a change of routes or neighbours takes effect that much later */

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
    __u64 until;    /* on the coarse monotonic clock; 0: nothing is known */
    __u32 total;    /* the largest packet that the route was asked about: its MTU is no less */
    __u8 macs[12];  /* destination, source */
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

/* -- sockets ------------------------------------------------------------------------------------------------------------------ */

/* What a network namespace has for a flow. */
enum {
    NOTHING,
    SOCKET,
    COOKIE, /* a listener, and the segment acknowledges a SYN cookie of it */
};

static __always_inline int answers_cookie(struct xdp_md *ctx, __u32 family, __u32 inner_at, __u32 tcp_at, void *listener)
{
    void *ip, *tcp = peek(ctx, tcp_at, TCP_BYTES);

    count(GLB_COUNT_COOKIES_JUDGED);
    if (!tcp)
        return 0;
    if (family == 4) {
        ip = peek(ctx, inner_at, IPV4_BYTES);
        if (!ip)
            return 0;
        return bpf_tcp_check_syncookie(listener, ip, IPV4_BYTES, tcp, TCP_BYTES) == 0;
    }
    ip = peek(ctx, inner_at, IPV6_BYTES);
    if (!ip)
        return 0;
    asm volatile("" ::: "memory"); /* clang would make one call of the two, with a length that the verifier cannot follow */
    return bpf_tcp_check_syncookie(listener, ip, IPV6_BYTES, tcp, TCP_BYTES) == 0;
}

/* `tcp_at`: offset of the segment that may answer a cookie; 0: there is none. */
static __always_inline int look_into(struct xdp_md *ctx, struct flow *flow, __u32 inner_at, __u32 tcp_at, __u64 namespace)
{
    __u32 size = flow->family == 4 ? sizeof(flow->tuple.ipv4) : sizeof(flow->tuple.ipv6);
    struct bpf_sock *socket = bpf_skc_lookup_tcp(ctx, &flow->tuple, size, namespace, 0);
    int found = NOTHING;

    if (!socket)
        return NOTHING;
    if (socket->state != STATE_LISTEN)
        found = SOCKET;
    else if (tcp_at && answers_cookie(ctx, flow->family, inner_at, tcp_at, socket))
        found = COOKIE;
    bpf_sk_release(socket);
    return found;
}

/* The other namespaces whose sockets count. Not static: the verifier looks at it once, not per kind of packet. */
__noinline int look_elsewhere(struct xdp_md *ctx, struct flow *flow, __u32 inner_at, __u32 tcp_at)
{
    const struct glb_agent_settings *settings = current_settings();

    if (!settings || !flow)
        return NOTHING;
    inner_at &= MAX_AT; /* changes nothing, but tells the verifier */
    tcp_at &= MAX_AT;
    for (__u32 i = 0; i < GLB_MAX_NAMESPACES; i++) {
        int found;

        if (i >= settings->n_namespaces)
            break;
        found = look_into(ctx, flow, inner_at, tcp_at, (__u32)settings->namespaces[i]);
        if (found != NOTHING)
            return found;
    }
    return NOTHING;
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
    __u32 tcp_at = (t->tcp_flags & (TCP_ACK | TCP_FIN | TCP_RST)) == TCP_ACK ? t->tcp_at : 0;
    int found = look_into(ctx, &t->flow, t->inner_at, tcp_at, BPF_F_CURRENT_NETNS);

    if (found == NOTHING && t->settings->n_namespaces)
        found = look_elsewhere(ctx, &t->flow, t->inner_at, tcp_at);
    if (found == SOCKET)
        return t->is_error ? GLB_WHY_ICMP_ERROR : GLB_WHY_ESTABLISHED;
    if (found == COOKIE) {
        remember_cookie(t);
        return GLB_WHY_SYN_COOKIE;
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
    if (why == TRANSPORT)
        why = read_inner(ctx, &t);
    if (why == LOOK_UP) {
        why = look_up(ctx, &t);
        if (why == LOOK_UP)
            why = give_chance(ctx, &t);
    }
    return act(ctx, &t, why);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
