"""The packet path (its stages: _batch.pxd), and what it forwards by.

Frames come in with HEADROOM free bytes before them and leave as tunnel packets in place. Everything per packet is
`noexcept nogil` and returns a verdict (bpf/glb_layout.h); the set-up below it raises.
"""

from ipaddress import IPv4Address

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

from glb._batch cimport run_stages
from glb._binds cimport IPV4_FAMILY
from glb._counters cimport add_drops, free_counters, make_counters, set_slots
from glb._egress cimport egress_index
from glb._encapsulate cimport start_front, store_next_hop
from glb._flows cimport copy_rows, engine_named
from glb._machine cimport glb_thread_ns
from glb._parse cimport ETHERNET_BYTES
from glb._siphash cimport sip_key
from glb._wire cimport fold_sum, sum_be16, swap16

from glb._rendezvous import ENGINE, ENGINES
from glb.errors import TableError


cdef enum:
    CACHE_LINE = 64  # bytes

DROP_REASONS = ("malformed", "truncated", "fragment", "too_big", "no_next_hop", "no_backend", "stale_bind")
TABLE_DROP_REASONS = ("fragment", "too_big", "no_next_hop", "no_backend")  # the others end before they have a table
VERDICTS = ("forward", "host", *DROP_REASONS)
assert len(VERDICTS) == GLB_N_VERDICTS


cdef void run_batch(const Plan* plan, Counters* counters, Packet* packets, int n) noexcept nogil:
    run_stages(plan, counters, packets, n)


# ---- set-up --------------------------------------------------------------------------------------------------------

cdef class PlainMemory:
    """Zeroed memory of this process alone, where no kernel program reads along (replay, tests)."""

    cdef readonly size_t address

    def __cinit__(self, name, size_t n_bytes, int n=1):
        self.address = <size_t>calloc(n, n_bytes)
        if not self.address:
            raise MemoryError

    def __dealloc__(self):
        free(<void*>self.address)


cdef class CounterBlock:
    """What one worker counted while it forwarded by one Forwarding."""

    def __cinit__(self, Forwarding owner not None):
        self.owner = owner
        if not make_counters(&self.counters, owner.plan):
            raise MemoryError

    def __dealloc__(self):
        free_counters(&self.counters)


cdef class Forwarding:
    """Tables, binds and options in the form the packet path reads; immutable but for next hops.

    `tables`: for each table (name, hash_key, rows, stride, backend addresses, keep_duplicates) with `rows` a buffer
    of uint16 backend indexes, native order, shape (n_rows * stride,), 0xffff where unused, and addresses 4 bytes each
    in wire order. `prefixes`: glb.table.binds.compile_binds of the same tables. `hash_fields`, `alt_hash_fields`:
    HashField bits. `source_mac` None: frames sent take the received frame's destination. `answers_per_s`: packets that
    are too big that each worker answers; None: all. Raises TableError.
    """

    def __cinit__(self, tables, prefixes, *, bytes source_ip not None, uint32_t hash_fields=HASH_SRC_ADDR,
                  uint32_t alt_hash_fields=0, bint forward_echo=True, source_mac=None, answers_per_s=None,
                  memory=None, int bank=0):
        self._names = []
        self._counters = []
        self.bank = bank
        self.plan = <Plan*>calloc(1, sizeof(Plan))
        if self.plan == NULL:
            raise MemoryError
        if len(source_ip) != 4:
            raise ValueError("source_ip is 4 bytes")
        if source_mac is not None and len(source_mac) != 6:
            raise ValueError("source_mac is 6 bytes")
        start_front(self.plan, source_ip, <const uint8_t*><bytes>source_mac if source_mac is not None else NULL)
        self.plan.hash = engine_named(ENGINE, ENGINES).hash
        self.plan.answers_per_s = UNLIMITED if answers_per_s is None else answers_per_s
        self.plan.hash_fields = hash_fields
        self.plan.alt_hash_fields = alt_hash_fields
        memory = memory or PlainMemory
        self.generation_memory = memory("glb_generation", sizeof(glb_generation))
        self.plan.generation = <glb_generation*><size_t>self.generation_memory.address
        self._fill_tables(tables, memory)
        self._fill_binds(prefixes, forward_echo)

    cdef _fill_tables(self, tables, memory):
        cdef Table* table
        cdef glb_table* shared
        cdef glb_backend* backend
        cdef const uint16_t[::1] rows
        cdef uint32_t i, k, n_rows, chunk = 0
        cdef uint32_t n_chunks = sum(_chunks(len(rows) // stride) for _, _, rows, stride, _, _ in tables)
        if len(tables) > GLB_MAX_TABLES:
            raise TableError(f"{len(tables)} tables; at most {GLB_MAX_TABLES} are supported")
        if n_chunks > GLB_BANK_CHUNKS:
            raise TableError(f"the rows of all tables fill {n_chunks} chunks of {GLB_CHUNK_ROWS}; "
                             f"at most {GLB_BANK_CHUNKS} are supported")
        self.rows_memory = memory("glb_rows", GLB_CHUNK_BYTES, max(1, n_chunks))
        self.plan.tables = <Table*>calloc(max(1, len(tables)), sizeof(Table))
        if self.plan.tables == NULL:
            raise MemoryError
        for i, (name, hash_key, rows_buffer, stride, addresses, keep_duplicates) in enumerate(tables):
            rows = rows_buffer
            table = &self.plan.tables[i]
            shared = &self.plan.generation.tables[i]
            n_rows = rows.shape[0] // stride
            if stride not in (2, 4) or n_rows * stride != rows.shape[0] or n_rows & (n_rows - 1) or not n_rows:
                raise TableError(f"table {name}: rows must be a power of two of 2 or 4 entries each")
            for k in range(<uint32_t>rows.shape[0]):
                if rows[k] != GLB_NO_HOP and rows[k] >= <uint32_t>len(addresses):
                    raise TableError(f"table {name}: row {k // stride} names a backend that is not there")
            if self.plan.n_backends + len(addresses) > GLB_MAX_BACKENDS:
                raise TableError(f"more than {GLB_MAX_BACKENDS} backends in all tables together")
            table.hash_key = sip_key(<const uint8_t*><bytes>hash_key)
            table.row_mask = n_rows - 1
            table.stride = stride
            table.keep_duplicates = keep_duplicates
            table.n_backends = len(addresses)
            table.backends = &self.plan.generation.backends[self.plan.n_backends]
            table.rows = <uint16_t*><size_t>(self.rows_memory.address + chunk * GLB_CHUNK_BYTES)
            shared.key0 = table.hash_key.k0
            shared.key1 = table.hash_key.k1
            shared.row_mask = table.row_mask
            shared.stride = stride
            shared.first_chunk = self.bank * GLB_BANK_CHUNKS + chunk
            shared.first_backend = self.plan.n_backends
            shared.n_backends = table.n_backends
            shared.keep_duplicates = keep_duplicates
            copy_rows(table.rows, &rows[0], n_rows, stride)
            chunk += _chunks(n_rows)
            for k, address in enumerate(addresses):
                backend = &table.backends[k]
                backend.next_hop = 0
                memcpy(backend.address, <const uint8_t*><bytes>address, 4)
                backend.header_sum = swap16(fold_sum(sum_be16(backend.address, 4, self.plan.fixed_sum)))
                backend.mtu_bytes = MTU_UNKNOWN
                backend.counter = backend.slot = self.plan.n_backends + k
            self.plan.n_backends += table.n_backends
            self.plan.n_tables = i + 1
            self._names.append((name, tuple(addresses)))
        self.plan.generation.n_tables = self.plan.n_tables

    cdef _fill_binds(self, prefixes, bint forward_echo):
        cdef glb_generation* generation = self.plan.generation
        cdef uint32_t n_segments = 0
        cdef int family
        if len(prefixes) > GLB_MAX_PREFIXES:
            raise TableError(f"{len(prefixes)} distinct bind prefixes; at most {GLB_MAX_PREFIXES} are supported")
        generation.forward_echo = forward_echo
        generation.n_prefixes = len(prefixes)
        for family in range(2):
            of_family = [p for p in prefixes if (p.length >= 96 and p.address >> 32 == 0xffff) == (family == IPV4_FAMILY)]
            lengths = sorted({p.length for p in of_family}, reverse=True)
            for i, length in enumerate([*lengths, 0xff]):
                generation.lengths[family][i] = length
        placed = []
        for prefix in prefixes:
            placed.append((prefix, n_segments))
            if n_segments + len(prefix.segments) > GLB_MAX_SEGMENTS:
                raise TableError(f"more than {GLB_MAX_SEGMENTS} port segments in all binds together")
            for segment in prefix.segments:
                generation.segments[n_segments].first = segment.proto << 16 | segment.port_first
                generation.segments[n_segments].last = segment.proto << 16 | segment.port_last
                generation.segments[n_segments].table = segment.table
                n_segments += 1
        generation.slot_mask = 63
        while generation.slot_mask + 1 < 4 * len(prefixes):
            generation.slot_mask = 2 * generation.slot_mask + 1
        for seed in range(1, 65):
            if self._place(placed, seed):
                return
        # At most a quarter of the slots is used, so one seed failing is rare and 64 failing does not happen.
        raise TableError("no seed places the bind prefixes")

    cdef bint _place(self, list placed, uint64_t seed):
        """Put each prefix into the first free slot of its probe sequence; False if one sequence gets too long."""
        cdef glb_generation* generation = self.plan.generation
        cdef glb_prefix* slot
        cdef uint32_t at
        cdef int probe
        cdef uint64_t high, low
        memset(generation.slots, 0, (generation.slot_mask + 1) * sizeof(glb_prefix))
        generation.seed = seed
        for prefix, first_segment in placed:
            high = prefix.address >> 64
            low = prefix.address & 0xffffffffffffffff
            at = glb_prefix_slot(high, low, prefix.length, seed)
            for probe in range(GLB_MAX_PROBES):
                slot = &generation.slots[(at + probe) & generation.slot_mask]
                if not slot.used:
                    break
            else:
                return False
            slot.used = 1
            slot.high = high
            slot.low = low
            slot.length = prefix.length
            slot.echo_table = prefix.echo_table
            slot.fragment_tables[0] = prefix.fragment_tables[0]
            slot.fragment_tables[1] = prefix.fragment_tables[1]
            slot.first_segment = first_segment
            slot.n_segments = len(prefix.segments)
            for i in range(GLB_NEAR_SEGMENTS):
                if i < len(prefix.segments):
                    slot.near[i] = generation.segments[first_segment + i]
                else:
                    slot.near[i].first = 1  # and last 0: nothing lies between
        return True

    def __dealloc__(self):
        if self.plan != NULL:
            free(self.plan.tables)
            free(self.plan)

    # -- next hops

    def set_next_hop(self, bytes address not None, mac, uint32_t mtu_bytes=MTU_UNKNOWN, egress=None):
        """Send what goes to the backend `address` (4 bytes) by way of `mac` (6 bytes; None: unknown, drop).

        `egress`: None for the interface that packets come in by; for another one (ifindex, source MAC address of 6 bytes,
        whether its driver takes what an XDP program redirects). Raises TableError: more than 255 of them in use.

        Safe while workers forward: MAC address, interface and source MAC address change in one store.
        """
        cdef uint64_t next_hop = 0
        cdef uint32_t i
        if len(address) != 4 or (mac is not None and len(mac) != 6):
            raise ValueError("address is 4 bytes and mac 6")
        if mac is not None:
            memcpy(&next_hop, <const uint8_t*><bytes>mac, 6)
            next_hop |= <uint64_t>1 << GLB_NEXT_HOP_KNOWN_BIT
            if egress is not None:
                i = egress_index(self.plan.generation, self.plan.n_backends, &self._last_egress, egress[0],
                                 <const uint8_t*><bytes>egress[1], egress[2])
                if not i:
                    raise TableError(f"the routes to the backends leave by more than {GLB_MAX_EGRESSES - 1} interfaces")
                next_hop |= <uint64_t>i << GLB_NEXT_HOP_EGRESS_BIT
        store_next_hop(self.plan, <const uint8_t*>address, next_hop, mtu_bytes)

    # -- reading back

    def options(self, *, bint accelerate, uint32_t ifindex):
        """struct glb_options for the kernel's program, as bytes."""
        cdef glb_options options
        memset(&options, 0, sizeof(options))
        options.accelerate = accelerate
        options.hash_fields = self.plan.hash_fields
        options.alt_hash_fields = self.plan.alt_hash_fields
        options.ifindex = ifindex
        memcpy(options.front, self.plan.front, sizeof(options.front))
        return (<const char*>&options)[:sizeof(options)]

    def table_rows(self, uint32_t table):
        """Rows of one table as they are forwarded by: bytes of uint16, native order, shape (n_rows, stride)."""
        if table >= self.plan.n_tables:
            raise IndexError(table)
        cdef Table* t = &self.plan.tables[table]
        cdef uint32_t n_rows = t.row_mask + 1
        if n_rows <= GLB_CHUNK_ROWS:
            return (<const char*>t.rows)[:n_rows * t.stride * 2]
        cdef uint32_t chunk
        parts = []
        for chunk in range(n_rows // GLB_CHUNK_ROWS):
            parts.append((<const char*>t.rows + <size_t>chunk * GLB_CHUNK_BYTES)[:GLB_CHUNK_ROWS * t.stride * 2])
        return b"".join(parts)

    def counter_index(self):
        """[(table name, address text)] of all backends, table by table."""
        return [(name, str(IPv4Address(address))) for name, addresses in self._names for address in addresses]

    def use_slots(self, slots):
        """Which of the kernel's counters are the backends', in the order of `counter_index`; only before it is published."""
        set_slots(self.plan.generation, slots)

    cpdef CounterBlock new_counters(self):
        """Counters for one more worker; they count towards `counts()` from now on."""
        block = CounterBlock(self)
        self._counters.append(block)
        return block

    def counts(self):
        """Sums over all workers: "verdicts": {name: frames}, "tables": {name: (frames, bytes)}, "drops", "backends", "answers".

        `drops` maps (table name, reason) to frames, with "" for those that end before they have a table. `backends` maps (table name, address text) to frames sent to it as primary; `answers` tells what was answered to
        packets that are too big: sent, and limited (not sent because of answers_per_s).
        """
        verdicts = dict.fromkeys(VERDICTS, 0)
        answers = {"sent": 0, "limited": 0}
        tables = [[0, 0] for _ in self._names]
        names = [name for name, _ in self._names]
        drops = {(name, reason): 0 for name in (*names, "") for reason in TABLE_DROP_REASONS}
        backends = {}
        cdef CounterBlock block
        cdef uint32_t i, k
        for block in self._counters:
            for i in range(<uint32_t>GLB_N_VERDICTS):
                verdicts[VERDICTS[i]] += block.counters.verdicts[i]
            answers["sent"] += block.counters.answers_sent
            answers["limited"] += block.counters.answers_limited
            add_drops(drops, names, VERDICTS, &block.counters)
            k = 0
            for i, (name, addresses) in enumerate(self._names):
                for address in addresses:
                    key = (name, str(IPv4Address(address)))
                    backends[key] = backends.get(key, 0) + block.counters.backends[k].packets
                    tables[i][0] += block.counters.backends[k].packets
                    tables[i][1] += block.counters.backends[k].bytes
                    k += 1
        drops |= {("", reason): verdicts[reason] for reason in DROP_REASONS if reason not in TABLE_DROP_REASONS}
        return {"verdicts": verdicts, "tables": dict(zip(names, map(tuple, tables))), "drops": drops, "backends": backends,
                "answers": answers}

    # -- over plain buffers

    def encapsulate(self, list frames not None, CounterBlock counters not None, *, engine=ENGINE):
        """Take frames (bytes) through the packet path: a list of (verdict name, frame sent or None).

        engine: one of glb._rendezvous.ENGINES, which hashes the flows. No result depends on it.
        What is sent is the tunnel packet (`forward`) or the answer to the sender (`too_big`).
        Each frame is copied into a buffer of exactly its size, so that a sanitizer build sees every read beyond it.
        """
        cdef Packet packets[BATCH]
        cdef uint8_t* buffers[BATCH]
        cdef int n, i
        cdef bytes frame
        cdef Plan plan = self._plan_by(engine)
        results = []
        for start in range(0, len(frames), BATCH):
            batch = frames[start:start + BATCH]
            n = 0
            try:
                for frame in batch:
                    buffers[n] = <uint8_t*>malloc(HEADROOM + len(frame))
                    if buffers[n] == NULL:
                        raise MemoryError
                    n += 1
                    packets[n - 1].frame = buffers[n - 1] + HEADROOM
                    packets[n - 1].length = len(frame)
                    memcpy(packets[n - 1].frame, <const uint8_t*>frame, len(frame))
                with nogil:
                    run_batch(&plan, &counters.counters, packets, n)
                for i in range(n):
                    sent = None
                    if packets[i].sends:
                        sent = (<const char*>packets[i].frame)[:packets[i].length]
                    results.append((VERDICTS[packets[i].verdict], sent))
            finally:
                for i in range(n):
                    free(buffers[i])
        return results

    cdef Plan _plan_by(self, engine) except *:
        cdef Plan plan = self.plan[0]
        plan.hash = engine_named(engine, ENGINES).hash
        return plan

    def measure_ns(self, list frames not None, int rounds, *, engine=ENGINE):
        """Nanoseconds of this thread's processor time that a frame takes through the packet path, frames of 2 KiB apart in memory (bench/).

        Writing back the Ethernet header that encapsulation overwrote is included (14 bytes a frame).
        """
        cdef CounterBlock counters = CounterBlock(self)
        cdef int n = len(frames), i, k, r
        cdef size_t spacing = 2048
        cdef uint8_t* allocated = <uint8_t*>malloc(n * spacing + CACHE_LINE)
        cdef uint8_t* memory = allocated + -<size_t>allocated % CACHE_LINE  # frames begin with a line, as in a UMEM
        cdef uint8_t* headers = <uint8_t*>malloc(n * ETHERNET_BYTES)
        cdef uint32_t* lengths = <uint32_t*>malloc(n * sizeof(uint32_t))
        cdef Packet packets[BATCH]
        cdef uint64_t began, forwarded
        cdef Plan plan = self._plan_by(engine)
        if allocated == NULL or headers == NULL or lengths == NULL:
            free(allocated); free(headers); free(lengths)
            raise MemoryError
        for i in range(n):
            frame = <bytes>frames[i]
            lengths[i] = len(frame)
            memcpy(memory + i * spacing + HEADROOM, <const uint8_t*><bytes>frame, lengths[i])
            memcpy(headers + i * ETHERNET_BYTES, <const uint8_t*><bytes>frame, ETHERNET_BYTES)
        with nogil:
            began = glb_thread_ns()
            for r in range(rounds):
                i = 0
                while i + BATCH <= n:
                    for k in range(BATCH):
                        packets[k].frame = memory + (i + k) * spacing + HEADROOM
                        packets[k].length = lengths[i + k]
                        memcpy(packets[k].frame, headers + (i + k) * ETHERNET_BYTES, ETHERNET_BYTES)
                    run_batch(&plan, &counters.counters, packets, BATCH)
                    i += BATCH
            began = glb_thread_ns() - began
        free(allocated); free(headers); free(lengths)
        forwarded = counters.counters.verdicts[GLB_FORWARD]
        return <double>began / <double>forwarded if forwarded else float("nan")


def _chunks(n_rows):
    return (n_rows + GLB_CHUNK_ROWS - 1) // GLB_CHUNK_ROWS
