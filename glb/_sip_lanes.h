/* SipHash-2-4 of LANES messages at once. _simd.h includes this file once per engine, and says what the names stand for. */

struct NAME(state) {
    V v0, v1, v2, v3;
};

static TARGET INLINE void NAME(round)(struct NAME(state) *s)
{
    s->v0 += s->v1;
    s->v2 += s->v3;
    s->v1 = ROTL(s->v1, 13) ^ s->v0;
    s->v3 = ROTL(s->v3, 16) ^ s->v2;
    s->v0 = ROTL(s->v0, 32) + s->v3;
    s->v2 += s->v1;
    s->v3 = ROTL(s->v3, 21) ^ s->v0;
    s->v1 = ROTL(s->v1, 17) ^ s->v2;
    s->v2 = ROTL(s->v2, 32);
}

static TARGET INLINE void NAME(compress)(struct NAME(state) *s, V word)
{
    s->v3 ^= word;
    NAME(round)(s);
    NAME(round)(s);
    s->v0 ^= word;
}

/* The hash as the algorithm's standard little-endian number. */
static TARGET INLINE V NAME(finish)(struct NAME(state) s)
{
    s.v2 ^= SPLAT(0xff);
    NAME(round)(&s);
    NAME(round)(&s);
    NAME(round)(&s);
    NAME(round)(&s);
    return s.v0 ^ s.v1 ^ s.v2 ^ s.v3;
}

static TARGET INLINE struct NAME(state) NAME(start)(V k0, V k1)
{
    struct NAME(state) s = {
        k0 ^ SPLAT(0x736f6d6570736575), k1 ^ SPLAT(0x646f72616e646f6d),
        k0 ^ SPLAT(0x6c7967656e657261), k1 ^ SPLAT(0x7465646279746573),
    };
    return s;
}
