/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The short way of nearly every packet: whether it is common, so that the program encapsulates it by itself, and for which table.
 * glb/_parse.pxd has the same (parse_common_ipv4); the complete way is in classify.bpf.h.
 */
#ifndef GLB_COMMON_BPF_H
#define GLB_COMMON_BPF_H

#include "classify.bpf.h"
#include "glb_layout.h"
#include "glb_protocol.h"
#include "siphash.h"

/* Keeps clang from computing the pointer anew for every field, as it does where offsets from a far base exceed 32 KiB. */
#define ONE_REGISTER(pointer) asm volatile("" : "+r"(pointer))

/* A common packet on its way. */
struct packet {
    struct flow flow;
    __u32 ip_length;
    __u32 hint;
    __u32 table;
    __u32 inner_protocol;
};

/* The prefix of an address: by one probe sequence where whole addresses are bound, as they mostly are; else by the loop. */
static __always_inline const struct glb_prefix *find_vip(const struct glb_generation *generation, __u64 high, __u64 low, __u32 family)
{
    const struct glb_prefix *slot;
    __u32 first = 0;
    int found;

    if (generation->lengths[family][0] == 128) {
        __u32 at = glb_prefix_slot(high, low, 128, generation->seed);

#pragma unroll
        for (__u32 probe = 0; probe < 2; probe++) {
            slot = &generation->slots[(at + probe) & generation->slot_mask & (GLB_PREFIX_SLOTS - 1)];
            ONE_REGISTER(slot);
            if (slot->low == low && slot->high == high && slot->length == 128)
                return slot;
            if (!slot->used) {
                first = 1; /* it is none of those */
                break;
            }
        }
    } else if (generation->lengths[family][0] == 0xff) {
        return 0;
    }
    found = find_prefix(generation, high, low, family, first);
    if (found < 0)
        return 0;
    slot = &generation->slots[found & (GLB_PREFIX_SLOTS - 1)];
    ONE_REGISTER(slot);
    return slot;
}

/* The table of a flow, or -1; where there are few segments, they are in the prefix's own cache line. */
static __always_inline int table_of(const struct glb_generation *generation, const struct glb_prefix *prefix, __u32 protocol, __be32 ports)
{
    __u32 port = bpf_ntohl(ports) & 0xffff, key = protocol << 16 | port;

#pragma unroll
    for (int i = 0; i < GLB_NEAR_SEGMENTS; i++)
        if (prefix->near[i].first <= key && key <= prefix->near[i].last)
            return prefix->near[i].table;
    if (prefix->n_segments <= GLB_NEAR_SEGMENTS)
        return -1;
    return find_table(generation, prefix->first_segment, prefix->n_segments, key);
}

/* PASS where the packet is surely not ours, ENCAPSULATE where it is common and ours; HAND_OVER: let classify() decide. */
static __always_inline enum verdict common_ipv4(const struct glb_generation *generation, void *data, void *data_end, struct packet *packet)
{
    struct ipv4 *header = data + ETHERNET_BYTES;
    __be32 *ports = (void *)(header + 1);
    const struct glb_prefix *prefix;
    __u32 total;
    int table;

    if ((void *)(ports + 1) > data_end)
        return HAND_OVER;
    total = bpf_ntohs(header->total_length);
    if (header->version_ihl != 0x45 || (header->fragment & bpf_htons(0x3fff))
        || (header->protocol != GLB_PROTO_TCP && header->protocol != GLB_PROTO_UDP)
        || total < IPV4_BYTES + 4 || data + ETHERNET_BYTES + total > data_end)
        return HAND_OVER;
    prefix = find_vip(generation, 0, 0xffffULL << 32 | bpf_ntohl(header->destination), 0);
    if (!prefix)
        return PASS;
    table = table_of(generation, prefix, header->protocol, *ports);
    if (table < 0)
        return PASS;
    packet->flow.source[0] = header->source;
    packet->flow.destination[0] = header->destination;
    packet->flow.ports = *ports;
    packet->ip_length = total;
    packet->hint = bpf_ntohl(*ports) >> 16;
    packet->table = table;
    packet->inner_protocol = GLB_PROTO_IPIP;
    return ENCAPSULATE;
}

static __always_inline enum verdict common_ipv6(const struct glb_generation *generation, void *data, void *data_end, struct packet *packet)
{
    struct ipv6 *header = data + ETHERNET_BYTES;
    __be32 *ports = (void *)(header + 1);
    const struct glb_prefix *prefix;
    __u64 high, low;
    __u32 total;
    int table;

    if ((void *)(ports + 1) > data_end)
        return HAND_OVER;
    total = bpf_ntohs(header->payload_length) + IPV6_BYTES;
    if (bpf_ntohl(header->version_label) >> 28 != 6
        || (header->next_header != GLB_PROTO_TCP && header->next_header != GLB_PROTO_UDP)
        || total < IPV6_BYTES + 4 || data + ETHERNET_BYTES + total > data_end)
        return HAND_OVER;
    high = bpf_be64_to_cpu(*(__be64 *)header->destination);
    low = bpf_be64_to_cpu(*(__be64 *)(header->destination + 2));
    if (high == 0 && low >> 32 == 0xffff) /* IPv4-mapped: in the bind table these are the IPv4 prefixes */
        return PASS;
    prefix = find_vip(generation, high, low, 1);
    if (!prefix)
        return PASS;
    table = table_of(generation, prefix, header->next_header, *ports);
    if (table < 0)
        return PASS;
#pragma unroll
    for (int i = 0; i < 4; i += 2) {
        /* Two units by one load; hash_of() puts them together again. */
        __u64 source = *(__u64 *)&header->source[i], destination = *(__u64 *)&header->destination[i];

        packet->flow.source[i] = source;
        packet->flow.source[i + 1] = source >> 32;
        packet->flow.destination[i] = destination;
        packet->flow.destination[i + 1] = destination >> 32;
    }
    packet->flow.ports = *ports;
    packet->ip_length = total;
    packet->hint = bpf_ntohl(*ports) >> 16;
    packet->table = table;
    packet->inner_protocol = GLB_PROTO_IPV6;
    return ENCAPSULATE;
}

#endif
