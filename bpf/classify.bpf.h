/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Whether a frame is ours: the complete classification, which follows the parse functions of glb/_parse.pxd one by one, with
 * their drops as HAND_OVER. It must never take what is not ours, nor pass to the host what is; tests/parity/ runs both on the
 * same frames.
 */
#ifndef GLB_CLASSIFY_BPF_H
#define GLB_CLASSIFY_BPF_H

#include <linux/bpf.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "glb_layout.h"
#include "glb_protocol.h"
#include "ip_headers.h"

#define ETHERNET_BYTES 14
#define TAG_BYTES 4
#define IPV4_BYTES 20
#define IPV6_BYTES 40
#define FRAGMENT_OFFSET 0x1fff

enum verdict {
    PASS,      /* not ours: the host's stack */
    HAND_OVER, /* ours, for better or worse: the AF_XDP socket */
    ENCAPSULATE, /* ours and common: done here */
};

/* Where the next header starts, and where the IP packet ends, as offsets into the frame. */
struct place {
    __u32 at;
    __u32 end;
};

/* Slot of the longest bound prefix that holds an address, or -1; by the lengths in use from the `first` on. Not static: the
 * verifier looks at it once, not per call. */
__noinline int find_prefix(const struct glb_generation *generation, __u64 high, __u64 low, __u32 family, __u32 first)
{
    if (!generation)
        return -1;
    for (__u32 i = first; i < GLB_MAX_LENGTHS; i++) {
        __u32 length = generation->lengths[family & 1][i];
        __u64 masked_high = high, masked_low = 0;
        __u32 at;

        if (length == 0xff)
            return -1;
        if (length > 64)
            masked_low = low & (~0ULL << ((128 - length) & 63));
        else
            masked_high = length ? high & (~0ULL << ((64 - length) & 63)) : 0;
        at = glb_prefix_slot(masked_high, masked_low, length, generation->seed);
        for (__u32 probe = 0; probe < GLB_MAX_PROBES; probe++) {
            __u32 index = (at + probe) & generation->slot_mask & (GLB_PREFIX_SLOTS - 1);
            const struct glb_prefix *slot = &generation->slots[index];

            if (!slot->used)
                break;
            if (slot->low == masked_low && slot->high == masked_high && slot->length == length)
                return index;
        }
    }
    return -1;
}

static __always_inline int find_ipv4(const struct glb_generation *generation, __be32 address)
{
    return find_prefix(generation, 0, 0xffffULL << 32 | bpf_ntohl(address), 0, 0);
}

static __always_inline int find_ipv6(const struct glb_generation *generation, const __be32 *address)
{
    __u64 high = (__u64)bpf_ntohl(address[0]) << 32 | bpf_ntohl(address[1]);
    __u64 low = (__u64)bpf_ntohl(address[2]) << 32 | bpf_ntohl(address[3]);

    if (high == 0 && low >> 32 == 0xffff) /* IPv4-mapped: in the bind table these are the IPv4 prefixes */
        return -1;
    return find_prefix(generation, high, low, 1, 0);
}

/* Table of a key (protocol << 16 | port, host order) among the segments of a prefix, or -1: no bind is in force there. */
__noinline int find_table(const struct glb_generation *generation, __u32 first, __u32 n, __u32 key)
{
    __u32 low = first, high = first + n;

    if (!generation)
        return -1;
    for (int step = 0; step < GLB_SEARCH_STEPS && low < high; step++) {
        __u32 middle = (low + high) >> 1;

        if (generation->segments[middle & (GLB_MAX_SEGMENTS - 1)].last < key)
            low = middle + 1;
        else
            high = middle;
    }
    if (low >= first + n)
        return -1;
    low &= GLB_MAX_SEGMENTS - 1;
    return generation->segments[low].first <= key ? (int)generation->segments[low].table : -1;
}

static __always_inline int find_port(const struct glb_generation *generation, int slot, __u32 protocol, __be16 port)
{
    const struct glb_prefix *prefix = &generation->slots[slot & (GLB_PREFIX_SLOTS - 1)];

    return find_table(generation, prefix->first_segment, prefix->n_segments, protocol << 16 | bpf_ntohs(port));
}

/* `length` bytes at the place into `to`, and the place moves on; nonzero if the packet ends before. */
static __always_inline int take(struct xdp_md *ctx, struct place *place, void *to, __u32 length)
{
    if (place->at + length > place->end || bpf_xdp_load_bytes(ctx, place->at, to, length))
        return -1;
    place->at += length;
    return 0;
}

static __always_inline enum verdict ports(struct xdp_md *ctx, const struct glb_generation *generation, int prefix,
                                          __u32 protocol, struct place place)
{
    __be16 port[2];

    if (protocol != GLB_PROTO_TCP && protocol != GLB_PROTO_UDP)
        return PASS;
    if (take(ctx, &place, port, sizeof(port)))
        return HAND_OVER;
    return find_port(generation, prefix, protocol, port[1]) >= 0 ? HAND_OVER : PASS;
}

static __always_inline enum verdict later_fragment(const struct glb_generation *generation, __u32 protocol, __u32 icmp)
{
    if (protocol == icmp)
        return generation->forward_echo ? HAND_OVER : PASS;
    return protocol == GLB_PROTO_TCP || protocol == GLB_PROTO_UDP ? HAND_OVER : PASS;
}

/* Past the IPv6 extension headers (RFC 8200 section 4). Nonzero: cut off, or more of them than any honest sender uses. */
static __always_inline int walk_extensions(struct xdp_md *ctx, struct place *place, __u32 *protocol, int *is_later_fragment)
{
    __u8 header[8];

#pragma unroll /* Linux 6.1 takes no loop that is entered in its middle, as clang lays out this one */
    for (int i = 0; i <= GLB_MAX_EXTENSION_HEADERS; i++) {
        if (*protocol != 0 && *protocol != 43 && *protocol != 44 && *protocol != 60)
            return 0;
        if (i == GLB_MAX_EXTENSION_HEADERS || take(ctx, place, header, sizeof(header)))
            return -1;
        if (*protocol == 44) {
            *protocol = header[0];
            if (((__u32)header[2] << 8 | header[3]) >> 3) {
                *is_later_fragment = 1;
                return 0;
            }
            continue;
        }
        *protocol = header[0];
        place->at += header[1] * 8;
        if (place->at > place->end)
            return -1;
    }
    return -1;
}

/* The flow that an ICMP error quotes, reversed: the port that is ours comes first. */
static __always_inline enum verdict quoted(struct xdp_md *ctx, const struct glb_generation *generation, int prefix,
                                           __u32 protocol, struct place place)
{
    __be16 port[2];

    if (prefix < 0 || (protocol != GLB_PROTO_TCP && protocol != GLB_PROTO_UDP))
        return PASS;
    if (take(ctx, &place, port, sizeof(port)))
        return HAND_OVER;
    return find_port(generation, prefix, protocol, port[0]) >= 0 ? HAND_OVER : PASS;
}

static __always_inline enum verdict icmpv4(struct xdp_md *ctx, const struct glb_generation *generation, struct place place)
{
    struct place start = place;
    struct ipv4 inner;
    __u8 icmp[2];
    __u32 header_bytes;

    if (take(ctx, &start, icmp, sizeof(icmp)))
        return HAND_OVER;
    if (icmp[0] == 8 && icmp[1] == 0)
        return generation->forward_echo || place.at + 8 > place.end ? HAND_OVER : PASS;
    if (icmp[0] != 3 && icmp[0] != 11 && icmp[0] != 12)
        return PASS;
    place.at += 8;
    start = place;
    if (take(ctx, &place, &inner, sizeof(inner)))
        return HAND_OVER;
    header_bytes = (inner.version_ihl & 0x0f) * 4;
    if (inner.version_ihl >> 4 != 4 || header_bytes < IPV4_BYTES || start.at + header_bytes > place.end)
        return HAND_OVER;
    if (inner.fragment & bpf_htons(FRAGMENT_OFFSET))
        return PASS;
    start.at += header_bytes;
    return quoted(ctx, generation, find_ipv4(generation, inner.source), inner.protocol, start);
}

static __always_inline enum verdict icmpv6(struct xdp_md *ctx, const struct glb_generation *generation, struct place place)
{
    struct place start = place;
    int is_later_fragment = 0;
    struct ipv6 inner;
    __u32 protocol;
    __u8 icmp[2];

    if (take(ctx, &start, icmp, sizeof(icmp)))
        return HAND_OVER;
    if (icmp[0] == 128 && icmp[1] == 0)
        return generation->forward_echo || place.at + 8 > place.end ? HAND_OVER : PASS;
    if (icmp[0] < 1 || icmp[0] > 4)
        return PASS;
    place.at += 8;
    if (take(ctx, &place, &inner, sizeof(inner)))
        return HAND_OVER;
    protocol = inner.next_header;
    if (bpf_ntohl(inner.version_label) >> 28 != 6 || walk_extensions(ctx, &place, &protocol, &is_later_fragment))
        return HAND_OVER;
    if (is_later_fragment)
        return PASS;
    return quoted(ctx, generation, find_ipv6(generation, inner.source), protocol, place);
}

static __always_inline enum verdict ipv4(struct xdp_md *ctx, const struct glb_generation *generation, void *data, void *data_end,
                                         __u32 link_bytes)
{
    struct ipv4 *header = data + link_bytes;
    struct place place = {};
    int prefix;
    __u32 header_bytes, total;

    if ((void *)(header + 1) > data_end)
        return PASS;
    prefix = find_ipv4(generation, header->destination);
    if (prefix < 0)
        return PASS;
    header_bytes = (header->version_ihl & 0x0f) * 4;
    total = bpf_ntohs(header->total_length);
    if (header->version_ihl >> 4 != 4 || header_bytes < IPV4_BYTES || total < header_bytes
        || link_bytes + total > bpf_xdp_get_buff_len(ctx))
        return HAND_OVER;
    place.at = link_bytes + header_bytes;
    place.end = link_bytes + total;
    if (header->fragment & bpf_htons(FRAGMENT_OFFSET))
        return later_fragment(generation, header->protocol, GLB_PROTO_ICMP);
    if (header->protocol == GLB_PROTO_ICMP)
        return icmpv4(ctx, generation, place);
    return ports(ctx, generation, prefix, header->protocol, place);
}

static __always_inline enum verdict ipv6(struct xdp_md *ctx, const struct glb_generation *generation, void *data, void *data_end,
                                         __u32 link_bytes)
{
    struct ipv6 *header = data + link_bytes;
    struct place place = {};
    int prefix;
    int is_later_fragment = 0;
    __u32 protocol;

    if ((void *)(header + 1) > data_end)
        return PASS;
    prefix = find_ipv6(generation, header->destination);
    if (prefix < 0)
        return PASS;
    place.at = link_bytes + IPV6_BYTES;
    place.end = place.at + bpf_ntohs(header->payload_length);
    if (bpf_ntohl(header->version_label) >> 28 != 6 || place.end > bpf_xdp_get_buff_len(ctx))
        return HAND_OVER;
    protocol = header->next_header;
    if (walk_extensions(ctx, &place, &protocol, &is_later_fragment))
        return HAND_OVER;
    if (is_later_fragment)
        return later_fragment(generation, protocol, GLB_PROTO_ICMPV6);
    if (protocol == GLB_PROTO_ICMPV6)
        return icmpv6(ctx, generation, place);
    return ports(ctx, generation, prefix, protocol, place);
}

/* Every kind of packet, slowly and completely; VLAN tags are looked past. */
static __always_inline enum verdict classify(struct xdp_md *ctx, const struct glb_generation *generation, void *data, void *data_end)
{
    __be16 ethertype = *(__be16 *)(data + 12);
    __u32 link_bytes = ETHERNET_BYTES;

#pragma unroll
    for (int i = 0; i < GLB_MAX_TAGS; i++) {
        if (ethertype != bpf_htons(GLB_ETH_P_8021Q) && ethertype != bpf_htons(GLB_ETH_P_8021AD))
            break;
        if (data + link_bytes + TAG_BYTES > data_end)
            return PASS;
        ethertype = *(__be16 *)(data + link_bytes + 2);
        link_bytes += TAG_BYTES;
    }
    if (ethertype == bpf_htons(GLB_ETH_P_IP))
        return ipv4(ctx, generation, data, data_end, link_bytes);
    if (ethertype == bpf_htons(GLB_ETH_P_IPV6))
        return ipv6(ctx, generation, data, data_end, link_bytes);
    return PASS;
}

#endif
