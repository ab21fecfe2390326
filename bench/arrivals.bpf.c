// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* The far end of the reload benchmark: when the first tunnel packet for each backend arrived, and how many in all. */
#include <linux/bpf.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "glb_protocol.h"

#define ETHERNET_BYTES 14
#define N_BACKENDS 512 /* by the low bits of their addresses */

struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(max_entries, N_BACKENDS);
    __type(key, __u32);
    __type(value, __u64); /* CLOCK_MONOTONIC; 0: none yet */
} arrivals SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
    __uint(max_entries, 1);
    __type(key, __u32);
    __type(value, __u64);
} total SEC(".maps");

SEC("xdp")
int note_and_drop(struct xdp_md *ctx)
{
    const __u8 *frame = (void *)(long)ctx->data, *ip = frame + ETHERNET_BYTES;
    __u32 zero = 0, which;
    __u64 *first_ns, *count;

    if (ip + 28 > (__u8 *)(long)ctx->data_end || *(__u16 *)(frame + 12) != bpf_htons(GLB_ETH_P_IP)
        || ip[9] != GLB_PROTO_UDP || *(__u16 *)(ip + 22) != bpf_htons(GLB_GUE_PORT))
        return XDP_DROP;
    which = (ip[18] << 8 | ip[19]) % N_BACKENDS;
    first_ns = bpf_map_lookup_elem(&arrivals, &which);
    if (first_ns && !*first_ns)
        *first_ns = bpf_ktime_get_ns();
    count = bpf_map_lookup_elem(&total, &zero);
    if (count)
        ++*count;
    return XDP_DROP;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
