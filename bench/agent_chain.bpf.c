// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* For BPF_PROG_TEST_RUN: the agent's program on a new tunnel packet in every repetition, as bench/chain.bpf.c for the director's.
 *
 * The `reset` programs move the head back, write a tunnel packet with one hop whose inner segment is of a random one of `n_flows`
 * flows, and go on with the program under `programs`: the agent's, or `strip`, which takes the tunnel off without a look.
 */
#include <linux/bpf.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "glb_protocol.h"

#define ETHERNET_BYTES 14
#define TUNNEL_BYTES 40  /* outer IPv4, UDP, GUE with one hop */
#define INNER (ETHERNET_BYTES + TUNNEL_BYTES)
#define IPV4_HEADERS (INNER + 40)
#define IPV6_HEADERS (INNER + 60)
#define SOURCE4 (INNER + 12)
#define SOURCE6 (INNER + 20)  /* the address's last 32 bits */
#define PORTS4 (INNER + 20)
#define PORTS6 (INNER + 40)

struct settings {
    __u32 frame_bytes;
    __u32 n_flows;
    __u32 first;   /* client's address, or its last 32 bits, of the first 16,384 flows */
    __u32 port;    /* destination port */
    __u8 header[IPV6_HEADERS];
};

struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(max_entries, 1);
    __type(key, __u32);
    __type(value, struct settings);
} settings SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_PROG_ARRAY);
    __uint(max_entries, 1);
    __type(key, __u32);
    __type(value, __u32);
} programs SEC(".maps");

static __always_inline int reset(struct xdp_md *ctx, int is_ipv6)
{
    __u32 zero = 0, size = is_ipv6 ? IPV6_HEADERS : IPV4_HEADERS, flow, client, ports;
    struct settings *set = bpf_map_lookup_elem(&settings, &zero);
    __u8 *frame;

    if (!set || bpf_xdp_adjust_head(ctx, (int)(bpf_xdp_get_buff_len(ctx) - set->frame_bytes)))
        return XDP_ABORTED;
    frame = (void *)(long)ctx->data;
    if (frame + size > (__u8 *)(long)ctx->data_end)
        return XDP_ABORTED;
    __builtin_memcpy(frame, set->header, size);
    flow = (__u64)bpf_get_prandom_u32() * set->n_flows >> 32;
    client = bpf_htonl(set->first + (flow >> 14));
    ports = bpf_htonl((1024 + (flow & 0x3fff)) << 16 | set->port);
    *(__u32 *)(frame + (is_ipv6 ? SOURCE6 : SOURCE4)) = client;
    *(__u32 *)(frame + (is_ipv6 ? PORTS6 : PORTS4)) = ports;
    bpf_tail_call(ctx, &programs, 0);
    return XDP_ABORTED;
}

SEC("xdp.frags")
int reset_ipv4(struct xdp_md *ctx)
{
    return reset(ctx, 0);
}

SEC("xdp.frags")
int reset_ipv6(struct xdp_md *ctx)
{
    return reset(ctx, 1);
}

static __always_inline int strip(struct xdp_md *ctx, __u16 ethertype)
{
    __u32 *front = (void *)(long)ctx->data, *stripped;
    __u32 addresses[3];

    if ((void *)front + INNER > (void *)(long)ctx->data_end)
        return XDP_ABORTED;
    addresses[0] = front[0];
    addresses[1] = front[1];
    addresses[2] = front[2];
    if (bpf_xdp_adjust_head(ctx, TUNNEL_BYTES))
        return XDP_ABORTED;
    stripped = (void *)(long)ctx->data;
    if ((void *)stripped + ETHERNET_BYTES > (void *)(long)ctx->data_end)
        return XDP_ABORTED;
    stripped[0] = addresses[0];
    stripped[1] = addresses[1];
    stripped[2] = addresses[2];
    *(__u16 *)&stripped[3] = bpf_htons(ethertype);
    return XDP_PASS;
}

SEC("xdp.frags")
int strip_ipv4(struct xdp_md *ctx)
{
    return strip(ctx, GLB_ETH_P_IP);
}

SEC("xdp.frags")
int strip_ipv6(struct xdp_md *ctx)
{
    return strip(ctx, GLB_ETH_P_IPV6);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
