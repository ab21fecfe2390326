/* A table build as one would first write it: for every row hash every backend, keep the two lowest. Scalar, nothing cached. */
#include <time.h>

#include "siphash.h"

/* Fill `rows` (two backend indexes each) from IPv4 addresses; returns the seconds of processor time it took. n_backends >= 2. */
double build_s(const uint8_t seed[16], const uint8_t *addresses, uint32_t n_backends, uint32_t n_rows, uint16_t *rows)
{
    struct timespec began, ended;

    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &began);
    for (uint32_t row = 0; row < n_rows; row++) {
        uint8_t number[4] = {row >> 24, row >> 16, row >> 8, row};
        uint64_t row_seed = siphash24(seed, number, 4);
        uint64_t first_rank = ~0ULL, second_rank = ~0ULL;
        uint16_t first = 0, second = 0;
        uint8_t message[12];

        memcpy(message, &row_seed, 8);
        for (uint32_t i = 0; i < n_backends; i++) {
            uint64_t rank;

            memcpy(message + 8, addresses + 4 * i, 4);
            rank = __builtin_bswap64(siphash24(seed, message, 12));
            if (rank < first_rank) {
                second_rank = first_rank;
                second = first;
                first_rank = rank;
                first = i;
            } else if (rank < second_rank) {
                second_rank = rank;
                second = i;
            }
        }
        rows[2 * row] = first;
        rows[2 * row + 1] = second;
    }
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ended);
    return (ended.tv_sec - began.tv_sec) + (ended.tv_nsec - began.tv_nsec) * 1e-9;
}
