/* The least that AF_XDP forwarding can be: every frame received is sent back with its MAC addresses exchanged.
 *
 * usage: echo INTERFACE OBJECT    OBJECT: echo.bpf.c, compiled. Says "ready" on stdout; runs until killed.
 * Rings, packet memory, batches, wake-ups and send budget are those of glb/_xsk.pyx; queue 0 only.
 */
#include <errno.h>
#include <net/if.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <linux/if_link.h>
#include <xdp/xsk.h>

#ifndef SOL_XDP
#define SOL_XDP 283
#endif
#define XDP_SEND_BUDGET 9 /* XDP_MAX_TX_SKB_BUDGET of newer kernels */

#define CHUNK_BYTES 4096
#define N_CHUNKS 8192
#define RING_ENTRIES 4096
#define BATCH 64
#define KICKS 8
#define POLL_MS 100
#define BUSY_TRIES 40
#define BUSY_WAIT_US 50000

static struct xsk_ring_prod fill, tx;
static struct xsk_ring_cons rx, completion;
static uint64_t free_chunks[N_CHUNKS];
static uint32_t n_free, in_flight;
static uint8_t *area;
static int fd;

static void fail(const char *what, int result)
{
    fprintf(stderr, "echo: %s: %s\n", what, strerror(result < 0 ? -result : errno));
    exit(1);
}

static void reclaim(void)
{
    uint32_t at = 0, n = xsk_ring_cons__peek(&completion, RING_ENTRIES, &at);

    for (uint32_t i = 0; i < n; i++)
        free_chunks[n_free++] = *xsk_ring_cons__comp_addr(&completion, at + i) & ~(uint64_t)(CHUNK_BYTES - 1);
    xsk_ring_cons__release(&completion, n);
    in_flight -= n;
}

static void transmit(void)
{
    for (int i = 0; i < KICKS && in_flight; i++) {
        int result = 0;

        if (xsk_ring_prod__needs_wakeup(&tx))
            result = sendto(fd, 0, 0, MSG_DONTWAIT, 0, 0) < 0 ? errno : 0;
        reclaim();
        if (result != EAGAIN)
            return;
    }
}

static void refill(void)
{
    uint32_t at = 0, n = xsk_prod_nb_free(&fill, BATCH);

    if (n > n_free)
        n = n_free;
    if (!n)
        return;
    xsk_ring_prod__reserve(&fill, n, &at);
    for (uint32_t i = 0; i < n; i++)
        *xsk_ring_prod__fill_addr(&fill, at + i) = free_chunks[--n_free];
    xsk_ring_prod__submit(&fill, n);
    if (xsk_ring_prod__needs_wakeup(&fill))
        recvfrom(fd, 0, 0, MSG_DONTWAIT, 0, 0);
}

static void turn(void)
{
    uint32_t from = 0, to = 0, n = xsk_ring_cons__peek(&rx, BATCH, &from);
    struct pollfd waited = {fd, POLLIN, 0};

    if (!n) {
        transmit();
        refill();
        poll(&waited, 1, in_flight ? 1 : POLL_MS);
        return;
    }
    xsk_ring_prod__reserve(&tx, n, &to);
    for (uint32_t i = 0; i < n; i++) {
        const struct xdp_desc *received = xsk_ring_cons__rx_desc(&rx, from + i);
        uint8_t *frame = area + received->addr, mac[6];

        memcpy(mac, frame, 6);
        memcpy(frame, frame + 6, 6);
        memcpy(frame + 6, mac, 6);
        *xsk_ring_prod__tx_desc(&tx, to + i) = (struct xdp_desc){.addr = received->addr, .len = received->len};
    }
    xsk_ring_cons__release(&rx, n);
    xsk_ring_prod__submit(&tx, n);
    in_flight += n;
    transmit();
    refill();
}

int main(int argc, char **argv)
{
    struct xsk_umem_config memory = {.fill_size = RING_ENTRIES, .comp_size = RING_ENTRIES, .frame_size = CHUNK_BYTES};
    struct xsk_socket_config config = {
        .rx_size = RING_ENTRIES,
        .tx_size = N_CHUNKS,
        .libxdp_flags = XSK_LIBXDP_FLAGS__INHIBIT_PROG_LOAD,
        .bind_flags = XDP_USE_NEED_WAKEUP,
    };
    struct bpf_object *object;
    struct xsk_umem *umem;
    struct xsk_socket *xsk;
    int result, budget = BATCH;

    if (argc != 3) {
        fprintf(stderr, "usage: echo INTERFACE OBJECT\n");
        return 2;
    }
    object = bpf_object__open_file(argv[2], NULL);
    if (!object || bpf_object__load(object))
        fail("loading the eBPF object", 0);
    area = mmap(0, (size_t)N_CHUNKS * CHUNK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (area == MAP_FAILED)
        fail("packet memory", 0);
    result = xsk_umem__create(&umem, area, (uint64_t)N_CHUNKS * CHUNK_BYTES, &fill, &completion, &memory);
    if (result)
        fail("registering the packet memory", result);
    /* The kernel frees a queue some time after the process that had it is gone. */
    for (int i = 0; i < BUSY_TRIES; i++) {
        result = xsk_socket__create(&xsk, argv[1], 0, umem, &rx, &tx, &config);
        if (result != -EBUSY)
            break;
        usleep(BUSY_WAIT_US);
    }
    if (result)
        fail("AF_XDP socket", result);
    fd = xsk_socket__fd(xsk);
    setsockopt(fd, SOL_XDP, XDP_SEND_BUDGET, &budget, sizeof budget);
    for (n_free = 0; n_free < N_CHUNKS; n_free++)
        free_chunks[n_free] = (uint64_t)n_free * CHUNK_BYTES;
    refill();
    result = xsk_socket__update_xskmap(xsk, bpf_object__find_map_fd_by_name(object, "sockets"));
    if (result)
        fail("entering the socket", result);
    result = bpf_xdp_attach(if_nametoindex(argv[1]),
                            bpf_program__fd(bpf_object__find_program_by_name(object, "to_socket")), XDP_FLAGS_DRV_MODE, NULL);
    if (result)
        fail("attaching in native mode", result);
    puts("ready");
    fflush(stdout);
    for (;;)
        turn();
}
