/* The hot leaf of a table build: ranks of backends in rows, LANES of them at once, and the best of them.
 *
 * _simd.h includes this file once per engine, and says what the names stand for; tests/unit/test_table_engines.py holds the
 * engines together.
 */

static TARGET INLINE struct NAME(state) NAME(start_of)(const struct glb_ranked *of)
{
    return NAME(start)(SPLAT(of->k0), SPLAT(of->k1));
}

/* What all messages of a row begin with is compressed once: the row's seed. `rows`: row numbers. */
static TARGET INLINE struct NAME(state) NAME(of_rows)(const struct glb_ranked *of, V rows)
{
    struct NAME(state) s = NAME(start_of)(of);

    NAME(compress)(&s, (REVERSED(rows) >> 32) | SPLAT((uint64_t)4 << 56));
    V seeds = NAME(finish)(s);
    s = NAME(start_of)(of);
    NAME(compress)(&s, seeds);
    return s;
}

static TARGET INLINE V NAME(rank)(struct NAME(state) s, V last_word)
{
    NAME(compress)(&s, last_word);
    return REVERSED(NAME(finish)(s));
}

/* The rank of one backend in every lane's row. */
static TARGET INLINE V NAME(rank_of)(struct NAME(state) s, const struct glb_ranked *of, size_t backend)
{
#if LANES == 1 /* tables with IPv6 backends are not worth lanes: no packet can be sent to one */
    if (of->last_words[backend] == (uint64_t)24 << 56) {
        NAME(compress)(&s, of->ipv6[2 * backend]);
        NAME(compress)(&s, of->ipv6[2 * backend + 1]);
    }
#endif
    return NAME(rank)(s, SPLAT(of->last_words[backend]));
}

static TARGET INLINE V NAME(rows_from)(uint32_t first_row)
{
    uint64_t rows[LANES];

    for (int lane = 0; lane < LANES; lane++)
        rows[lane] = first_row + lane;
    return LOAD(rows);
}

/* ranks[i * LANES + lane]: backend first + i in row first_row + lane. */
static TARGET void NAME(ranks)(const struct glb_ranked *of, uint32_t first_row, size_t first, size_t count,
                               uint64_t *ranks)
{
    struct NAME(state) s = NAME(of_rows)(of, NAME(rows_from)(first_row));

    for (size_t i = 0; i < count; i++)
        STORE(ranks + i * LANES, NAME(rank_of)(s, of, first + i));
}

/* ranks[lane]: backend backends[lane] in row rows[lane]. */
static TARGET void NAME(ranks_each)(const struct glb_ranked *of, const uint32_t *rows, const uint16_t *backends,
                                    uint64_t *ranks)
{
    uint64_t row_words[LANES];

    for (int lane = 0; lane < LANES; lane++)
        row_words[lane] = rows[lane];
    struct NAME(state) s = NAME(of_rows)(of, LOAD(row_words));
#if LANES == 1
    ranks[0] = NAME(rank_of)(s, of, backends[0]);
#else
    uint64_t last_words[LANES];

    for (int lane = 0; lane < LANES; lane++)
        last_words[lane] = of->last_words[backends[lane]];
    STORE(ranks, NAME(rank)(s, LOAD(last_words)));
#endif
}

/* ranks[i]: backend backends[i], or i if that is NULL, in one row; room for LANES - 1 more is needed in `ranks`. */
static TARGET void NAME(ranks_of_row)(const struct glb_ranked *of, uint32_t row, const uint16_t *backends, size_t count,
                                      uint64_t *ranks)
{
    struct NAME(state) s = NAME(of_rows)(of, SPLAT((uint64_t)row));

    for (size_t i = 0; i < count; i += LANES) {
#if LANES == 1
        ranks[i] = NAME(rank_of)(s, of, backends ? backends[i] : i);
#else
        if (backends) {
            uint64_t last_words[LANES] = {0};

            for (size_t lane = 0; lane < LANES && i + lane < count; lane++)
                last_words[lane] = of->last_words[backends[i + lane]];
            STORE(ranks + i, NAME(rank)(s, LOAD(last_words)));
        } else {
            STORE(ranks + i, NAME(rank)(s, LOAD(of->last_words + i)));
        }
#endif
    }
}

/* best[lane * keep + place]: the `keep` (<= GLB_KEPT) backends of lowest rank, in order, in row first_row + lane.
 *
 * Free of branches: each rank goes through a list of the best so far, every place keeping the lower of two. A rank and its
 * backend travel as one key, the backend in place of the rank's last 16 bits; returned is a bit per lane whose ranks differ
 * nowhere else (one row in 2^40 or so, and rows of an address given twice): such rows are to be ordered exactly.
 */
static TARGET uint32_t NAME(best)(const struct glb_ranked *of, uint32_t first_row, size_t keep, uint16_t *best)
{
    struct NAME(state) s = NAME(of_rows)(of, NAME(rows_from)(first_row));
    V keys[GLB_KEPT + 1]; /* one more than is kept, to see whether it is too near */
    uint64_t lanes[GLB_KEPT + 1][LANES];
    uint32_t unsure = 0;

    for (size_t place = 0; place <= GLB_KEPT; place++)
        keys[place] = SPLAT(~(uint64_t)0 ^ BIAS);
    for (size_t i = 0; i < of->count; i++) {
        V key = (NAME(rank_of)(s, of, i) & SPLAT(~(uint64_t)0xffff)) ^ SPLAT(i ^ BIAS);

        if ((LANES == 1 || i >= 256) && !ANY_BELOW(key, keys[GLB_KEPT])) /* rarely below so late: a branch is cheaper */
            continue;
        for (size_t place = 0; place <= GLB_KEPT; place++) {
            V lower = LOWER(keys[place], key);
            key = HIGHER(keys[place], key);
            keys[place] = lower;
        }
    }
    for (size_t place = 0; place <= GLB_KEPT; place++)
        STORE(lanes[place], keys[place] ^ SPLAT(BIAS));
    for (size_t lane = 0; lane < LANES; lane++)
        for (size_t place = 0; place < keep; place++) {
            best[lane * keep + place] = (uint16_t)lanes[place][lane];
            unsure |= (uint32_t)(lanes[place][lane] >> 16 == lanes[place + 1][lane] >> 16) << lane;
        }
    return unsure;
}
