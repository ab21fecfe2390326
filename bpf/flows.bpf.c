// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Lists live TCP flows from the kernel's table of connected sockets, a slice of its buckets per call (BPF_PROG_TEST_RUN).
 *
 * inet_diag and the kernel's own iterator lock each bucket and socket, 1 to 2 us a socket. This reads the table as the receive path
 * does, without a lock: a socket that moves to another chain meanwhile is noticed by the number at the chain's end, and the
 * bucket is read again. Nothing waits for it, and a slice takes well below a millisecond. All reads are checked by the kernel
 * (bpf_probe_read_kernel), and where a field lies is taken from the BTF of the kernel that loads the program.
 */
#include <linux/bpf.h>
#include <linux/types.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>

#include "glb_flows.h"

#define NULL ((void *)0)
#define AF_INET 2
#define FIN_WAIT2 5
#define MAX_CHAIN 65536
#define ATTEMPTS 64 /* to read one chain; two in a row that fail are rare */
#define GROUP 8 /* buckets that are read at once: a cache line of heads */
#define COMMON_BYTES 160 /* room for struct sock_common, which has 136 bytes in Linux 5.17 to 6.18 */

/* Of the kernel's types only what is read here. */
#define OF_KERNEL __attribute__((preserve_access_index))

struct ns_common {
    unsigned int inum;
} OF_KERNEL;

struct inet_ehash_bucket {
    void *first; /* struct hlist_nulls_head; its end is an odd number, 1 + 2 * bucket */
};

struct inet_hashinfo {
    struct inet_ehash_bucket *ehash;
    unsigned int ehash_mask;
} OF_KERNEL;

struct inet_timewait_death_row {
    struct inet_hashinfo *hashinfo;
} OF_KERNEL;

struct netns_ipv4 {
    struct inet_timewait_death_row tcp_death_row;
} OF_KERNEL;

struct net {
    struct ns_common ns;
    struct netns_ipv4 ipv4;
} OF_KERNEL;

struct nsproxy {
    struct net *net_ns;
} OF_KERNEL;

struct task_struct {
    struct nsproxy *nsproxy;
} OF_KERNEL;

struct in6_addr {
    __u64 halves[2];
};

struct hlist_nulls_node {
    void *next;
};

typedef struct {
    struct net *net;
} possible_net_t;

struct sock_common {
    __be32 skc_rcv_saddr; /* local address */
    __u16 skc_num;        /* local port, host order */
    unsigned short skc_family;
    unsigned char skc_state;
    possible_net_t skc_net;
    struct in6_addr skc_v6_rcv_saddr;
    struct hlist_nulls_node skc_nulls_node;
} OF_KERNEL;

struct sock {
    void *sk_socket;
} OF_KERNEL;

struct glb_walk glb_walk;

/* Where the walk is. Not on the stack: the verifier would follow every value that a counter there can have. */
static struct {
    struct inet_ehash_bucket *table;
    struct net *net; /* of the last socket */
    __u64 node;      /* address of the next socket's node, or the end of the chain */
    __u32 counts;    /* whether sockets of `net` do */
    __u32 bucket;
    __u32 n_sockets;
    __u32 n_before; /* n_sockets before this bucket */
} walk;

/* The offset goes into a register of its own: clang would fold it into a load that libbpf cannot relocate. */
#define OFFSET(field)                                                      \
    ({                                                                     \
        unsigned long offset = bpf_core_field_offset(struct sock_common, field); \
        asm volatile("" : "+r"(offset));                                   \
        offset;                                                            \
    })
#define FIELD(type, common, field) (*(type *)((common) + OFFSET(field)))

static int in_namespaces(struct net *net)
{
    unsigned int inode = BPF_CORE_READ(net, ns.inum);
    for (int i = 0; i < GLB_WALK_NAMESPACES; i++)
        if (i < glb_walk.n_namespaces && glb_walk.namespaces[i] == inode)
            return 1;
    return 0;
}

/* One socket of a chain; 1 at its end. */
static long visit(__u32 index, void *nothing)
{
    char common[COMMON_BYTES] __attribute__((aligned(8)));
    __u32 size = bpf_core_type_size(struct sock_common);
    if (walk.node & 1 || size > COMMON_BYTES) /* the second for the verifier: glb_list_flows has looked */
        return 1;
    __u64 socket = walk.node - OFFSET(skc_nulls_node);
    /* One read of all: the cache misses of several sockets overlap only where little lies between them. */
    if (bpf_probe_read_kernel(common, size, (void *)socket)) {
        walk.node = 0; /* no longer a socket: not the end that was expected */
        return 1;
    }
    walk.node = FIELD(__u64, common, skc_nulls_node);
    __u8 state = FIELD(__u8, common, skc_state);
    if (!(GLB_LIVE_STATES & 1 << (state & 31)))
        return 0;
    if (state == FIN_WAIT2 && !BPF_CORE_READ((struct sock *)socket, sk_socket))
        return 0; /* no process can read what still comes */
    struct net *net = FIELD(struct net *, common, skc_net);
    if (net != walk.net) {
        walk.net = net;
        walk.counts = in_namespaces(net);
    }
    if (!walk.counts)
        return 0;
    __u32 at = walk.n_sockets++;
    if (at < GLB_WALK_SOCKETS) {
        struct glb_socket *found = &glb_walk.sockets[at];
        found->port = FIELD(__u16, common, skc_num);
        if (FIELD(__u16, common, skc_family) == AF_INET) {
            found->family = 4;
            *(__u32 *)found->local = FIELD(__u32, common, skc_rcv_saddr);
        } else {
            found->family = 6;
            struct in6_addr local = FIELD(struct in6_addr, common, skc_v6_rcv_saddr);
            __builtin_memcpy(found->local, &local, sizeof local);
        }
    }
    return 0;
}

/* One attempt to read the chain of a bucket whole; 1 when it has come to its end. */
static long visit_chain(__u32 attempt, void *nothing)
{
    walk.n_sockets = walk.n_before;
    bpf_loop(MAX_CHAIN, visit, NULL, 0);
    if (walk.node == 1 + 2 * (__u64)walk.bucket)
        return 1;
    /* A socket went to another chain under our feet: again. */
    bpf_probe_read_kernel(&walk.node, sizeof walk.node, &walk.table[walk.bucket]);
    return 0;
}

/* The chains of a group of buckets; 1 when there is no room for more. */
static long visit_group(__u32 index, void *nothing)
{
    __u64 heads[GROUP];
    __u32 first = glb_walk.bucket;
    __u32 before = walk.n_sockets;
    if (bpf_probe_read_kernel(heads, sizeof heads, &walk.table[first]))
        return 1;
    for (int i = 0; i < GROUP; i++) {
        if (heads[i] & 1)
            continue;
        walk.node = heads[i];
        walk.bucket = first + i;
        walk.n_before = walk.n_sockets;
        bpf_loop(ATTEMPTS, visit_chain, NULL, 0);
    }
    if (walk.n_sockets > GLB_WALK_SOCKETS) {
        walk.n_sockets = before;
        return 1;
    }
    glb_walk.bucket = first + GROUP;
    return 0;
}

SEC("raw_tp")
int glb_list_flows(void *ctx)
{
    struct task_struct *task = (void *)bpf_get_current_task();
    struct inet_hashinfo *hashes = BPF_CORE_READ(task, nsproxy, net_ns, ipv4.tcp_death_row.hashinfo);
    __u32 size = BPF_CORE_READ(hashes, ehash_mask) + 1; /* a power of two, 16 or more */
    __u32 first = glb_walk.bucket;
    glb_walk.n_sockets = 0;
    if (bpf_core_type_size(struct sock_common) > COMMON_BYTES) {
        glb_walk.table_size = 0;
        return 0;
    }
    glb_walk.table_size = size;
    walk.table = BPF_CORE_READ(hashes, ehash);
    walk.net = NULL;
    walk.n_sockets = 0;
    if (first >= size || first % GROUP)
        return 0;
    __u32 groups = (size - first) / GROUP;
    if (groups > glb_walk.n_buckets / GROUP)
        groups = glb_walk.n_buckets / GROUP;
    bpf_loop(groups, visit_group, NULL, 0);
    glb_walk.n_sockets = walk.n_sockets;
    return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
