/* The end of an engine in _simd.h: its names are free for the next one. (No include guard: it is included once for each.) */
#undef LANES
#undef NAME
#undef TARGET
#undef V
#undef SPLAT
#undef LOAD
#undef STORE
#undef ROTL
#undef REVERSED
#undef LOWER
#undef HIGHER
#undef ANY_BELOW
#undef BIAS
