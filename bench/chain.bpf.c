// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* For BPF_PROG_TEST_RUN: an XDP program on a new packet in every repetition.
 *
 * The kernel runs a program again on what it left of the packet, so an encapsulating one would encapsulate its own tunnel
 * packet. The `reset` programs move the head back, write the headers of a random client to one of the VIPs, and go on with
 * the program under `programs`. With `stop` in its place, what the chain itself costs is left.
 */
#include <linux/bpf.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define IPV4_HEADERS 54 /* Ethernet, IPv4, TCP */
#define IPV6_HEADERS 74
#define SOURCE4 26
#define SOURCE6 30      /* the address's low half */
#define DESTINATION4 30
#define DESTINATION6 38
#define PORT4 34
#define PORT6 54
#define MAX_VIPS 1024

struct settings {
    __u32 frame_bytes;
    __u32 n_vips;
    __u32 clients;          /* a mask: how many of the source address's low bits vary */
    __u32 port;             /* destination port */
    __u8 header[80];
    __u32 vips[MAX_VIPS][4]; /* wire order; IPv4: the first word */
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
    __u32 zero = 0, size = is_ipv6 ? IPV6_HEADERS : IPV4_HEADERS, random = bpf_get_prandom_u32(), client, ports;
    struct settings *set = bpf_map_lookup_elem(&settings, &zero);
    const __u32 *vip;
    __u8 *frame;

    /* Also where there is nothing to move: the chain alone shall cost as much. */
    if (!set || bpf_xdp_adjust_head(ctx, (int)(bpf_xdp_get_buff_len(ctx) - set->frame_bytes)))
        return XDP_ABORTED;
    frame = (void *)(long)ctx->data;
    if (frame + size > (__u8 *)(long)ctx->data_end)
        return XDP_ABORTED;
    __builtin_memcpy(frame, set->header, size);
    vip = set->vips[((__u64)random * set->n_vips >> 32) & (MAX_VIPS - 1)];
    client = random & set->clients;
    /* Both in one store: a load that needs two earlier stores waits for them, as no packet from a device makes it. */
    ports = bpf_htonl((1024 | (client & 0x7fff)) << 16 | set->port);
    if (is_ipv6) {
        *(__u32 *)(frame + SOURCE6) = client;
        *(__u32 *)(frame + SOURCE6 + 4) = ~client;
        __builtin_memcpy(frame + DESTINATION6, vip, 16);
        *(__u32 *)(frame + PORT6) = ports;
    } else {
        *(__u32 *)(frame + SOURCE4) = client;
        *(__u32 *)(frame + DESTINATION4) = *vip;
        *(__u32 *)(frame + PORT4) = ports;
    }
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

SEC("xdp.frags")
int stop(struct xdp_md *ctx)
{
    return XDP_TX;
}

/* What an interface pays for having a program at all. */
SEC("xdp.frags")
int pass(struct xdp_md *ctx)
{
    return XDP_PASS;
}

/* The least that forwarding can be: MAC addresses exchanged, and back by the same interface. */
SEC("xdp.frags")
int swap(struct xdp_md *ctx)
{
    __u16 *mac = (void *)(long)ctx->data, taken;

    if ((void *)(mac + 7) > (void *)(long)ctx->data_end)
        return XDP_ABORTED;
#pragma unroll
    for (int i = 0; i < 3; i++) {
        taken = mac[i];
        mac[i] = mac[i + 3];
        mac[i + 3] = taken;
    }
    return XDP_TX;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
