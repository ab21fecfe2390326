// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* The director in the kernel. What is not for a bind goes to the host's own stack untouched. Common packets of a bind (TCP and
 * UDP over IPv4 without options or IPv6 without extension headers, unfragmented, fitting the path) are encapsulated and sent
 * here. Everything else of a bind goes to the AF_XDP socket of its receive queue, where glb/_fastpath.pyx encapsulates, drops
 * and counts it; with the option `accelerate` off, the common packets too. Both give the same bytes for the same packet.
 */
#include <linux/bpf.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "classify.bpf.h"
#include "common.bpf.h"
#include "glb_layout.h"
#include "glb_protocol.h"
#include "siphash.h"

#define MAX_QUEUES 128
#define OVERHEAD_BYTES 36 /* outer IPv4, UDP, GUE and private data header; 4 more for each hop after the first */
#define FRONT_BYTES (ETHERNET_BYTES + OVERHEAD_BYTES)
#define MAX_LIST (2 * GLB_MAX_STRIDE)

enum counter {
    COUNT_HANDED_OVER,
    COUNT_NO_SOCKET, /* no worker on the frame's receive queue: the daemon is starting, stopping, or dead */
    N_COUNTERS
};

const volatile struct glb_options glb_options = {};

/* The generation in force: a map in a map, so that replacing the inner one replaces everything at once. */
struct {
    __uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
    __uint(max_entries, 1);
    __type(key, __u32);
    __array(values, struct {
        __uint(type, BPF_MAP_TYPE_ARRAY);
        __uint(max_entries, 1);
        __uint(map_flags, BPF_F_MMAPABLE);
        __type(key, __u32);
        __type(value, struct glb_generation);
    });
} glb_generations SEC(".maps");

/* Rows, in two banks of slots: a new generation fills the bank that the one in force does not name. */
struct {
    __uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
    __uint(max_entries, 2 * GLB_BANK_CHUNKS);
    __type(key, __u32);
    __array(values, struct {
        __uint(type, BPF_MAP_TYPE_ARRAY);
        __uint(max_entries, 1);
        __uint(map_flags, BPF_F_MMAPABLE);
        __uint(key_size, sizeof(__u32));
        __uint(value_size, sizeof(struct glb_rows));
    });
} glb_chunks SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_XSKMAP);
    __uint(max_entries, MAX_QUEUES);
    __type(key, __u32);
    __type(value, __u32);
} glb_sockets SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
    __uint(max_entries, N_COUNTERS);
    __type(key, __u32);
    __type(value, __u64);
} glb_counters SEC(".maps");

/* By glb_backend.slot. */
struct {
    __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
    __uint(max_entries, GLB_COUNT_SLOTS);
    __type(key, __u32);
    __type(value, struct glb_count);
} glb_backend_counts SEC(".maps");

#include "capture.bpf.h" /* needs the maps, and struct packet */

static __always_inline void count(__u32 which)
{
    __u64 *value = bpf_map_lookup_elem(&glb_counters, &which);

    if (value)
        *value += 1;
}

/* Backend indexes of a row, or NULL (the chunk is not there: cannot be published). */
static __always_inline const __u16 *row_of(const struct glb_table *table, __u64 hash)
{
    __u32 row = (__u32)hash & table->row_mask, slot = table->first_chunk, zero = 0;
    const struct glb_rows *rows;
    void *chunk;
    __u64 at;

    if (table->row_mask >= GLB_CHUNK_ROWS) /* else the look-up does not wait for the hash */
        slot += row / GLB_CHUNK_ROWS;
    chunk = bpf_map_lookup_elem(&glb_chunks, &slot);
    if (!chunk)
        return 0;
    rows = bpf_map_lookup_elem(chunk, &zero);
    if (!rows)
        return 0;
    at = (__u64)(row % GLB_CHUNK_ROWS) * 2;
    if (table->stride != 2)
        at += at; /* no product: Linux 6.1 knows no bounds of it */
    return &rows->hops[at];
}

/* Appends a row's hops to the list; returns its new length. */
static __always_inline int list_row(const struct glb_table *table, const __u16 *row, __u16 *hops, int n, int keep_duplicates)
{
    for (int i = 0; i < GLB_MAX_STRIDE; i++) {
        int listed = 0;

        if (i == 2 && table->stride == 2)
            break;
        if (row[i] == GLB_NO_HOP)
            break;
        for (int k = 0; k < MAX_LIST && k < n; k++)
            listed |= hops[k] == row[i];
        if (listed && !keep_duplicates)
            continue;
        if (n < MAX_LIST)
            hops[n++] = row[i];
    }
    return n;
}

static __always_inline const struct glb_backend *backend_of(const struct glb_generation *generation, const struct glb_table *table, __u32 hop)
{
    const struct glb_backend *backend = &generation->backends[(table->first_backend + hop) & (GLB_MAX_BACKENDS - 1)];

    ONE_REGISTER(backend);
    return backend;
}

/* The first 50 bytes of the front; the further hops follow. Little-endian words: see docs/protocol/gue.md for the fields. */
static __always_inline void write_front(__u64 *front, const struct packet *packet, const struct glb_backend *primary, __u64 next_hop,
                                        __u64 hash, __u32 further, __u32 outer_length)
{
    __u64 length = bpf_htons(outer_length);
    __u32 sum = primary->header_sum + length; /* a one's complement sum may be taken in any byte order (RFC 1071) */
    __u64 destination = *(const __u32 *)primary->address;
    __u64 port = GLB_SOURCE_PORT_BASE | (((__u32)hash ^ packet->hint) & 0x7fff);

    sum += sum >> 16;
    front[0] = (next_hop & 0xffffffffffffULL) | glb_options.front[0];
    front[1] = glb_options.front[1];
    front[2] = length | glb_options.front[2];
    front[3] = (__u16)~sum | glb_options.front[3] | destination << 48;
    front[4] = destination >> 16 | (__u64)bpf_htons(port) << 16 | glb_options.front[4]
               | (__u64)bpf_htons(outer_length - IPV4_BYTES) << 48;
    front[5] = (1 + further) << 16 | packet->inner_protocol << 24;
    *(__u16 *)&front[6] = further << 8;
}

/* Whether what leaves by another interface can be sent from here. */
static __always_inline int can_redirect(const struct glb_generation *generation, __u64 next_hop)
{
    return next_hop >> GLB_NEXT_HOP_KNOWN_BIT & 1 && generation->egresses[next_hop >> GLB_NEXT_HOP_EGRESS_BIT].redirects;
}

/* Makes room and writes the front. The egress, or -1: nothing is changed; the Cython path shall send it, drop and count it, or
 * answer it. */
static __always_inline int put_front(struct xdp_md *ctx, const struct glb_generation *generation, const struct packet *packet,
                                     const struct glb_backend *primary, __u64 hash, __u32 further)
{
    __u32 overhead = OVERHEAD_BYTES + 4 * further, outer_length = overhead + packet->ip_length;
    __u64 next_hop = primary->next_hop, egress = next_hop >> GLB_NEXT_HOP_EGRESS_BIT;
    void *data;

    if (next_hop >> GLB_NEXT_HOP_KNOWN_BIT != 1 && !can_redirect(generation, next_hop)) /* 1: known, and no other interface */
        return -1;
    if (outer_length > primary->mtu_bytes || bpf_xdp_adjust_head(ctx, -(int)overhead))
        return -1;
    data = (void *)(long)ctx->data;
    if (data + FRONT_BYTES <= (void *)(long)ctx->data_end) { /* as the received frame was longer than that */
        write_front(data, packet, primary, next_hop, hash, further, outer_length);
        if (egress)
            __builtin_memcpy(data + 6, generation->egresses[egress].source_mac, 6);
    }
    return egress;
}

/* Counts the frame of `received` bytes, and sends it. */
static __always_inline int send_to(struct xdp_md *ctx, const struct glb_generation *generation, const struct glb_backend *primary,
                                   __u64 received, __u32 egress)
{
    __u32 slot = primary->slot;
    struct glb_count *counted = bpf_map_lookup_elem(&glb_backend_counts, &slot);

    if (counted) {
        counted->packets += 1;
        counted->bytes += received;
    }
    if (egress)
        return bpf_redirect(generation->egresses[egress & (GLB_MAX_EGRESSES - 1)].ifindex, 0);
    /* volatile: else clang merges this load with that of another field, from a computed address, which verifiers refuse. */
    return glb_options.ifindex ? XDP_TX : bpf_redirect(*(volatile __u32 *)&ctx->ingress_ifindex, 0);
}

/* As encapsulate(), with at most one further hop: nothing to list. */
static __always_inline int encapsulate_pair(struct xdp_md *ctx, const struct glb_generation *generation, const struct packet *packet,
                                            const struct glb_backend *primary, const struct glb_backend *secondary, __u64 hash)
{
    __u64 received = (void *)(long)ctx->data_end - (void *)(long)ctx->data;
    int egress = put_front(ctx, generation, packet, primary, hash, secondary ? 1 : 0);
    void *data = (void *)(long)ctx->data;

    if (egress < 0)
        return -1;
    if (secondary && data + FRONT_BYTES + 4 <= (void *)(long)ctx->data_end)
        *(__u32 *)(data + FRONT_BYTES) = *(const __u32 *)secondary->address;
    return send_to(ctx, generation, primary, received, egress);
}

/* XDP action, or -1 as of put_front(). */
static __always_inline int encapsulate(struct xdp_md *ctx, const struct glb_generation *generation, const struct glb_table *table,
                                       const struct packet *packet, __u64 hash, __u64 alt_hash)
{
    __u64 received = (void *)(long)ctx->data_end - (void *)(long)ctx->data;
    const struct glb_backend *primary;
    __u16 hops[MAX_LIST];
    const __u16 *row;
    int egress, n;
    void *data;

    row = row_of(table, hash);
    if (!row || row[0] == GLB_NO_HOP)
        return -1;
    primary = backend_of(generation, table, row[0]);
    if (!glb_options.alt_hash_fields && table->stride == 2) {
        if (row[1] == GLB_NO_HOP)
            return encapsulate_pair(ctx, generation, packet, primary, 0, hash);
        return encapsulate_pair(ctx, generation, packet, primary, backend_of(generation, table, row[1]), hash);
    }
    n = list_row(table, row, hops, 0, 1);
    if (glb_options.alt_hash_fields) {
        row = row_of(table, alt_hash);
        if (!row)
            return -1;
        n = list_row(table, row, hops, n, table->keep_duplicates);
    }
    if (n < 1 || n > MAX_LIST)
        return -1;
    egress = put_front(ctx, generation, packet, primary, hash, n - 1);
    if (egress < 0)
        return -1;
    data = (void *)(long)ctx->data;
#pragma unroll
    for (int i = 1; i < MAX_LIST; i++) {
        __u32 *hop = data + FRONT_BYTES + 4 * (i - 1);

        if (i >= n || (void *)(hop + 1) > (void *)(long)ctx->data_end)
            break;
        *hop = *(const __u32 *)backend_of(generation, table, hops[i])->address;
    }
    return send_to(ctx, generation, primary, received, egress);
}

static __always_inline int to_host(struct xdp_md *ctx, const struct glb_generation *generation)
{
    capture_frame(ctx, generation, GLB_HOST);
    return XDP_PASS;
}

static __always_inline int hand_over(struct xdp_md *ctx, const struct glb_generation *generation)
{
    long action = bpf_redirect_map(&glb_sockets, ctx->rx_queue_index, XDP_DROP);

    count(action == XDP_REDIRECT ? COUNT_HANDED_OVER : COUNT_NO_SOCKET);
    if (action != XDP_REDIRECT)
        capture_frame(ctx, generation, GLB_LOST_NO_SOCKET);
    return action;
}

static __always_inline int forward(struct xdp_md *ctx, const struct glb_generation *generation, struct packet *packet, const int n_address)
{
    __u64 alt_hash = 0, hash;
    const struct glb_table *table;
    struct glb_captured taken;
    int action, wanted;

    if (generation->n_tables == 1) /* a guess that the processor makes before it knows the bind: the hash need not wait */
        packet->table = 0;
    table = &generation->tables[packet->table & (GLB_MAX_TABLES - 1)];
    ONE_REGISTER(table);
    hash = flow_hash(&packet->flow, n_address, glb_options.hash_fields, table->key0, table->key1);
    if (glb_options.alt_hash_fields)
        alt_hash = flow_hash(&packet->flow, n_address, glb_options.alt_hash_fields, table->key0, table->key1);
    wanted = capture_received(ctx, &taken, table, packet, hash, n_address);
    action = encapsulate(ctx, generation, table, packet, hash, alt_hash);
    if (action < 0)
        return hand_over(ctx, generation);
    if (wanted)
        capture_sent(ctx, &taken);
    return action;
}

/* Accepts frames of several buffers (jumbo MTU on the interface), as drivers demand it there before they attach anything. */
SEC("xdp.frags")
int glb_director(struct xdp_md *ctx)
{
    void *data = (void *)(long)ctx->data, *data_end = (void *)(long)ctx->data_end;
    const struct glb_generation *generation;
    struct packet packet;
    __u32 zero = 0;
    void *outer;

    if (data + ETHERNET_BYTES > data_end)
        return XDP_PASS;
    outer = bpf_map_lookup_elem(&glb_generations, &zero);
    if (!outer)
        return XDP_PASS;
    generation = bpf_map_lookup_elem(outer, &zero);
    if (!generation)
        return XDP_PASS;
    if (glb_options.accelerate) {
        __be16 ethertype = *(__be16 *)(data + 12);
        enum verdict verdict;

        if (ethertype == bpf_htons(GLB_ETH_P_IP)) {
            verdict = common_ipv4(generation, data, data_end, &packet);
            if (verdict == ENCAPSULATE)
                return forward(ctx, generation, &packet, 1);
            if (verdict == PASS)
                return to_host(ctx, generation);
        } else if (ethertype == bpf_htons(GLB_ETH_P_IPV6)) {
            verdict = common_ipv6(generation, data, data_end, &packet);
            if (verdict == ENCAPSULATE)
                return forward(ctx, generation, &packet, 4);
            if (verdict == PASS)
                return to_host(ctx, generation);
        }
    }
    return classify(ctx, generation, data, data_end) == PASS ? to_host(ctx, generation) : hand_over(ctx, generation);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
