"""One AF_XDP socket and the worker that takes its frames through the packet path (libxdp's rings, copy or zero-copy).

A chunk of packet memory is always in exactly one place: the free list, the fill ring, the receive ring, the worker's
batch, the transmit ring or the completion ring. The transmit ring has room for all of them, so it never overflows;
when sending falls behind, the fill ring runs dry and the kernel counts what it could not deliver.
"""

import errno
import os
import threading

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from glb._capture cimport Tap, run_tapped
from glb._egress cimport GLB_EGRESS_FRAMES, glb_depart, glb_departures, glb_open_egress, glb_send_departures
from glb._fastpath cimport BATCH, GLB_DROP_STALE_BIND, GLB_HOST, CounterBlock, Counters, Forwarding, Packet, Plan
from glb._xdp_rings cimport (
    XDP_OPTIONS, XDP_OPTIONS_ZEROCOPY, XDP_STATISTICS, XDP_USE_NEED_WAKEUP, XSK_LIBXDP_FLAGS__INHIBIT_PROG_LOAD,
    xdp_desc, xdp_options, xdp_statistics, xsk_prod_nb_free, xsk_ring_cons, xsk_ring_cons__comp_addr,
    xsk_ring_cons__peek, xsk_ring_cons__release, xsk_ring_cons__rx_desc, xsk_ring_prod, xsk_ring_prod__fill_addr,
    xsk_ring_prod__needs_wakeup, xsk_ring_prod__reserve, xsk_ring_prod__submit, xsk_ring_prod__tx_desc, xsk_socket,
    xsk_socket__create, xsk_socket__delete, xsk_socket__fd, xsk_socket__update_xskmap, xsk_socket_config, xsk_umem,
    xsk_umem__create, xsk_umem__delete, xsk_umem_config,
)

from glb.errors import DeviceError


cdef extern from *:
    """
    #include <errno.h>
    #include <poll.h>
    #include <sys/eventfd.h>
    #include <sys/mman.h>
    #include <sys/socket.h>
    #include <unistd.h>

    #ifndef SOL_XDP
    #define SOL_XDP 283
    #endif
    #ifndef SO_PREFER_BUSY_POLL
    #define SO_PREFER_BUSY_POLL 69
    #define SO_BUSY_POLL_BUDGET 70
    #endif
    #define GLB_XDP_MAX_TX_SKB_BUDGET 9 /* newer kernels: packets one sendto may send in copy mode; 32 without it */

    static inline void *glb_load_pointer(void **at) { return __atomic_load_n(at, __ATOMIC_SEQ_CST); }
    static inline void glb_store_pointer(void **at, void *value) { __atomic_store_n(at, value, __ATOMIC_SEQ_CST); }
    static inline unsigned long long glb_load_u64(unsigned long long *at) { return __atomic_load_n(at, __ATOMIC_SEQ_CST); }
    static inline void glb_bump_u64(unsigned long long *at) { __atomic_fetch_add(at, 1, __ATOMIC_SEQ_CST); }

    /* 0, or the errno: EAGAIN and EBUSY mean "more to send", ENOBUFS that the device is behind. */
    static inline int glb_kick(int fd) { return sendto(fd, 0, 0, MSG_DONTWAIT, 0, 0) < 0 ? errno : 0; }
    static inline void glb_wake_receive(int fd) { recvfrom(fd, 0, 0, MSG_DONTWAIT, 0, 0); }
    static inline int glb_wait(int socket, int event, int timeout_ms)
    {
        struct pollfd fds[2] = {{socket, POLLIN, 0}, {event, POLLIN, 0}};
        int n = poll(fds, 2, timeout_ms);
        if (n > 0 && fds[1].revents) {
            eventfd_t value;
            eventfd_read(event, &value);
        }
        return n;
    }
    static inline void *glb_map_memory(size_t bytes)
    {
        void *area = mmap(0, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        return area == MAP_FAILED ? 0 : area;
    }
    /* From now on the thread's own system calls drive the queue; 0, or the errno. */
    static inline int glb_busy_poll(int fd, int microseconds, int packets)
    {
        int on = 1;
        return setsockopt(fd, SOL_SOCKET, SO_PREFER_BUSY_POLL, &on, sizeof on) < 0
               || setsockopt(fd, SOL_SOCKET, SO_BUSY_POLL, &microseconds, sizeof microseconds) < 0
               || setsockopt(fd, SOL_SOCKET, SO_BUSY_POLL_BUDGET, &packets, sizeof packets) < 0 ? errno : 0;
    }
    static inline void glb_raise_budget(int fd, int packets)
    {
        setsockopt(fd, SOL_XDP, GLB_XDP_MAX_TX_SKB_BUDGET, &packets, sizeof packets);
    }
    """
    enum:
        SOL_SOCKET
        SO_PREFER_BUSY_POLL
        SOL_XDP
        EAGAIN
        EBUSY
        ENOBUFS
    void* glb_load_pointer(void** at) nogil
    void glb_store_pointer(void** at, void* value) nogil
    unsigned long long glb_load_u64(unsigned long long* at) nogil
    void glb_bump_u64(unsigned long long* at) nogil
    int glb_kick(int fd) nogil
    void glb_wake_receive(int fd) nogil
    int glb_wait(int socket, int event, int timeout_ms) nogil
    void* glb_map_memory(size_t bytes) nogil
    int glb_busy_poll(int fd, int microseconds, int packets) nogil
    void glb_raise_budget(int fd, int packets) nogil
    int munmap(void* area, size_t bytes) nogil
    int close(int fd) nogil
    int getsockopt(int fd, int level, int name, void* value, uint32_t* length) nogil


cdef enum:
    CHUNK_BYTES = 4096
    N_CHUNKS = 8192       # 32 MiB a queue
    RING_ENTRIES = 4096   # fill, receive and completion ring
    KICKS = 8             # sendto calls a batch at most; what is left goes with the next
    POLL_MS = 100
    BUSY_POLL_US = 20     # any value but 0 switches it on: a call polls the queue once
    BUSY_RETRIES = 100
    BUSY_RETRY_MS = 20


cdef struct Generation:
    const Plan* plan
    Counters* counters


cdef class Worker:
    """The AF_XDP socket of one receive queue. `run` is the body of its thread. Raises DeviceError.

    `map_fd`: the XSKMAP that the XDP program redirects by. The socket enters it at `start_receiving`. `busy_poll`: the
    thread never sleeps, and drives the queue itself instead of being woken by it.
    """

    cdef xsk_umem* umem
    cdef xsk_socket* socket
    cdef xsk_ring_prod fill
    cdef xsk_ring_prod tx
    cdef xsk_ring_cons rx
    cdef xsk_ring_cons completion
    cdef uint8_t* area
    cdef uint64_t free_chunks[N_CHUNKS]
    cdef uint32_t n_free
    cdef uint32_t in_flight        # submitted to the transmit ring, not completed
    cdef void* generation          # Generation*, swapped by publish
    cdef void* tapped              # Tap* of a capture, or NULL
    cdef unsigned long long epoch  # turns of the loop that have ended
    cdef int event
    cdef int fd
    cdef int egress_fd             # packet socket: sends by other interfaces than this one
    cdef glb_departures departures
    cdef unsigned long long refused  # frames that the packet socket did not take
    cdef bint stopping
    cdef bint running
    cdef bint spins                # busy_poll
    cdef readonly unsigned long long received  # frames
    cdef list _keep                # what the current generation points into
    cdef object _lock
    cdef readonly str interface
    cdef readonly int queue

    def __init__(self, str interface, int queue, *, bint busy_poll=False):
        cdef xsk_umem_config umem_config
        cdef xsk_socket_config config
        cdef int result
        cdef uint32_t i
        self.interface = interface
        self.queue = queue
        self.event = self.egress_fd = -1
        self._lock = threading.Lock()
        self._keep = []
        memset(&umem_config, 0, sizeof(umem_config))
        umem_config.fill_size = RING_ENTRIES
        umem_config.comp_size = RING_ENTRIES
        umem_config.frame_size = CHUNK_BYTES
        self.area = <uint8_t*>glb_map_memory(<size_t>N_CHUNKS * CHUNK_BYTES)
        if self.area == NULL:
            raise MemoryError
        result = xsk_umem__create(&self.umem, self.area, <uint64_t>N_CHUNKS * CHUNK_BYTES, &self.fill,
                                  &self.completion, &umem_config)
        if result < 0:
            self.umem = NULL
            raise _failed(f"packet memory for queue {queue} of {interface}", result)
        memset(&config, 0, sizeof(config))
        config.rx_size = RING_ENTRIES
        config.tx_size = N_CHUNKS
        config.libxdp_flags = XSK_LIBXDP_FLAGS__INHIBIT_PROG_LOAD
        config.bind_flags = XDP_USE_NEED_WAKEUP
        # The kernel gives the queue of a process that died back a moment later.
        for _ in range(BUSY_RETRIES):
            result = xsk_socket__create(&self.socket, interface.encode(), queue, self.umem, &self.rx, &self.tx, &config)
            if result != -EBUSY:
                break
            with nogil:
                glb_wait(-1, -1, BUSY_RETRY_MS)
        if result < 0:
            self.socket = NULL
            raise _failed(f"AF_XDP socket on queue {queue} of {interface}", result)
        self.egress_fd = glb_open_egress()
        if self.egress_fd < 0:
            raise _failed("packet socket", self.egress_fd)
        self.fd = xsk_socket__fd(self.socket)
        glb_raise_budget(self.fd, BATCH)
        self.spins = busy_poll
        if busy_poll:
            result = glb_busy_poll(self.fd, BUSY_POLL_US, BATCH)
            if result:
                raise DeviceError(f"busy_poll: the kernel refuses it for queue {queue} of {interface} ({os.strerror(result)}); it "
                                  "needs 5.11, CONFIG_NET_RX_BUSY_POLL and CAP_NET_ADMIN: set busy_poll = false")
        self.event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        for i in range(N_CHUNKS):
            self.free_chunks[i] = <uint64_t>i * CHUNK_BYTES
        self.n_free = N_CHUNKS
        self._refill()

    def start_receiving(self, int map_fd):
        """Frames that the XDP program redirects from this queue come here after this call."""
        cdef int result = xsk_socket__update_xskmap(self.socket, map_fd)
        if result < 0:
            raise _failed(f"registering the AF_XDP socket of queue {self.queue}", result)

    @property
    def zero_copy(self):
        """Whether the driver moves frames without copying."""
        cdef xdp_options options
        cdef uint32_t length = sizeof(options)
        memset(&options, 0, sizeof(options))
        if getsockopt(self.fd, SOL_XDP, XDP_OPTIONS, &options, &length) < 0:
            return False
        return bool(options.flags & XDP_OPTIONS_ZEROCOPY)

    @property
    def busy_poll(self):
        """Whether the kernel has it switched on for this socket."""
        cdef int value = 0
        cdef uint32_t length = sizeof(value)
        return getsockopt(self.fd, SOL_SOCKET, SO_PREFER_BUSY_POLL, &value, &length) == 0 and bool(value)

    def lost(self):
        """Frames of ours that the kernel could not deliver to the worker, or did not take from it, by reason."""
        cdef xdp_statistics statistics
        cdef uint32_t length = sizeof(statistics)
        memset(&statistics, 0, sizeof(statistics))
        if getsockopt(self.fd, SOL_XDP, XDP_STATISTICS, &statistics, &length) < 0:
            return {"egress_refused": self.refused}
        return {"egress_refused": self.refused, "rx_dropped": statistics.rx_dropped,
                "rx_ring_full": statistics.rx_ring_full,
                "rx_fill_ring_empty": statistics.rx_fill_ring_empty_descs}

    # -- publishing

    def publish(self, Forwarding forwarding not None):
        """Forward by `forwarding` from the next batch on. When this returns no batch uses the one before any more."""
        cdef CounterBlock counters = forwarding.new_counters()
        cdef Generation* generation = <Generation*>calloc(1, sizeof(Generation))
        cdef Generation* old
        if generation == NULL:
            raise MemoryError
        generation.plan = forwarding.plan
        generation.counters = &counters.counters
        with self._lock:
            old = <Generation*>self.generation
            # The new tables are live after this call.
            glb_store_pointer(&self.generation, generation)
            self._end_turn()
            free(old)
            self._keep = [forwarding, counters]

    def tap(self, size_t address):
        """Captured packets go to the Tap (_capture.pxd) there, or nowhere (0); when this returns the one before is not used."""
        with self._lock:
            glb_store_pointer(&self.tapped, <void*>address)
            self._end_turn()

    cdef _end_turn(self):
        """Wait until what began before this call has ended."""
        cdef unsigned long long epoch = glb_load_u64(&self.epoch)
        while self.running and glb_load_u64(&self.epoch) == epoch:
            os.eventfd_write(self.event, 1)
            with nogil:
                glb_wait(-1, -1, 1)

    # -- the thread

    def run(self):
        """Forward until `stop`. Call from a thread of its own, after the first `publish`."""
        if self.generation == NULL:
            raise RuntimeError("publish before run")
        self.running = True
        try:
            with nogil:
                while not self.stopping:
                    self._turn()
                    glb_bump_u64(&self.epoch)
        finally:
            self.running = False

    def stop(self):
        """Make `run` return after its batch."""
        self.stopping = True
        os.eventfd_write(self.event, 1)

    cdef void _turn(self) noexcept nogil:
        cdef Packet packets[BATCH]
        cdef uint64_t chunks[BATCH]
        cdef const Generation* generation = <const Generation*>glb_load_pointer(&self.generation)
        cdef const xdp_desc* received
        cdef xdp_desc* sent
        cdef uint32_t index = 0, slot = 0, n, i, n_sent = 0
        n = xsk_ring_cons__peek(&self.rx, BATCH, &index)
        if n == 0:
            self._send()
            self._refill()
            if self.spins:
                glb_wake_receive(self.fd)
                return
            # A waiting frame that could not be sent is worth a short wait only.
            glb_wait(self.fd, self.event, 1 if self.in_flight else POLL_MS)
            return
        for i in range(n):
            received = xsk_ring_cons__rx_desc(&self.rx, index + i)
            chunks[i] = received.addr & ~<uint64_t>(CHUNK_BYTES - 1)
            packets[i].frame = self.area + received.addr
            packets[i].length = received.len
        xsk_ring_cons__release(&self.rx, n)
        self.received += n
        run_tapped(<Tap*>glb_load_pointer(&self.tapped), generation.plan, generation.counters, packets, n)
        for i in range(n):
            if packets[i].sends and not packets[i].egress:
                n_sent += 1
        # Room for every chunk: this cannot fail.
        xsk_ring_prod__reserve(&self.tx, n_sent, &slot)
        for i in range(n):
            if packets[i].sends and not packets[i].egress:
                sent = xsk_ring_prod__tx_desc(&self.tx, slot)
                sent.addr = packets[i].frame - self.area
                sent.len = packets[i].length
                sent.options = 0
                slot += 1
            else:
                if packets[i].sends:  # copied before its chunk is used again
                    self._depart(&packets[i], generation.plan)
                elif packets[i].verdict == GLB_HOST:  # it cannot go back: the classifier had the binds before a reload
                    generation.counters.verdicts[GLB_HOST] -= 1
                    generation.counters.verdicts[GLB_DROP_STALE_BIND] += 1
                self.free_chunks[self.n_free] = chunks[i]
                self.n_free += 1
        xsk_ring_prod__submit(&self.tx, n_sent)
        self.in_flight += n_sent
        self.refused += glb_send_departures(self.egress_fd, &self.departures)
        self._send()
        self._refill()

    cdef void _depart(self, const Packet* packet, const Plan* plan) noexcept nogil:
        if self.departures.n == GLB_EGRESS_FRAMES:
            self.refused += glb_send_departures(self.egress_fd, &self.departures)
        glb_depart(&self.departures, packet.frame, packet.length, plan.generation.egresses[packet.egress].ifindex)

    cdef void _send(self) noexcept nogil:
        """Make the kernel send what is in the transmit ring, and take back what it has sent."""
        cdef int i, result
        for i in range(KICKS):
            if self.in_flight == 0:
                return
            result = 0
            if xsk_ring_prod__needs_wakeup(&self.tx):
                result = glb_kick(self.fd)
            self._reclaim()
            if result != EAGAIN:
                return

    cdef void _reclaim(self) noexcept nogil:
        cdef uint32_t index = 0
        cdef uint32_t i, n = xsk_ring_cons__peek(&self.completion, RING_ENTRIES, &index)
        for i in range(n):
            self.free_chunks[self.n_free] = (
                xsk_ring_cons__comp_addr(&self.completion, index + i)[0] & ~<uint64_t>(CHUNK_BYTES - 1))
            self.n_free += 1
        xsk_ring_cons__release(&self.completion, n)
        self.in_flight -= n

    cdef void _refill(self) noexcept nogil:
        """Give free chunks to the kernel to receive into."""
        cdef uint32_t index = 0
        cdef uint32_t n = xsk_prod_nb_free(&self.fill, BATCH)
        cdef uint32_t i
        if n > self.n_free:
            n = self.n_free
        if n == 0:
            return
        xsk_ring_prod__reserve(&self.fill, n, &index)
        for i in range(n):
            self.n_free -= 1
            xsk_ring_prod__fill_addr(&self.fill, index + i)[0] = self.free_chunks[self.n_free]
        xsk_ring_prod__submit(&self.fill, n)
        if xsk_ring_prod__needs_wakeup(&self.fill):
            glb_wake_receive(self.fd)

    def __dealloc__(self):
        if self.socket != NULL:
            xsk_socket__delete(self.socket)
        if self.umem != NULL:
            xsk_umem__delete(self.umem)
        if self.area != NULL:
            munmap(self.area, <size_t>N_CHUNKS * CHUNK_BYTES)
        if self.egress_fd >= 0:
            close(self.egress_fd)
        if self.event >= 0:
            close(self.event)  # not os.close: that module may be gone when the interpreter ends
        free(self.generation)


def _failed(what, int code):
    number = -code
    advice = {
        errno.EPERM: "run as root, or with CAP_NET_RAW and CAP_BPF",
        errno.EBUSY: "another AF_XDP socket has this queue; is another director running?",
        errno.ENOMEM: "raise the locked-memory limit (ulimit -l, LimitMEMLOCK=) of this process",
        errno.ENOBUFS: "raise the locked-memory limit (ulimit -l, LimitMEMLOCK=) of this process",
        errno.ENODEV: "there is no such interface",
    }.get(number)
    text = f"{what}: {errno.errorcode.get(number, number)} ({os.strerror(number)})"
    return DeviceError(f"{text}; {advice}" if advice else text)
