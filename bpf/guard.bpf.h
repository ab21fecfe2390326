/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Whom and what the second chance serves: the sets of addresses that proxy_agent/xdp.py keeps, and the questions asked of them. */
#ifndef GLB_GUARD_BPF_H
#define GLB_GUARD_BPF_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "glb_verdicts.h"

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
    __uint(max_entries, 2 * GLB_MAX_SOURCES); /* at a reload, the old and the new */
    __type(key, struct glb_prefix4);
    __type(value, __u8);
} glb_sources SEC(".maps"); /* allowed_sources; 0.0.0.0/0 where any source is */

struct {
    __uint(type, BPF_MAP_TYPE_LPM_TRIE);
    __uint(map_flags, BPF_F_NO_PREALLOC);
    __uint(max_entries, 2 * GLB_MAX_VIPS); /* at a reload, the old and the new */
    __type(key, struct glb_prefix4);
    __type(value, __u8);
} glb_vips4 SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_LPM_TRIE);
    __uint(map_flags, BPF_F_NO_PREALLOC);
    __uint(max_entries, 2 * GLB_MAX_VIPS); /* at a reload, the old and the new */
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

static __always_inline int in_trie4(void *trie, __be32 address)
{
    struct glb_prefix4 key = {32, address};

    return bpf_map_lookup_elem(trie, &key) != 0;
}

static __always_inline int is_allowed(const struct glb_agent_settings *settings, __be32 address)
{
    return in_short_list(settings->sources, address) || in_trie4(&glb_sources, address);
}

static __always_inline int is_vip4(const struct glb_agent_settings *settings, __be32 address)
{
    return in_short_list(settings->vips4, address) || in_trie4(&glb_vips4, address);
}

/* `address`: its halves in memory order, as those of struct glb_masked6 are. */
static __always_inline int is_vip6(const struct glb_agent_settings *settings, const __u64 *address)
{
    __u64 first = address[0], second = address[1];
    struct glb_prefix6 key;

#pragma unroll
    for (int i = 0; i < GLB_SHORT_LIST; i++)
        if ((first & settings->vips6[i].mask[0]) == settings->vips6[i].network[0]
            && (second & settings->vips6[i].mask[1]) == settings->vips6[i].network[1])
            return 1;
    key.bits = 128;
    key.address[0] = first;
    key.address[1] = first >> 32;
    key.address[2] = second;
    key.address[3] = second >> 32;
    return bpf_map_lookup_elem(&glb_vips6, &key) != 0;
}

#endif
