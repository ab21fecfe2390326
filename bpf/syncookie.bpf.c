// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Which segments acknowledge a SYN cookie of a listener here? Asked by the agent's netfilter engine through BPF_PROG_TEST_RUN
 * (proxy_agent/_cookie.pxd), many questions at once; never attached to anything.
 *
 * The frame is an Ethernet header, of no meaning, and up to GLB_COOKIE_QUESTIONS of struct glb_cookie_question. The program's return
 * value is the answer: bit i is set if question i has a valid cookie. It is a program of the traffic control kind because a test run
 * of those can name the interface that the packets came in by, to which listeners may be bound.
 */
#include <linux/bpf.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "glb_protocol.h"
#include "glb_verdicts.h"
#include "ip_headers.h"

#define ETHERNET_BYTES 14
#define STATE_LISTEN 10

/* `length` bytes of the frame at offset `at`, or NULL. Each use asks anew: a call of another function forgets what was proved. */
static __always_inline void *peek(const struct __sk_buff *ctx, __u32 at, __u32 length)
{
    void *data = (void *)(long)ctx->data + at, *data_end = (void *)(long)ctx->data_end;

    return data + length > data_end ? 0 : data;
}

static __always_inline struct bpf_sock *find_listener(struct __sk_buff *ctx, const struct glb_cookie_question *question)
{
    const __u8 *tcp = question->tcp;
    struct bpf_sock_tuple tuple = {};

    if (question->ip[0] >> 4 == 4) {
        const struct ipv4 *ip = (const void *)question->ip;

        tuple.ipv4.saddr = ip->source;
        tuple.ipv4.daddr = ip->destination;
        tuple.ipv4.sport = *(const __be16 *)tcp;
        tuple.ipv4.dport = *(const __be16 *)(tcp + 2);
        return bpf_skc_lookup_tcp(ctx, &tuple, sizeof(tuple.ipv4), BPF_F_CURRENT_NETNS, 0);
    }
    const struct ipv6 *ip = (const void *)question->ip;

#pragma unroll
    for (int i = 0; i < 4; i++) {
        tuple.ipv6.saddr[i] = ip->source[i];
        tuple.ipv6.daddr[i] = ip->destination[i];
    }
    tuple.ipv6.sport = *(const __be16 *)tcp;
    tuple.ipv6.dport = *(const __be16 *)(tcp + 2);
    return bpf_skc_lookup_tcp(ctx, &tuple, sizeof(tuple.ipv6), BPF_F_CURRENT_NETNS, 0);
}

/* Whether the question at offset `at` has a valid cookie. Not static: the verifier looks at it once, not per question. */
__noinline int answers_cookie(struct __sk_buff *ctx, __u32 at)
{
    struct glb_cookie_question *question;
    struct bpf_sock *socket;
    void *ip, *tcp;
    int valid = 0;

    if (at > ETHERNET_BYTES + GLB_COOKIE_QUESTIONS * sizeof(*question))
        return 0;
    question = peek(ctx, at, sizeof(*question));
    if (!question)
        return 0;
    socket = find_listener(ctx, question);
    if (!socket)
        return 0;
    ip = question->ip;
    tcp = question->tcp;
    if (socket->state == STATE_LISTEN) {
        if (question->ip[0] >> 4 == 4) {
            valid = bpf_tcp_check_syncookie(socket, ip, sizeof(struct ipv4), tcp, sizeof(question->tcp)) == 0;
        } else {
            asm volatile("" ::: "memory"); /* clang would make one call of the two, with a length that the verifier cannot follow */
            valid = bpf_tcp_check_syncookie(socket, ip, sizeof(struct ipv6), tcp, sizeof(question->tcp)) == 0;
        }
    }
    bpf_sk_release(socket);
    return valid;
}

SEC("tc")
int glb_syncookie(struct __sk_buff *ctx)
{
    __u32 answers = 0;

    for (__u32 i = 0; i < GLB_COOKIE_QUESTIONS; i++) {
        __u32 at = ETHERNET_BYTES + i * sizeof(struct glb_cookie_question);

        if (!peek(ctx, at, sizeof(struct glb_cookie_question)))
            break;
        answers |= (answers_cookie(ctx, at) & 1) << i;
    }
    return answers;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
