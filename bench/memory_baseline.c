/* The least an encapsulation can be: hash the source address, load the row, write 54 bytes. One packet at a time.
 *
 * It trusts the frame: no parsing, no bind look-up, no length, MTU or next-hop check, no counters. What it writes is what
 * the packet path writes for the same frame (bench/memory.py checks that before it measures).
 */
#include <stdlib.h>
#include <time.h>

#include "siphash.h"

#define ETHERNET_BYTES 14
#define FRONT_BYTES 54 /* Ethernet, IPv4, UDP, GUE, private data, one further hop */
#define GROWTH_BYTES (FRONT_BYTES - ETHERNET_BYTES)
#define HEADROOM 128 /* as glb/_fastpath.pyx lays frames out in measure_ns */
#define SPACING 2048

struct plan {
    uint8_t hash_key[16];
    uint8_t front[56];         /* what all fronts share */
    const uint16_t *rows;      /* two backend indexes each */
    const uint8_t *addresses;  /* four bytes per backend */
    uint32_t row_mask;
    uint32_t is_ipv6;
};

static inline uint16_t load_be16(const uint8_t *at) { return (uint16_t)(at[0] << 8 | at[1]); }

static inline void store_be16(uint8_t *at, uint16_t value)
{
    at[0] = value >> 8;
    at[1] = (uint8_t)value;
}

static inline __attribute__((always_inline)) void put_front(const struct plan *plan, uint8_t *frame, int is_ipv6)
{
    const uint8_t *ip = frame + ETHERNET_BYTES;
    uint64_t hash = is_ipv6 ? siphash24(plan->hash_key, ip + 8, 16) : siphash24(plan->hash_key, ip + 12, 4);
    const uint16_t *row = plan->rows + 2 * (hash & plan->row_mask);
    const uint8_t *primary = plan->addresses + 4 * row[0], *second = plan->addresses + 4 * row[1];
    uint16_t length = GROWTH_BYTES + (is_ipv6 ? load_be16(ip + 4) + 40 : load_be16(ip + 2));
    uint16_t port = load_be16(ip + (is_ipv6 ? 40 : 20));
    uint8_t *front = frame - GROWTH_BYTES, *outer = front + ETHERNET_BYTES;
    uint32_t sum = length;

    memcpy(front, plan->front, FRONT_BYTES);
    memcpy(outer + 16, primary, 4);
    store_be16(outer + 2, length);
    for (int at = 0; at < 20; at += 2) /* bytes 2 and 10 of the shared front are zero, `sum` began with the length */
        sum += load_be16(plan->front + ETHERNET_BYTES + at);
    sum += load_be16(primary) + load_be16(primary + 2);
    sum = (sum & 0xffff) + (sum >> 16);
    sum += sum >> 16;
    store_be16(outer + 10, (uint16_t)~sum);
    store_be16(outer + 20, 0x8000 | (((uint16_t)hash ^ port) & 0x7fff));
    store_be16(outer + 24, length - 20);
    memcpy(outer + 36, second, 4);
}

/* The frame and HEADROOM bytes before it are at `frame`; afterwards the front begins GROWTH_BYTES before it. */
void encapsulate(const struct plan *plan, uint8_t *frame) { put_front(plan, frame, plan->is_ipv6); }

static inline __attribute__((always_inline)) double loop_ns(const struct plan *plan, uint8_t *memory, const uint8_t *headers,
                                                            int n, int rounds, int is_ipv6)
{
    struct timespec began, ended;

    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &began);
    for (int round = 0; round < rounds; round++) {
        for (int i = 0; i < n; i++) {
            uint8_t *frame = memory + (size_t)i * SPACING + HEADROOM;

            memcpy(frame, headers + i * ETHERNET_BYTES, ETHERNET_BYTES); /* the round before overwrote it */
            put_front(plan, frame, is_ipv6);
        }
    }
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ended);
    return ((ended.tv_sec - began.tv_sec) * 1e9 + (ended.tv_nsec - began.tv_nsec)) / ((double)n * rounds);
}

/* Nanoseconds a frame: `n` frames of `length` bytes, one after the other in `frames`, taken `rounds` times. < 0: no memory. */
double measure_ns(const struct plan *plan, const uint8_t *frames, int length, int n, int rounds)
{
    uint8_t *memory = aligned_alloc(64, (size_t)n * SPACING), *headers = malloc((size_t)n * ETHERNET_BYTES);
    double result = -1;

    if (memory && headers) {
        for (int i = 0; i < n; i++) {
            memcpy(memory + (size_t)i * SPACING + HEADROOM, frames + (size_t)i * length, length);
            memcpy(headers + i * ETHERNET_BYTES, frames + (size_t)i * length, ETHERNET_BYTES);
        }
        result = plan->is_ipv6 ? loop_ns(plan, memory, headers, n, rounds, 1) : loop_ns(plan, memory, headers, n, rounds, 0);
    }
    free(memory);
    free(headers);
    return result;
}
