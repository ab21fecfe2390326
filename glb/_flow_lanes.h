/* The hot leaf of the packet path: flow hashes of a batch, LANES of them at once.
 *
 * _simd.h includes this file once per engine, and says what the names stand for; tests/unit/test_flow_hash.py holds the engines
 * together.
 *
 * hashes[i]: SipHash-2-4 of words[0][i], words[1][i] ... under the key k0[i], k1[i]. All arrays have room for whole groups of
 * GLB_MAX_LANES; what lies beyond `count` is hashed along, whatever it is.
 */
static TARGET INLINE void NAME(hash_words)(const struct glb_flows *flows, uint32_t n_words, uint64_t *hashes)
{
    for (size_t i = 0; i < flows->count; i += LANES) {
        struct NAME(state) s = NAME(start)(LOAD(flows->k0 + i), LOAD(flows->k1 + i));

        for (uint32_t word = 0; word < n_words; word++)
            NAME(compress)(&s, LOAD(flows->words[word] + i));
        STORE(hashes + i, NAME(finish)(s));
    }
}

static TARGET void NAME(hash)(const struct glb_flows *flows, uint64_t *hashes)
{
    if (flows->n_words == 1) /* IPv4 source addresses, the most common */
        NAME(hash_words)(flows, 1, hashes);
    else if (flows->n_words == 3) /* IPv6 */
        NAME(hash_words)(flows, 3, hashes);
    else
        NAME(hash_words)(flows, flows->n_words, hashes);
}
