// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Both ends of a live benchmark: frames of random clients redirected into a veth, and what comes back counted.
 *
 * The `generate` programs run by BPF_PROG_TEST_RUN with BPF_F_TEST_XDP_LIVE_FRAMES. Its pages are used again with what the
 * last program left in them, so every frame gets its whole header anew.
 */
#include <linux/bpf.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "glb_protocol.h"

#define ETHERNET_BYTES 14
#define IPV4_HEADERS 54 /* Ethernet, IPv4, TCP */
#define IPV6_HEADERS 74
#define SOURCE4 26      /* where the fields that vary begin */
#define CHECKSUM4 24
#define PORT4 34
#define SOURCE6 30      /* the address's low half */
#define PORT6 54
#define BURST 32        /* frames that may follow each other when the load is paced */

struct settings {
    __u32 ifindex;
    __u32 sum;          /* IPv4 header checksum words, added, without the source address */
    __u64 frames_q32;   /* frames a nanosecond, times 2^32; 0: as fast as it goes */
    __u8 header[80];
};

struct pace {
    __u64 last_ns;
    __u64 credit_q32;   /* frames that may go, times 2^32 */
    __u64 sent;
};

enum count {
    COUNT_TUNNEL,       /* tunnel packets */
    COUNT_OTHER,
    N_COUNTS
};

struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(max_entries, 1);
    __type(key, __u32);
    __type(value, struct settings);
} settings SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(max_entries, 1);
    __type(key, __u32);
    __type(value, struct pace);
} pace SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
    __uint(max_entries, N_COUNTS);
    __type(key, __u32);
    __type(value, __u64);
} counts SEC(".maps");

/* Whether one more frame may go now; the clock is read only when the credit is used up. */
static __always_inline int is_due(const struct settings *set, struct pace *now)
{
    if (!set->frames_q32)
        return 1;
    if (now->credit_q32 < 1ULL << 32) {
        __u64 ns = bpf_ktime_get_ns();

        now->credit_q32 += (ns - now->last_ns) * set->frames_q32;
        now->last_ns = ns;
        if (now->credit_q32 > (__u64)BURST << 32)
            now->credit_q32 = (__u64)BURST << 32;
        if (now->credit_q32 < 1ULL << 32)
            return 0;
    }
    now->credit_q32 -= 1ULL << 32;
    return 1;
}

static __always_inline int generate(struct xdp_md *ctx, int is_ipv6)
{
    __u8 *frame = (void *)(long)ctx->data;
    __u32 zero = 0, size = is_ipv6 ? IPV6_HEADERS : IPV4_HEADERS, source, sum;
    const struct settings *set = bpf_map_lookup_elem(&settings, &zero);
    struct pace *now = bpf_map_lookup_elem(&pace, &zero);

    if (!set || !now || frame + size > (__u8 *)(long)ctx->data_end)
        return XDP_ABORTED;
    if (!is_due(set, now))
        return XDP_DROP;
    __builtin_memcpy(frame, set->header, size);
    source = bpf_get_prandom_u32();
    if (is_ipv6) {
        *(__u32 *)(frame + SOURCE6) = source;
        *(__u32 *)(frame + SOURCE6 + 4) = ~source;
        *(__u16 *)(frame + PORT6) = bpf_htons(1024 | (source & 0x7fff));
    } else {
        *(__u32 *)(frame + SOURCE4) = bpf_htonl(source);
        *(__u16 *)(frame + PORT4) = bpf_htons(1024 | (source & 0x7fff));
        sum = set->sum + (source >> 16) + (source & 0xffff);
        sum = (sum & 0xffff) + (sum >> 16);
        sum = (sum & 0xffff) + (sum >> 16);
        *(__u16 *)(frame + CHECKSUM4) = bpf_htons(~sum & 0xffff);
    }
    now->sent++;
    return bpf_redirect(set->ifindex, 0);
}

SEC("xdp")
int generate_ipv4(struct xdp_md *ctx)
{
    return generate(ctx, 0);
}

SEC("xdp")
int generate_ipv6(struct xdp_md *ctx)
{
    return generate(ctx, 1);
}

/* The far end: nothing goes further, ARP neither. */
SEC("xdp")
int count_and_drop(struct xdp_md *ctx)
{
    const __u8 *frame = (void *)(long)ctx->data;
    __u32 which = COUNT_OTHER;
    __u64 *count;

    if (frame + ETHERNET_BYTES + 28 <= (__u8 *)(long)ctx->data_end
        && *(__u16 *)(frame + 12) == bpf_htons(GLB_ETH_P_IP) && frame[ETHERNET_BYTES + 9] == GLB_PROTO_UDP
        && *(__u16 *)(frame + ETHERNET_BYTES + 22) == bpf_htons(GLB_GUE_PORT))
        which = COUNT_TUNNEL;
    count = bpf_map_lookup_elem(&counts, &which);
    if (count)
        ++*count;
    return XDP_DROP;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
