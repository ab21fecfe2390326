/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The places of the director's program at which a capture takes packets. Without GLB_CAPTURE (bpf/capture.bpf.c) they are
 * nothing. Here go packets that the program encapsulates, those for a VIP that it passes to the host, and those that no worker
 * can take; what it hands over, the worker captures with its own verdict.
 */
#ifndef GLB_CAPTURE_BPF_H
#define GLB_CAPTURE_BPF_H

#include "classify.bpf.h"
#include "glb_capture.h"
#include "siphash.h"

#ifdef GLB_CAPTURE

struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(max_entries, 1);
    __uint(map_flags, BPF_F_MMAPABLE);
    __type(key, __u32);
    __type(value, struct glb_capture);
} glb_capture SEC(".maps");

/* Not a perf event array, though it would take frames of any length as they are: to read one needs CAP_SYS_ADMIN on Debian. */
struct {
    __uint(type, BPF_MAP_TYPE_RINGBUF);
    __uint(max_entries, 1 << 22); /* some 13,000 short packets, 2,000 whole ones */
} glb_captured SEC(".maps");

/* What is wanted, while somebody reads: this program stays where the director that captured was killed. */
static __always_inline struct glb_capture *capture_wanted(void)
{
    __u32 zero = 0;
    struct glb_capture *capture = bpf_map_lookup_elem(&glb_capture, &zero);

    if (!capture || bpf_ktime_get_coarse_ns() >= capture->until_ns)
        return 0;
    return capture;
}

/* As capture_put(), in a record for so many bytes of the frame, a power of two and a constant. */
static __always_inline int capture_put_in(struct xdp_md *ctx, const struct glb_captured *taken, const __u32 size)
{
    struct glb_captured *record = bpf_ringbuf_reserve(&glb_captured, sizeof(*taken) + size, 0);
    __u32 kept = taken->kept_bytes;

    if (!record)
        return -1;
    *record = *taken;
    ONE_REGISTER(kept);
    kept = ((kept - 1) & (size - 1)) + 1; /* what it is already; but the verifiers of 6.1 and 6.12 have to see it */
    if (bpf_xdp_load_bytes(ctx, 0, record + 1, kept)) {
        bpf_ringbuf_discard(record, BPF_RB_NO_WAKEUP);
        return -1;
    }
    /* The reader looks by itself every few milliseconds; to wake it would cost more than the packet. */
    bpf_ringbuf_submit(record, BPF_RB_NO_WAKEUP);
    return 0;
}

/* Copies the frame as it is now, its first `kept_bytes`, of which there is at least one. */
static __noinline int capture_put(struct xdp_md *ctx, struct glb_capture *capture, struct glb_captured *taken)
{
    __u32 kept = taken->kept_bytes;
    int failed = -1;

    taken->at_ns = bpf_ktime_get_ns();
    taken->engine = GLB_BY_XDP;
    if (kept <= 256)
        failed = capture_put_in(ctx, taken, 256);
    else if (kept <= 1024)
        failed = capture_put_in(ctx, taken, 1024);
    else if (kept <= 2048)
        failed = capture_put_in(ctx, taken, 2048);
    else if (kept <= GLB_CAPTURE_MAX_KEPT)
        failed = capture_put_in(ctx, taken, GLB_CAPTURE_MAX_KEPT);
    if (failed)
        __sync_fetch_and_add(&capture->missed, 1);
    return 0;
}

static __always_inline int capture_samples(const struct glb_capture *capture)
{
    return capture->sample <= 1 || bpf_get_prandom_u32() % capture->sample == 0;
}

/* Before encapsulation: whether the packet is wanted; if so, keeps what encapsulation overwrites. */
static __always_inline int capture_received(struct xdp_md *ctx, struct glb_captured *taken, const struct glb_table *table,
                                            const struct packet *packet, __u64 hash, const int n_address)
{
    const __u32 *source = packet->flow.source;
    struct glb_capture *capture = capture_wanted();
    __u64 high = 0, low;

    if (!capture)
        return 0;
    __builtin_memset(taken, 0, sizeof(*taken));
    taken->bank = table->first_chunk >= GLB_BANK_CHUNKS;
    taken->table = packet->table;
    if (n_address == 4) {
        high = source[0] | (__u64)source[1] << 32;
        low = source[2] | (__u64)source[3] << 32;
    } else {
        low = bpf_htonl(0xffff) | (__u64)source[0] << 32;
    }
    if ((capture->tables[taken->bank & 1] != GLB_ANY_TABLE && capture->tables[taken->bank & 1] != packet->table)
        || !glb_client_wanted(capture, high, low, n_address * 4) || !capture_samples(capture))
        return 0;
    taken->hash = hash;
    taken->row = (__u32)hash & table->row_mask;
    taken->received_bytes = bpf_xdp_get_buff_len(ctx);
    taken->link_bytes = ETHERNET_BYTES;
    return !bpf_xdp_load_bytes(ctx, 0, taken->link, ETHERNET_BYTES);
}

static __always_inline void capture_sent(struct xdp_md *ctx, struct glb_captured *taken)
{
    struct glb_capture *capture = capture_wanted();
    __u32 front, kept;

    if (!capture)
        return;
    taken->verdict = GLB_FORWARD;
    taken->sent_bytes = bpf_xdp_get_buff_len(ctx);
    front = taken->sent_bytes - taken->received_bytes;
    taken->ip_at = front + ETHERNET_BYTES;
    kept = capture->snap_bytes < taken->received_bytes ? capture->snap_bytes : taken->received_bytes;
    taken->kept_bytes = front + kept;
    capture_put(ctx, capture, taken);
}

/* The client of an ICMP error is the one that the packet quoted was for. The place is that of the quote. */
static __always_inline void quoted_client(struct xdp_md *ctx, __u32 at, int is_ipv6, __u64 *high, __u64 *low)
{
    __u32 address;

    if (is_ipv6) {
        __u64 pair[2];

        if (!bpf_xdp_load_bytes(ctx, at + 24, pair, sizeof(pair))) {
            *high = pair[0];
            *low = pair[1];
        }
    } else if (!bpf_xdp_load_bytes(ctx, at + 16, &address, sizeof(address))) {
        *low = bpf_htonl(0xffff) | (__u64)address << 32;
    }
}

/* A frame that is not sent by this program nor handed over; taken if it is for a VIP. Not static, so verified once. */
__noinline int capture_frame(struct xdp_md *ctx, const struct glb_generation *generation, __u32 verdict)
{
    struct glb_capture *capture = capture_wanted();
    struct glb_captured taken = {};
    __u32 at = ETHERNET_BYTES, is_ipv6;
    __u64 high = 0, low;
    __be16 ethertype;
    __u8 type;

    if (!capture || !generation || capture->tables[0] != GLB_ANY_TABLE || bpf_xdp_load_bytes(ctx, 12, &ethertype, 2))
        return 0;
#pragma unroll
    for (int i = 0; i < GLB_MAX_TAGS; i++) {
        if (ethertype != bpf_htons(GLB_ETH_P_8021Q) && ethertype != bpf_htons(GLB_ETH_P_8021AD))
            break;
        if (bpf_xdp_load_bytes(ctx, at + 2, &ethertype, 2))
            return 0;
        at += TAG_BYTES;
    }
    is_ipv6 = ethertype == bpf_htons(GLB_ETH_P_IPV6);
    if (is_ipv6) {
        struct ipv6 header;

        if (bpf_xdp_load_bytes(ctx, at, &header, sizeof(header)) || find_ipv6(generation, header.destination) < 0)
            return 0;
        high = header.source[0] | (__u64)header.source[1] << 32;
        low = header.source[2] | (__u64)header.source[3] << 32;
        at += IPV6_BYTES;
        if (header.next_header == GLB_PROTO_ICMPV6 && !bpf_xdp_load_bytes(ctx, at, &type, 1) && type >= 1 && type <= 4)
            quoted_client(ctx, at + 8, 1, &high, &low);
    } else if (ethertype == bpf_htons(GLB_ETH_P_IP)) {
        struct ipv4 header;

        if (bpf_xdp_load_bytes(ctx, at, &header, sizeof(header)) || find_ipv4(generation, header.destination) < 0)
            return 0;
        low = bpf_htonl(0xffff) | (__u64)header.source << 32;
        at += (header.version_ihl & 0x0f) * 4;
        if (header.protocol == GLB_PROTO_ICMP && !(header.fragment & bpf_htons(FRAGMENT_OFFSET))
            && !bpf_xdp_load_bytes(ctx, at, &type, 1) && (type == 3 || type == 11 || type == 12))
            quoted_client(ctx, at + 8, 0, &high, &low);
    } else {
        return 0;
    }
    if (!glb_client_wanted(capture, high, low, is_ipv6 ? 16 : 4) || !capture_samples(capture))
        return 0;
    taken.verdict = verdict;
    taken.table = GLB_NO_TABLE;
    taken.received_bytes = bpf_xdp_get_buff_len(ctx);
    taken.kept_bytes = capture->snap_bytes < taken.received_bytes ? capture->snap_bytes : taken.received_bytes;
    capture_put(ctx, capture, &taken);
    return 0;
}

#else

static __always_inline int capture_received(struct xdp_md *ctx, struct glb_captured *taken, const struct glb_table *table,
                                            const struct packet *packet, __u64 hash, const int n_address)
{
    return 0;
}

static __always_inline void capture_sent(struct xdp_md *ctx, struct glb_captured *taken)
{
}

static __always_inline int capture_frame(struct xdp_md *ctx, const struct glb_generation *generation, __u32 verdict)
{
    return 0;
}

#endif
#endif
