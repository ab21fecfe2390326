"""Live TCP flows, counted by VIP and port: from the kernel's table, walked by bpf/flows.bpf.c, or dumped by inet_diag.

Both put what they find into a `Tally`. They run without the GIL; call them in a thread of their own.
"""

import ipaddress
import os

from libc.errno cimport EINTR, EOPNOTSUPP, EOVERFLOW, errno
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from glb._libbpf cimport bpf_prog_test_run_opts, bpf_test_run_opts
from glb._wire cimport load_be16, load_be32
from proxy_agent._addresses cimport fill_set, free_set
from proxy_agent._diag cimport *
from proxy_agent._tunnel cimport AddressSet, find_address, load_be64

from glb.errors import DeviceError

cdef extern from "glb_flows.h" nogil:
    enum:
        GLB_WALK_NAMESPACES
        GLB_WALK_SOCKETS
        GLB_LIVE_STATES
    struct glb_socket:
        uint8_t local[16]
        uint16_t port
        uint16_t family
    struct glb_walk:
        uint32_t bucket
        uint32_t n_buckets
        uint32_t table_size
        uint32_t n_sockets
        uint32_t n_namespaces
        uint32_t namespaces[GLB_WALK_NAMESPACES]
        glb_socket sockets[GLB_WALK_SOCKETS]

cdef extern from "<sys/mman.h>" nogil:
    enum:
        PROT_READ
        PROT_WRITE
        MAP_SHARED
    void* MAP_FAILED
    void* mmap(void* address, size_t length, int protection, int flags, int fd, long offset)
    int munmap(void* address, size_t length)

cdef extern from "<sched.h>" nogil:
    enum:
        CLONE_NEWNET
    int setns(int fd, int kind)

cdef enum:
    SLICE_BUCKETS = 4096   # of one call of the program: about half a millisecond with 100,000 flows
    SLOTS = 4096           # a power of two
    MAX_BINDS = 3072       # of SLOTS, so that a search soon finds a free one
    PORT_SET_BYTES = 8192  # a bit for each port
    DUMP_BYTES = 262144
    LISTEN_STATE = 1 << 10

MAX_NAMESPACES = GLB_WALK_NAMESPACES

# -- the count ---------------------------------------------------------------------------------------------------------

cdef struct Bind:
    uint64_t flows
    uint32_t entry    # index of its VIP in the configuration
    uint16_t port     # host order
    bint used
    bint listens      # a socket listens at it, on the VIP


cdef struct Count:
    AddressSet vips
    uint64_t* by_vip            # one for each VIP; owned by the Tally
    Bind* slots                 # SLOTS
    uint32_t n_binds
    uint8_t any4[PORT_SET_BYTES]    # ports with a listener on every IPv4 address
    uint8_t any6[PORT_SET_BYTES]


cdef inline Bind* bind_of(Count* count, uint32_t entry, uint16_t port, bint make) noexcept nogil:
    """The slot of a VIP's port; NULL if there is none and none is to be made, or no room."""
    cdef uint32_t at = (entry * 0x9E3779B1u + port * 0x85EBCA6Bu) >> 20
    cdef Bind* bind
    while True:
        bind = &count.slots[at & (SLOTS - 1)]
        if bind.used and bind.entry == entry and bind.port == port:
            return bind
        if not bind.used:
            break
        at += 1
    if not make or count.n_binds >= MAX_BINDS:
        return NULL
    bind.used = True
    bind.entry = entry
    bind.port = port
    count.n_binds += 1
    return bind


cdef inline bint is_set(const uint8_t* ports, uint16_t port) noexcept nogil:
    return ports[port >> 3] >> (port & 7) & 1


cdef inline int family_of(const uint8_t** local, int family) noexcept nogil:
    """4 or 6: whose address it is. `local` moves to the IPv4 address in ::ffff:a.b.c.d (a socket for both families)."""
    if family == 6 and load_be64(local[0]) == 0 and load_be32(local[0] + 8) == 0xffff:
        local[0] += 12
        return 4
    return family


cdef inline void note_listener(Count* count, const uint8_t* local, int family, uint16_t port) noexcept nogil:
    cdef long entry
    cdef Bind* bind
    cdef bint any_address
    family = family_of(&local, family)
    any_address = load_be32(local) == 0 if family == 4 else load_be64(local) == 0 and load_be64(local + 8) == 0
    if any_address:
        # One on [::] may take IPv6 alone; then its port on an IPv4 VIP has no flows, and is not told of.
        count.any4[port >> 3] |= 1 << (port & 7)
        if family == 6:
            count.any6[port >> 3] |= 1 << (port & 7)
        return
    entry = find_address(&count.vips, local, family)
    bind = bind_of(count, entry, port, True) if entry >= 0 else NULL
    if bind != NULL:
        bind.listens = True


cdef inline void note_flow(Count* count, const uint8_t* local, int family, uint16_t port) noexcept nogil:
    cdef Bind* bind
    cdef long entry
    family = family_of(&local, family)
    entry = find_address(&count.vips, local, family)
    if entry < 0:
        return
    count.by_vip[entry] += 1
    bind = bind_of(count, entry, port, is_set(&count.any4[0] if family == 4 else &count.any6[0], port))
    if bind != NULL:
        bind.flows += 1


cdef class Tally:
    """One count. `vips`: networks that do not overlap; `binds`: (index of its VIP, port) that count apart without a listener.

    Listeners have to be noted before flows: of the other ports only the sum is kept, since a host's own connections from a VIP
    have any number of them.
    """

    cdef Count* count
    cdef readonly tuple vips

    def __cinit__(self, vips, binds=()):
        cdef uint32_t entry
        cdef uint16_t port
        self.vips = tuple(ipaddress.ip_network(vip) for vip in vips)
        self.count = <Count*>calloc(1, sizeof(Count))
        if self.count == NULL:
            raise MemoryError()
        self.count.by_vip = <uint64_t*>calloc(len(self.vips) + 1, sizeof(uint64_t))
        self.count.slots = <Bind*>calloc(SLOTS, sizeof(Bind))
        if self.count.by_vip == NULL or self.count.slots == NULL:
            raise MemoryError()
        fill_set(&self.count.vips, self.vips)
        for entry, port in binds:
            bind_of(self.count, entry, port, True)

    def __dealloc__(self):
        if self.count != NULL:
            free_set(&self.count.vips)
            free(self.count.by_vip)
            free(self.count.slots)
            free(self.count)

    def by_vip(self):
        """Live flows of each VIP, in their order."""
        return [self.count.by_vip[i] for i in range(len(self.vips))]

    def binds(self):
        """(index of its VIP, port, live flows, whether a socket listens at it) of each port that counts apart."""
        cdef Bind* bind
        cdef const uint8_t* everywhere
        found = []
        for i in range(SLOTS):
            bind = &self.count.slots[i]
            if bind.used:
                everywhere = &self.count.any4[0] if self.vips[bind.entry].version == 4 else &self.count.any6[0]
                found.append((bind.entry, bind.port, bind.flows, bind.listens or is_set(everywhere, bind.port)))
        return found


# -- walked by the eBPF program ----------------------------------------------------------------------------------------

cdef int walk_all(int program, glb_walk* walk, Count* count) noexcept nogil:
    """Every bucket once. 0, or -errno."""
    cdef bpf_test_run_opts opts
    cdef uint32_t before, i
    cdef int result
    walk.bucket = 0
    while True:
        before = walk.bucket
        walk.n_buckets = SLICE_BUCKETS
        memset(&opts, 0, sizeof(opts))
        opts.sz = sizeof(opts)
        result = bpf_prog_test_run_opts(program, &opts)
        if result < 0:
            return result
        if walk.table_size == 0:
            return -EOPNOTSUPP
        for i in range(walk.n_sockets):  # at most GLB_WALK_SOCKETS: what did not fit is left for the next call
            note_flow(count, walk.sockets[i].local, walk.sockets[i].family, walk.sockets[i].port)
        if walk.bucket >= walk.table_size:
            return 0
        if walk.bucket == before:
            return -EOVERFLOW  # more flows in a bucket than there is room for


cdef class Walk:
    """The program of bpf/flows.bpf.c, by its descriptor, and its memory (the map of its variables). One count at a time."""

    cdef glb_walk* walk
    cdef int program

    def __cinit__(self, int program, int memory):
        cdef void* mapped = mmap(NULL, sizeof(glb_walk), PROT_READ | PROT_WRITE, MAP_SHARED, memory, 0)
        if mapped == MAP_FAILED:
            raise DeviceError(f"cannot map the memory of the eBPF program: {os.strerror(errno)}")
        self.walk = <glb_walk*>mapped
        self.program = program

    def __dealloc__(self):
        if self.walk != NULL:
            munmap(self.walk, sizeof(glb_walk))

    def flows(self, Tally tally not None, namespaces):
        """Count the live flows of network namespaces, given by inode number. DeviceError if the kernel refuses."""
        cdef int result
        self.walk.n_namespaces = len(namespaces)
        for i, inode in enumerate(namespaces):
            self.walk.namespaces[i] = inode
        with nogil:
            result = walk_all(self.program, self.walk, tally.count)
        if result < 0:
            raise DeviceError(f"the eBPF program that lists TCP flows does not run: {os.strerror(-result)}")


# -- dumped by inet_diag -----------------------------------------------------------------------------------------------

cdef int dump(int fd, int family, uint32_t states, uint32_t sequence, uint8_t* buffer, Count* count) noexcept nogil:
    """One family's TCP sockets in these states. 0, or -errno."""
    cdef DiagRequest request
    cdef nlmsghdr* header
    cdef inet_diag_msg* message
    cdef const uint8_t* local
    cdef uint16_t port
    cdef ssize_t length
    cdef size_t at
    memset(&request, 0, sizeof(request))
    request.header.nlmsg_len = sizeof(request)
    request.header.nlmsg_type = SOCK_DIAG_BY_FAMILY
    request.header.nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP
    request.header.nlmsg_seq = sequence
    request.request.sdiag_family = family
    request.request.sdiag_protocol = 6
    request.request.idiag_states = states
    if send(fd, &request, sizeof(request), 0) < 0:
        return -errno
    while True:
        length = recv(fd, buffer, DUMP_BYTES, 0)
        if length < 0:
            if errno == EINTR:
                continue
            return -errno
        at = 0
        while at + sizeof(nlmsghdr) <= <size_t>length:
            header = <nlmsghdr*>(buffer + at)
            if header.nlmsg_len < sizeof(nlmsghdr) or at + header.nlmsg_len > <size_t>length:
                break
            at += (header.nlmsg_len + 3) & ~<size_t>3
            if header.nlmsg_seq != sequence:
                continue  # of a dump that was given up
            if header.nlmsg_type == NLMSG_DONE:
                return 0
            if header.nlmsg_type == NLMSG_ERROR:
                return (<nlmsgerr*>(header + 1)).error
            message = <inet_diag_msg*>(header + 1)
            local = <const uint8_t*>message.id.idiag_src
            port = load_be16(<const uint8_t*>&message.id.idiag_sport)
            if message.idiag_state == TCP_STATE_LISTEN:
                note_listener(count, local, 4 if message.idiag_family == AF_INET else 6, port)
            elif message.idiag_state != TCP_STATE_FIN_WAIT2 or message.idiag_inode != 0:  # else no process can read
                note_flow(count, local, 4 if message.idiag_family == AF_INET else 6, port)


cdef class Diag:
    """NETLINK_SOCK_DIAG of the network namespace that the calling thread is in. DeviceError if there is none."""

    cdef int fd
    cdef uint8_t* buffer
    cdef uint32_t sequence

    def __cinit__(self):
        self.fd = open_netlink(NETLINK_SOCK_DIAG, 1 << 20, 1 << 16)
        if self.fd < 0:
            raise DeviceError(f"cannot list TCP sockets (NETLINK_SOCK_DIAG): {os.strerror(errno)}")
        self.buffer = <uint8_t*>calloc(1, DUMP_BYTES)
        if self.buffer == NULL:
            raise MemoryError()

    def __dealloc__(self):
        if self.fd >= 0:
            close(self.fd)
        free(self.buffer)

    def listeners(self, Tally tally not None):
        """Note the listeners; before any flow. DeviceError if the kernel refuses."""
        self._dump(tally, LISTEN_STATE)

    def flows(self, Tally tally not None):
        """Count the live flows, at 2 us for each TCP socket of the host. DeviceError if the kernel refuses."""
        self._dump(tally, GLB_LIVE_STATES)

    cdef _dump(self, Tally tally, uint32_t states):
        cdef int error = 0
        cdef int family
        for family in (AF_INET, AF_INET6):
            self.sequence += 1
            with nogil:
                error = dump(self.fd, family, states, self.sequence, self.buffer, tally.count)
            if error < 0:
                raise DeviceError(f"cannot list TCP sockets: {os.strerror(-error)}")


def enter_namespace(int fd):
    """Take the calling thread into a network namespace, for good. OSError."""
    if setns(fd, CLONE_NEWNET) != 0:
        raise OSError(errno, os.strerror(errno))
