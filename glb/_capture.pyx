"""Packet capture: what is wanted, and the two places where packets are taken: a worker (_capture.pxd) and the kernel's program.

Each has a buffer of bounded size; what finds it full is not taken, and counted. Set-up raises DeviceError.
"""

import os
from collections import namedtuple

from libc cimport errno
from libc.stdint cimport UINT64_MAX, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from glb._fastpath cimport BATCH, HEADROOM, CounterBlock, Forwarding
from glb._machine cimport glb_acquire_u64, glb_release_u64

from glb._fastpath import VERDICTS
from glb.errors import DeviceError


cdef extern from "bpf/libbpf.h":
    struct ring_buffer
    ctypedef int (*ring_buffer_sample_fn)(void* context, void* data, size_t size) noexcept
    ring_buffer* ring_buffer__new(int map_fd, ring_buffer_sample_fn called, void* context, const void* opts)
    void ring_buffer__free(ring_buffer* buffer)
    int ring_buffer__consume(ring_buffer* buffer)


cdef extern from *:
    """
    #include <poll.h>
    #define glb_sleep_ms(ms) poll(0, 0, ms)
    """
    int glb_sleep_ms(int ms) nogil


ANY_TABLE = GLB_ANY_TABLE
ENGINES = ("xdp", "cython")
LOST_NO_SOCKET = "no_socket"
MIN_SNAP_BYTES = 64  # whole headers, and more than any link header
MAX_SNAP_BYTES = GLB_CAPTURE_MAX_SNAP

Captured = namedtuple(
    "Captured", "at_ns verdict engine bank table row hash received received_bytes sent sent_bytes", module="glb._capture"
)


cdef object _captured(const glb_captured* taken, const uint8_t* kept):
    """A record as a Captured."""
    follows = (<const char*>kept)[:taken.kept_bytes]
    verdict = LOST_NO_SOCKET if taken.verdict == GLB_LOST_NO_SOCKET else VERDICTS[taken.verdict]
    return Captured(
        taken.at_ns,
        verdict,
        ENGINES[taken.engine],
        taken.bank,
        None if taken.table == GLB_NO_TABLE else taken.table,
        taken.row,
        taken.hash,
        (<const char*>taken.link)[:taken.link_bytes] + follows[taken.ip_at:],
        taken.received_bytes,
        follows[:taken.sent_bytes] if taken.sent_bytes else None,
        taken.sent_bytes,
    )


cdef class Wanted:
    """What is captured, in memory that the kernel's program reads too (`memory.fds`). At first no table is wanted.

    `client`: an ipaddress network, or None for any. `sample`: one packet in so many. `snap_bytes`: kept of a frame.
    `memory`: as of Forwarding.
    """

    cdef glb_capture* capture
    cdef readonly object memory

    def __init__(self, memory, *, client=None, uint32_t sample=1, uint32_t snap_bytes=2048):
        if not MIN_SNAP_BYTES <= snap_bytes <= MAX_SNAP_BYTES or not sample:
            raise ValueError("snap_bytes or sample out of range")
        self.memory = memory("glb_capture", sizeof(glb_capture))
        self.capture = <glb_capture*><size_t>self.memory.address
        self.capture.sample = sample
        self.capture.snap_bytes = snap_bytes
        if client is not None:
            mapped = 96 if client.version == 4 else 0
            address = client.network_address.packed.rjust(16, b"\xff" if mapped else b"\0")
            if mapped:
                address = bytes(10) + address[10:]
            mask = ((1 << 128) - (1 << (128 - mapped - client.prefixlen))).to_bytes(16, "big")
            self.capture.address_bytes = 4 if mapped else 16
            memcpy(self.capture.client, <const uint8_t*><bytes>address, 16)
            memcpy(self.capture.mask, <const uint8_t*><bytes>mask, 16)
        for bank in range(2):
            self.want_table(bank, None)
        self.want_until(UINT64_MAX)

    def want_table(self, int bank, index):
        """From now on, of the generation in this bank: the table at `index`, ANY_TABLE, or none (None)."""
        self.capture.tables[bank & 1] = GLB_NO_TABLE if index is None else index

    def want_until(self, uint64_t at_ns):
        """From CLOCK_MONOTONIC `at_ns` on nothing is wanted. At first: without end."""
        glb_release_u64(&self.capture.until_ns, at_ns)

    @property
    def missed(self):
        """Packets that the kernel's program could not take."""
        return self.capture.missed


cdef class WorkerTap:
    """The ring of one worker, which fills it after `Worker.tap(this.address)`, while `take` empties it."""

    cdef Tap tap
    cdef Wanted wanted

    def __cinit__(self, Wanted wanted not None):
        self.wanted = wanted
        self.tap.wanted = wanted.capture
        self.tap.random = int.from_bytes(os.urandom(8), "little") | 1
        self.tap.ring = <uint8_t*>malloc(TAP_BYTES)
        if self.tap.ring == NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self.tap.ring)

    @property
    def address(self):
        return <size_t>&self.tap

    @property
    def missed(self):
        """Packets that found the ring full."""
        return self.tap.missed

    def take(self, int at_most):
        """Up to so many packets (Captured), in their order."""
        cdef glb_captured taken
        cdef uint64_t head = glb_acquire_u64(&self.tap.head)
        result = []
        while self.tap.tail < head and len(result) < at_most:
            copy = self._copy(self.tap.tail, sizeof(taken))
            memcpy(&taken, <const uint8_t*>copy, sizeof(taken))
            kept = self._copy(self.tap.tail + sizeof(taken), taken.kept_bytes)
            result.append(_captured(&taken, <const uint8_t*>kept))
            glb_release_u64(&self.tap.tail, self.tap.tail + record_bytes(taken.kept_bytes))
        return result

    cdef bytes _copy(self, uint64_t at, uint32_t n):
        cdef uint32_t place = at % TAP_BYTES
        cdef uint32_t first = min(n, TAP_BYTES - place)
        return (<const char*>self.tap.ring + place)[:first] + (<const char*>self.tap.ring)[:n - first]

    def encapsulate(self, Forwarding forwarding not None, CounterBlock counters not None, list frames not None):
        """Take up to BATCH frames (bytes) through the packet path as a worker does, without sending them (tests)."""
        cdef Packet packets[BATCH]
        cdef int n = 0
        buffers = [bytearray(HEADROOM + len(frame)) for frame in frames[:BATCH]]
        for frame, buffer in zip(frames, buffers):
            buffer[HEADROOM:] = frame
            packets[n].frame = <uint8_t*><char*>buffer + HEADROOM
            packets[n].length = len(frame)
            n += 1
        with nogil:
            run_tapped(&self.tap, forwarding.plan, &counters.counters, packets, n)


cdef int _taken(void* context, void* data, size_t size) noexcept:
    """A record in the kernel's buffer; negative: enough for now."""
    cdef KernelTap tap = <KernelTap>context
    tap.packets.append(_captured(<const glb_captured*>data, <const uint8_t*>data + sizeof(glb_captured)))
    return 0 if len(tap.packets) < tap.at_most else -1


cdef class KernelTap:
    """The buffer that a capturing program fills. `map_fd`: its map glb_captured. DeviceError."""

    cdef ring_buffer* buffer
    cdef list packets
    cdef int at_most

    def __init__(self, int map_fd):
        self.packets = []
        self.buffer = ring_buffer__new(map_fd, _taken, <void*>self, NULL)
        if self.buffer == NULL:
            raise DeviceError(f"the buffer of captured packets: {os.strerror(errno.errno)}")

    def take(self, int at_most, int wait_ms):
        """Up to so many packets (Captured), in their order, after `wait_ms` (0: now): the kernel wakes nobody."""
        if wait_ms:
            with nogil:
                glb_sleep_ms(wait_ms)
        self.packets = []
        self.at_most = at_most
        ring_buffer__consume(self.buffer)
        return self.packets

    def __dealloc__(self):
        if self.buffer != NULL:
            ring_buffer__free(self.buffer)
