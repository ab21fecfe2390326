"""Packet capture: what is wanted, and the two places where packets are taken: a worker (_capture.pxd) and the kernel's program.

Each has a buffer of bounded size; what finds it full is not taken, and counted. Set-up raises DeviceError.
"""

import os
from collections import namedtuple

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

from glb._fastpath cimport BATCH, HEADROOM, CounterBlock, Forwarding

from glb._fastpath import VERDICTS
from glb.errors import DeviceError


cdef extern from "bpf/libbpf.h" nogil:
    struct perf_buffer
    struct perf_event_header:
        uint32_t type
        uint16_t misc
        uint16_t size
    struct perf_event_attr:
        uint32_t type
        uint32_t size
        uint64_t config
        uint64_t sample_period
        uint64_t sample_type
        uint32_t watermark
        uint32_t wakeup_watermark
    enum:
        PERF_TYPE_SOFTWARE
        PERF_COUNT_SW_BPF_OUTPUT
        PERF_SAMPLE_RAW
        PERF_RECORD_SAMPLE
        LIBBPF_PERF_EVENT_DONE
        LIBBPF_PERF_EVENT_CONT
    void perf_buffer__free(perf_buffer* buffer)
    int perf_buffer__epoll_fd(const perf_buffer* buffer)


cdef extern from "bpf/libbpf.h":  # calls back, with the GIL held
    ctypedef int (*perf_buffer_event_fn)(void* context, int cpu, perf_event_header* event) noexcept
    perf_buffer* perf_buffer__new_raw(int map_fd, size_t n_pages, perf_event_attr* attributes, perf_buffer_event_fn called,
                                      void* context, const void* opts)
    int perf_buffer__consume(perf_buffer* buffer)


cdef extern from *:
    """
    #include <linux/perf_event.h>
    #include <poll.h>
    #include <unistd.h>
    static int glb_wait_readable(int fd, int timeout_ms)
    {
        struct pollfd waited = {fd, POLLIN, 0};
        return poll(&waited, 1, timeout_ms);
    }
    """
    int glb_wait_readable(int fd, int timeout_ms) nogil
    int close(int fd) nogil


ANY_TABLE = GLB_ANY_TABLE
ENGINES = ("xdp", "cython")
LOST_NO_SOCKET = "no_socket"
MIN_SNAP_BYTES = 64  # whole headers, and more than any link header
MAX_SNAP_BYTES = 16384  # a perf event holds less than 64 KiB
_KERNEL_BYTES = 1 << 20  # of the kernel's buffer, for each processor

Captured = namedtuple(
    "Captured", "at_ns verdict engine bank table row hash received received_bytes sent sent_bytes link_bytes", module="glb._capture"
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
        taken.link_bytes,
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

    def want_table(self, int bank, index):
        """From now on, of the generation in this bank: the table at `index`, ANY_TABLE, or none (None)."""
        self.capture.tables[bank & 1] = GLB_NO_TABLE if index is None else index

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


cdef int _taken(void* context, int cpu, perf_event_header* event) noexcept:
    """An event of the kernel's buffer: header, u32 size, record."""
    cdef KernelTap tap = <KernelTap>context
    cdef const uint8_t* data = <const uint8_t*>event + sizeof(perf_event_header) + sizeof(uint32_t)
    cdef glb_captured taken
    if event.type == PERF_RECORD_SAMPLE:
        memcpy(&taken, data, sizeof(taken))
        tap.packets.append(_captured(&taken, data + sizeof(taken)))
    return LIBBPF_PERF_EVENT_CONT if len(tap.packets) < tap.at_most else LIBBPF_PERF_EVENT_DONE


cdef class KernelTap:
    """The buffers, one for each processor, that a capturing program fills. `map_fd`: its map glb_captured. DeviceError."""

    cdef perf_buffer* buffer
    cdef list packets
    cdef int at_most
    cdef int map_fd

    def __cinit__(self, int map_fd):
        # Of its own: at the end libbpf removes entries by this number, which must not have become another map's.
        self.map_fd = os.dup(map_fd)

    def __init__(self, int map_fd):
        cdef perf_event_attr attributes
        memset(&attributes, 0, sizeof(attributes))
        attributes.size = sizeof(attributes)
        attributes.type = PERF_TYPE_SOFTWARE
        attributes.config = PERF_COUNT_SW_BPF_OUTPUT
        attributes.sample_type = PERF_SAMPLE_RAW
        attributes.sample_period = 1
        # The reader looks by itself every few milliseconds; to wake it costs the program more than the packet.
        attributes.watermark = 1
        attributes.wakeup_watermark = _KERNEL_BYTES // 2
        self.packets = []
        self.buffer = perf_buffer__new_raw(self.map_fd, _KERNEL_BYTES // os.sysconf("SC_PAGESIZE"), &attributes, _taken,
                                           <void*>self, NULL)
        if self.buffer == NULL:
            raise DeviceError("buffers for captured packets (perf events): refused; run as root or with CAP_PERFMON, and "
                              "raise the locked-memory limit (ulimit -l, LimitMEMLOCK=) or kernel.perf_event_mlock_kb")

    def take(self, int at_most, int wait_ms):
        """About so many packets (Captured; one more for each processor), after at most `wait_ms`; each processor's in order."""
        cdef int fd = perf_buffer__epoll_fd(self.buffer)
        with nogil:
            glb_wait_readable(fd, wait_ms)
        self.packets = []
        self.at_most = at_most
        perf_buffer__consume(self.buffer)
        return self.packets

    def __dealloc__(self):
        if self.buffer != NULL:
            perf_buffer__free(self.buffer)
        close(self.map_fd)  # not os.close: that module may be gone when the interpreter ends
