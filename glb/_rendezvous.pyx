"""Rendezvous hashing: the order of backends per row, and the rows that a row rule makes of it (docs/protocol/table.md).

A hash is here the *rank* of a backend in a row: its 8 SipHash output bytes read as a big-endian number; the smallest is
first. With weights, the smallest *score* is (_weights.pxd). The hot leaf is _rendezvous_lanes.h, compiled for several
instruction sets; the row rules are _rowrules.pxd. GLB_SIMD=scalar (or avx2, avx512) in the environment forces one.
"""

from cpython cimport array
from cpython.pythread cimport (
    PyThread_acquire_lock, PyThread_allocate_lock, PyThread_free_lock, PyThread_release_lock, PyThread_type_lock, WAIT_LOCK
)
from libc.stdint cimport uint16_t, uint32_t, uint64_t, uint8_t
from libc.stdlib cimport calloc, free, getenv, malloc, qsort
from libc.string cimport memcpy, memset

import array

from _deep cimport DEEP, Deep, deep_order, keep_deep
from _engines cimport CHUNK, GLB_KEPT, GLB_MAX_LANES, GLB_N_ENGINES, Entry, Room, compare_entries, glb_engine, glb_engines
from _engines cimport glb_engine_runs, glb_ranked, known_of, room_bytes, room_in
from _heads cimport move_in_head, renumber
from _rowrules cimport GLB_BAD, GLB_PROMOTED, LIVE, MAX_HOPS, NEW, NONE, SKIPPED, USABLE
from _rowrules cimport Backends, deciding, row_of
from _siphash cimport SipKey, sip_key, siphash24 as _siphash24
from _weights cimport fill_log2, floor_factor, is_before, score_of, select_best

KIND_SKIPPED, KIND_USABLE, KIND_LIVE, KIND_NEW = SKIPPED, USABLE, LIVE, NEW
KIND_GLB_BAD, KIND_GLB_PROMOTED = GLB_BAD, GLB_PROMOTED
NO_BACKEND = NONE
MAX_KEPT = GLB_KEPT

cdef enum:
    MAX_ROWS = 1 << 20
    MAX_WEIGHT = 100


# ---- engines

ENGINES = tuple(glb_engines[i].name.decode() for i in range(GLB_N_ENGINES) if glb_engine_runs(i))  # fastest first


def _chosen_engine():
    cdef const char* wanted = getenv("GLB_SIMD")
    name = ENGINES[0] if wanted == NULL or not wanted[0] else wanted.decode()
    if name not in ENGINES:
        raise ImportError(f"GLB_SIMD={name}: this machine can do {', '.join(ENGINES)}")
    return name


ENGINE = _chosen_engine()  # what is used unless an Order is told otherwise
fill_log2()


cdef const glb_engine* _engine(name) except NULL:
    cdef int i
    for i in range(GLB_N_ENGINES):
        if glb_engines[i].name.decode() == name and name in ENGINES:
            return &glb_engines[i]
    raise ValueError(f"no engine {name!r}; this machine can do {', '.join(ENGINES)}")


# ---- the order

cdef bytes _all_like_most(bytes weights):
    return bytes([max(set(weights), key=weights.count)]) * len(weights)


cdef class Order:
    """The rendezvous order of a table's rows: the first `keep` backends of each row; the rest is found when needed.

    seed: 16 bytes; addresses: 4 or 16 bytes each, in the table's order; weights: 1 to 100 each, None: all equal;
    keep: at most MAX_KEPT, and at most len(addresses); engine: one of ENGINES. No result depends on the engine.
    """

    cdef readonly Py_ssize_t n_rows
    cdef readonly Py_ssize_t keep
    cdef readonly array.array heads   # uint16, n_rows * keep; NO_BACKEND at the end of a row where it is not known
    cdef readonly bytes weights       # one byte each
    cdef readonly bint weighted       # not all equal
    cdef readonly str engine_name
    cdef bytes _seed
    cdef list _addresses
    cdef const glb_engine* engine
    cdef glb_ranked ranked
    cdef uint64_t* words              # of ranked: last_words, then ipv6
    cdef uint8_t* weight_of
    cdef uint64_t* floors             # floor_factor of each weight
    cdef Deep deep
    cdef PyThread_type_lock lock      # of heads and deep, which grow as they are used

    def __cinit__(self):
        self.lock = PyThread_allocate_lock()
        if self.lock == NULL:
            raise MemoryError

    def __init__(
        self, bytes seed, list addresses, Py_ssize_t n_rows, Py_ssize_t keep, *, weights=None, str engine=ENGINE
    ):
        if not 0 < keep <= min(len(addresses), <Py_ssize_t>GLB_KEPT):
            raise ValueError(f"keep {keep} of {len(addresses)} backends; 1 to {GLB_KEPT}, and no more than there are")
        if not 0 < n_rows <= MAX_ROWS:
            raise ValueError(f"{n_rows} rows; 1 to {MAX_ROWS}")
        self.keep = keep
        self.n_rows = n_rows
        self._take(seed, addresses, engine)
        self._weigh(bytes([1]) * len(addresses) if weights is None else bytes(weights))
        self.heads = array.clone(array.array("H"), n_rows * keep, False)
        self._order_all()

    def __dealloc__(self):
        free(self.words)
        free(self.weight_of)
        free(self.floors)
        free(self.deep.places)
        free(self.deep.orders)
        if self.lock != NULL:
            PyThread_free_lock(self.lock)

    cdef int _take(self, bytes seed, list addresses, str engine) except -1:
        """Seed and addresses as the hash takes them."""
        cdef Py_ssize_t i, count = len(addresses)
        cdef SipKey key = _key(seed)
        cdef bytes address
        cdef uint64_t* ipv6
        if not 0 < count < NONE:
            raise ValueError(f"{count} addresses; 1 to {NONE - 1} can be ordered")
        self._seed = seed
        self._addresses = addresses
        free(self.words)
        self.words = <uint64_t*>calloc(3 * count + GLB_MAX_LANES, sizeof(uint64_t))
        if self.words == NULL:
            raise MemoryError
        ipv6 = self.words + count + GLB_MAX_LANES
        self.ranked = glb_ranked(key.k0, key.k1, count, self.words, NULL)
        for i in range(count):
            address = addresses[i]
            if len(address) == 4:
                memcpy(&self.words[i], <const uint8_t*>address, 4)
                self.words[i] |= <uint64_t>12 << 56  # the message: 8 bytes row seed and these
            elif len(address) == 16:
                memcpy(&ipv6[2 * i], <const uint8_t*>address, 16)
                self.words[i] = <uint64_t>24 << 56
                self.ranked.ipv6 = ipv6
            else:
                raise ValueError(f"an address of {len(address)} bytes; it must have 4 or 16")
        # Only the scalar engine takes IPv6 backends: no packet can be sent to one yet.
        self.engine_name = "scalar" if self.ranked.ipv6 != NULL else engine
        self.engine = _engine(self.engine_name)
        return 0

    cdef int _weigh(self, bytes weights) except -1:
        cdef Py_ssize_t i, count = self.ranked.count
        if len(weights) != count or not all(1 <= weight <= MAX_WEIGHT for weight in weights):
            raise ValueError(f"weights must be {count} numbers from 1 to {MAX_WEIGHT}")
        self.weights = weights
        self.weighted = len(set(weights)) > 1
        free(self.weight_of)
        free(self.floors)
        self.weight_of = <uint8_t*>malloc(count)
        self.floors = <uint64_t*>malloc(count * sizeof(uint64_t))
        if self.weight_of == NULL or self.floors == NULL:
            raise MemoryError
        for i in range(count):
            self._weigh_one(i, weights[i])
        return 0

    cdef void _weigh_one(self, Py_ssize_t backend, uint8_t weight) noexcept nogil:
        self.weight_of[backend] = weight
        self.floors[backend] = floor_factor(weight)

    cdef void order_row(self, Room* room, uint32_t row, Py_ssize_t wanted) noexcept nogil:
        """room.order: the first `wanted` backends of a row's order; at most DEEP of them, or all."""
        cdef Py_ssize_t i, count = self.ranked.count
        cdef const uint8_t* weights = self.weight_of if self.weighted else NULL
        self.engine.ranks_of_row(&self.ranked, row, NULL, count, room.ranks)
        if wanted <= DEEP:
            room.best.filled = 0
            select_best(&room.best, wanted, room.ranks, 1, 0, count, weights, self.floors)
            memcpy(room.order, room.best.backends, wanted * sizeof(uint16_t))
            return
        for i in range(count):
            room.entries[i].rank = room.ranks[i]
            room.entries[i].score = score_of(room.ranks[i], weights[i]) if weights != NULL else room.ranks[i]
            room.entries[i].backend = <uint16_t>i
        qsort(room.entries, count, sizeof(Entry), compare_entries)
        for i in range(count):
            room.order[i] = room.entries[i].backend

    cdef int _order_all(self) except -1:
        """Fill `heads`."""
        cdef bytearray memory = bytearray(room_bytes(self.ranked.count))
        cdef Room room = room_in(memory, self.ranked.count)
        cdef uint32_t row = 0, n_rows = <uint32_t>self.n_rows, lanes = self.engine.lanes, lane, unsure
        cdef Py_ssize_t keep = self.keep
        cdef uint16_t[GLB_MAX_LANES * GLB_KEPT] best
        cdef uint16_t* heads = self.heads.data.as_ushorts
        with nogil:
            while row < n_rows:
                if self.weighted:
                    self._order_lanes_by_score(&room, row, best)
                else:
                    unsure = self.engine.best(&self.ranked, row, keep, best)
                    for lane in range(lanes):
                        if unsure >> lane & 1:
                            self.order_row(&room, row + lane, keep)
                            memcpy(best + lane * keep, room.order, keep * sizeof(uint16_t))
                memcpy(heads + row * keep, best, min(lanes, n_rows - row) * keep * sizeof(uint16_t))
                row += lanes
        return 0

    cdef void _order_lanes_by_score(self, Room* room, uint32_t first_row, uint16_t* best) noexcept nogil:
        """best[lane * keep + place], of as many rows as the engine has lanes."""
        cdef Py_ssize_t first = 0, count = self.ranked.count, here, keep = self.keep
        cdef uint32_t lane, lanes = self.engine.lanes
        for lane in range(lanes):
            room.of_lanes[lane].filled = 0
        while first < count:
            here = min(<Py_ssize_t>CHUNK, count - first)
            self.engine.ranks(&self.ranked, first_row, first, here, room.ranks)
            for lane in range(lanes):
                select_best(
                    &room.of_lanes[lane], keep, room.ranks + lane, lanes, first, here, self.weight_of, self.floors
                )
            first += here
        for lane in range(lanes):
            memcpy(best + lane * keep, room.of_lanes[lane].backends, keep * sizeof(uint16_t))

    # ---- other weights, other backends

    def reweighed(self, weights, *, Py_ssize_t at_most=1):
        """The Order with other weights (None: all equal); None if more than `at_most` differ, so that it is no gain.

        Only the backends that differ are ranked anew. Where one leaves a head, the head gets shorter: what comes next
        in that row is not known, until `derive` needs it.
        """
        cdef Order result = Order.__new__(Order)
        cdef bytes before, after = bytes([1]) * self.ranked.count if weights is None else bytes(weights)
        if len(after) != <Py_ssize_t>self.ranked.count:
            raise ValueError(f"{len(after)} weights of {self.ranked.count} backends")
        # All equal are alike, whatever they equal: what counts is who stands out.
        before = self.weights if self.weighted else _all_like_most(after)
        after = after if len(set(after)) > 1 else _all_like_most(before)
        changed = [i for i in range(len(after)) if before[i] != after[i]]
        if len(changed) > at_most:
            return None
        result.keep = self.keep
        result.n_rows = self.n_rows
        result._take(self._seed, self._addresses, self.engine_name)
        result._weigh(after)
        result.heads = array.copy(self.heads)
        for i in changed:
            result._weigh_one(i, before[i])
        for i in changed:
            result._weigh_one(i, after[i])
            result._move(i)
        return result

    cdef int _move(self, uint16_t moved) except -1:
        """Put one backend, whose weight is another now, to its place in every head."""
        cdef uint32_t lanes = self.engine.lanes, lane, row = 0, n_rows = <uint32_t>self.n_rows
        cdef Py_ssize_t last
        cdef uint16_t* head
        cdef uint16_t[GLB_MAX_LANES] moved_in, last_in
        cdef uint32_t[GLB_MAX_LANES] rows
        cdef uint64_t[GLB_MAX_LANES] ranks, last_ranks
        cdef bint before_last
        with nogil:
            while row < n_rows:
                for lane in range(lanes):
                    rows[lane] = row + lane
                    moved_in[lane] = last_in[lane] = moved
                    if row + lane < n_rows:
                        head = self.heads.data.as_ushorts + (row + lane) * self.keep
                        last = known_of(head, self.keep) - 1
                        if last > 0 and head[last] == moved:
                            last -= 1
                        if last >= 0:
                            last_in[lane] = head[last]
                self.engine.ranks_each(&self.ranked, rows, moved_in, ranks)
                self.engine.ranks_each(&self.ranked, rows, last_in, last_ranks)
                for lane in range(min(lanes, n_rows - row)):
                    before_last = is_before(moved, ranks[lane], last_in[lane], last_ranks[lane], self.weight_of)
                    head = self.heads.data.as_ushorts + (row + lane) * self.keep
                    move_in_head(self.engine, &self.ranked, self.weight_of, row + lane, head, self.keep, moved,
                                 ranks[lane], before_last)
                row += lanes
        return 0

    def with_backends(self, list addresses, *, Py_ssize_t at_most=1):
        """The Order of these backends instead; None if more than `at_most` join or leave, or weights are not all equal.

        None, too, where an address is listed twice, before or after: which of the two it is cannot be told by it. Only those that join are ranked; of others the heads say what they said, where one leaves less.
        """
        cdef Order result = Order.__new__(Order)
        cdef array.array numbers
        places = {address: i for i, address in enumerate(addresses)}
        joined = places.keys() - self._addresses
        changes = len(joined) + len(self._addresses) - (len(places) - len(joined))
        if self.weighted or changes > at_most or self.keep != min(len(places), <Py_ssize_t>GLB_KEPT):
            return None
        if len(places) != len(addresses) or len(set(self._addresses)) != len(self._addresses):
            return None
        result.keep, result.n_rows = self.keep, self.n_rows
        result._take(self._seed, addresses, self.engine_name)
        result._weigh(bytes([1]) * len(addresses))
        result.heads = array.copy(self.heads)
        numbers = array.array("H", [places.get(address, NONE) for address in self._addresses])
        renumber(result.heads.data.as_ushorts, self.n_rows, self.keep, numbers.data.as_ushorts)
        for address in joined:
            result._move(places[address])
        return result

    # ---- what is made of it

    def row(self, row):
        """One row in full -> (row seed as its 8 output bytes, rank per backend, backend indexes in order).

        A rank is the backend's 8 hash bytes as a big-endian number.
        """
        cdef bytearray memory = bytearray(room_bytes(self.ranked.count))
        cdef Room room = room_in(memory, self.ranked.count)
        cdef Py_ssize_t i, count = self.ranked.count
        if not 0 <= row < self.n_rows:
            raise IndexError(f"row {row} of {self.n_rows}")
        self.order_row(&room, row, count)
        ranks = [room.ranks[i] for i in range(count)]
        row_seed = siphash24(self._seed, row.to_bytes(4, "big")).to_bytes(8, "little")
        return row_seed, ranks, [room.order[i] for i in range(count)]

    def derive(self, bytes kinds, Py_ssize_t hops, Py_ssize_t stride, bint glb2, array.array zones=None):
        """The rows that a row rule makes of the order -> array('H') of n_rows * stride, unused entries NO_BACKEND.

        kinds: one byte of KIND_ flags per backend; hops: entries used per row, at most the number of backends that are
        not KIND_SKIPPED; zones: array('H') of a number per backend, 0: none.
        """
        cdef bytearray memory
        cdef Room room
        cdef Py_ssize_t count = self.ranked.count, keep = self.keep, row, i, present = 0
        cdef const uint8_t* kind = <const uint8_t*>kinds
        cdef uint16_t* head = self.heads.data.as_ushorts
        cdef uint16_t* at
        cdef Backends backends
        cdef array.array result, in_zone = None
        if len(kinds) != count:
            raise ValueError(f"{len(kinds)} kinds for {count} backends")
        if zones is not None and (len(zones) != count or zones.itemsize != 2):
            raise ValueError(f"{len(zones)} zones for {count} backends")
        backends = Backends(kind, NULL, NULL, False)
        if zones is not None:
            in_zone = array.array("H", bytes(2 * (max(zones) + 1)))
            backends.zones = zones.data.as_ushorts
            backends.in_zone = in_zone.data.as_ushorts
        for i in range(count):
            present += not kind[i] & SKIPPED
            if (kind[i] & (USABLE | SKIPPED)) == USABLE:
                backends.any_usable = True
                if zones is not None and backends.zones[i]:
                    in_zone.data.as_ushorts[0] += 1
                    in_zone.data.as_ushorts[backends.zones[i]] += 1
        if not 0 <= hops <= min(stride, present, MAX_HOPS, 2 if glb2 else MAX_HOPS):
            raise ValueError(f"{hops} hops of {present} backends, {stride} entries a row")
        result = array.clone(array.array("H"), self.n_rows * stride, False)
        at = result.data.as_ushorts
        memset(at, 0xff, self.n_rows * stride * sizeof(uint16_t))
        if hops == 0:
            return result
        memory = bytearray(room_bytes(count))
        room = room_in(memory, count)
        with nogil:
            PyThread_acquire_lock(self.lock, WAIT_LOCK)
            for row in range(self.n_rows):
                if not row_of(head, known_of(head, keep), &backends, hops, glb2, at):
                    self._derive_deep(&room, <uint32_t>row, &backends, hops, glb2, at)
                head += keep
                at += stride
            PyThread_release_lock(self.lock)
        return result

    cdef void _derive_deep(
        self, Room* room, uint32_t row, const Backends* backends, Py_ssize_t hops, bint glb2, uint16_t* at
    ) noexcept nogil:
        """A row whose hops lie deeper than its head."""
        cdef Py_ssize_t count = self.ranked.count, enough = min(count, <Py_ssize_t>DEEP), i
        cdef const uint16_t* order = deep_order(&self.deep, row)
        if order == NULL:
            self.order_row(room, row, enough)
            order = room.order
            memcpy(self.heads.data.as_ushorts + row * self.keep, order, self.keep * sizeof(uint16_t))
            keep_deep(&self.deep, <uint32_t>self.n_rows, row, order, enough)
        if row_of(order, enough, backends, hops, glb2, at):
            return
        if glb2:
            self.order_row(room, row, count)
            row_of(room.order, count, backends, hops, glb2, at)
            return
        self.engine.ranks_of_row(&self.ranked, row, NULL, count, room.ranks)
        for i in range(count):
            room.scores[i] = score_of(room.ranks[i], self.weight_of[i]) if self.weighted else room.ranks[i]
        row_of(room.order, deciding(room.scores, room.ranks, count, backends, room.order), backends, hops, glb2, at)


# ---- hashes

cdef SipKey _key(bytes key) except *:
    if len(key) != 16:
        raise ValueError(f"a key of {len(key)} bytes; SipHash takes 16")
    return sip_key(<const uint8_t*>key)


def siphash24(bytes key, bytes message):
    """SipHash-2-4 of at most 255 bytes under 16 key bytes, as the algorithm's standard (little-endian) number."""
    if len(message) > 255:
        raise ValueError(f"a message of {len(message)} bytes; at most 255")
    return _siphash24(_key(key), <const uint8_t*>message, len(message))


def score(uint64_t rank, int weight):
    """What backends of a weighted table are ordered by. rank: 64 bits; weight: 1 to 100."""
    if 1 <= weight <= MAX_WEIGHT:
        return score_of(rank, <uint8_t>weight)
    raise ValueError(f"weight {weight}; 1 to {MAX_WEIGHT}")
