"""A worker's counters: their memory, and the drops of each table; the places of the kernel's."""

from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free

from glb._fastpath cimport GLB_N_VERDICTS, Counters, Packet, Plan, glb_count, glb_generation


cdef inline bint make_counters(Counters* counters, const Plan* plan) noexcept:
    """False: there is no memory for them. `free_counters` in any case."""
    counters.backends = <glb_count*>calloc(max(1, plan.n_backends), sizeof(glb_count))
    counters.drops = <uint64_t*>calloc((plan.n_tables + 1) * GLB_N_VERDICTS, sizeof(uint64_t))
    return counters.backends != NULL and counters.drops != NULL


cdef inline void free_counters(Counters* counters) noexcept:
    free(counters.backends)
    free(counters.drops)


cdef inline void count_drop(const Plan* plan, Counters* counters, const Packet* packet) noexcept nogil:
    """A packet that is dropped where its table is known, or would be: GLB_NO_TABLE if several share its address."""
    counters.drops[min(<uint32_t>packet.table, plan.n_tables) * <uint32_t>GLB_N_VERDICTS + packet.verdict] += 1


cdef inline set_slots(glb_generation* generation, slots):
    """Where the kernel counts for each backend, in the order of all tables' backends."""
    for i, slot in enumerate(slots):
        generation.backends[<uint32_t>i].slot = slot


cdef inline add_drops(dict drops, list names, tuple verdicts, const Counters* counters):
    """Of each table, and of none (""), to `drops`, which has what is wanted: {(table name, verdict): frames}."""
    for row, name in enumerate((*names, "")):
        for i, verdict in enumerate(verdicts):
            if (name, verdict) in drops:
                drops[name, verdict] += counters.drops[<uint32_t>row * <uint32_t>GLB_N_VERDICTS + <uint32_t>i]
