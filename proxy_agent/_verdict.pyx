"""The second chance, one decision per tunnel packet: accept, bounce or drop. And the NFQUEUE loop that carries it out.

In packet order: `first_look` reads the packet (_tunnel.pxd) and recalls its flow (_memory.pxd); what is still open is asked of the
kernel's socket table, a batch at once (_diag.pxd); `second_look` turns the answer into a reason. `Engine` runs this over NFQUEUE
(_nfqueue.pxd); `decide` runs it over one packet with a socket table of the caller's, for tests and for explaining.
The per-packet code never raises and touches no Python object: one `with nogil` until somebody interrupts the loop.
"""

import errno as errno_names
import ipaddress
import os
import threading

from libc.errno cimport EAGAIN, EINTR, ENOBUFS, errno
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memchr, memcpy, memset
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec
from posix.unistd cimport close, pread, write

from glb._siphash cimport sip_key
from glb._wire cimport Cursor, fold_checksum, load_be16, load_be32, store_be16, sum_be16
from proxy_agent._diag cimport *
from proxy_agent._memory cimport *
from proxy_agent._nfqueue cimport *
from proxy_agent._tunnel cimport *

from glb.errors import DeviceError
from proxy_agent.decide import REASONS, Decision

cdef extern from "<poll.h>" nogil:
    struct pollfd:
        int fd
        short events
        short revents
    int poll(pollfd* fds, unsigned long count, int timeout_ms)
    enum:
        POLLIN

assert len(REASONS) == N_REASONS  # decide.REASONS and `Why` are one table in two languages

STATES = {
    "none": TCP_STATE_NONE, "established": 1, "syn_sent": 2, "syn_recv": 3, "fin_wait1": 4, "fin_wait2": 5, "time_wait": 6,
    "close_wait": 8, "last_ack": 9, "listen": TCP_STATE_LISTEN, "closing": 11, "unknown": TCP_STATE_UNKNOWN,
}
DEF_REMEMBER_MS = 2000

cdef enum:
    NETSTAT_BYTES = 16384    # /proc/net/netstat is about 4 KiB
    COOKIES_FOR_MS = 10000   # cookies count as in use this long after the last one was sent
    IDLE_MS = 1000
    RETURN_NOW = 1           # values of Loop.interrupted
    RETURN_WHEN_EMPTY = 2
    SOCKET_BYTES = 33554432  # asked for; a batch of the longest packets is 4 MiB of verdicts


# -- settings ----------------------------------------------------------------------------------------------------------

cdef int fill_set(AddressSet* addresses, networks) except -1:
    """Ranges of `networks` (ipaddress networks that do not overlap); `entry` is the position in the list given."""
    v4 = sorted((int(n.network_address), int(n.broadcast_address), i) for i, n in enumerate(networks) if n.version == 4)
    v6 = sorted((int(n.network_address), int(n.broadcast_address), i) for i, n in enumerate(networks) if n.version == 6)
    cdef size_t k
    cdef uint64_t low64 = <uint64_t>0xffffffffffffffff
    addresses.v4 = <Range4*>calloc(len(v4) + 1, sizeof(Range4))
    addresses.v6 = <Range6*>calloc(len(v6) + 1, sizeof(Range6))
    if addresses.v4 == NULL or addresses.v6 == NULL:
        raise MemoryError()
    for k, (first, last, entry) in enumerate(v4):
        addresses.v4[k].first = first
        addresses.v4[k].last = last
        addresses.v4[k].entry = entry
    for k, (first, last, entry) in enumerate(v6):
        addresses.v6[k].first_high = first >> 64
        addresses.v6[k].first_low = first & low64
        addresses.v6[k].last_high = last >> 64
        addresses.v6[k].last_low = last & low64
        addresses.v6[k].entry = entry
    addresses.n_v4 = len(v4)
    addresses.n_v6 = len(v6)
    return 0


cdef class Settings:
    """What packets are checked against; never changed, only replaced whole.

    `vips`: networks that do not overlap. `allowed_sources`: networks, or None: any source. `own_addresses`: IPv4 addresses of
    this host, which no packet is bounced to. Networks are `ipaddress` objects or their text.
    """

    cdef Guard guard
    cdef readonly tuple vips

    def __init__(self, vips, allowed_sources=None, own_addresses=()):
        self.vips = tuple(ipaddress.ip_network(vip) for vip in vips)
        fill_set(&self.guard.vips, self.vips)
        self.guard.any_source = allowed_sources is None
        sources = [ipaddress.ip_network(source) for source in allowed_sources or ()]
        fill_set(&self.guard.sources, list(ipaddress.collapse_addresses(n for n in sources if n.version == 4)))
        own = [ipaddress.ip_network(address) for address in own_addresses]
        fill_set(&self.guard.own, list(ipaddress.collapse_addresses(n for n in own if n.version == 4)))

    def __dealloc__(self):
        for addresses in (0, 1, 2):
            free((&self.guard.sources if addresses == 0 else &self.guard.vips if addresses == 1 else &self.guard.own).v4)
            free((&self.guard.sources if addresses == 0 else &self.guard.vips if addresses == 1 else &self.guard.own).v6)


cdef class Recollection:
    """The two tables of _memory.pxd, with a hash key of their own. `n_sets`, `n_slots`: their sizes, powers of two."""

    cdef Memory memory

    def __cinit__(self, uint64_t n_sets=64, uint64_t n_slots=1024):
        cdef bytes key = os.urandom(16)
        self.memory.key = sip_key(<const uint8_t*><char*>key)
        self.memory.recent = <RecentEntry*>calloc(n_sets * RECENT_WAYS, sizeof(RecentEntry))
        self.memory.syns = <SynEntry*>calloc(n_slots, sizeof(SynEntry))
        self.memory.n_sets = n_sets
        self.memory.n_slots = n_slots
        if self.memory.recent == NULL or self.memory.syns == NULL:
            raise MemoryError()

    def __dealloc__(self):
        free(self.memory.recent)
        free(self.memory.syns)


# -- the decision ------------------------------------------------------------------------------------------------------

cdef inline Why first_look(const Guard* guard, Memory* memory, Tunnel* t, uint8_t* packet, size_t length, uint32_t now_ms,
                           uint64_t* tag) noexcept nogil:
    """What the packet itself and the memory can tell; WHY_LOOK_UP: the kernel has to say whether `t.flow` has a socket."""
    cdef Why why = read_tunnel(packet, length, guard, t)
    cdef RecentEntry* entry
    if why == WHY_SYN:
        # Only a SYN of its own is answered by a cookie; a SYN+ACK answers somebody else's SYN.
        if not t.tcp_flags & TCP_ACK:
            note_syn(memory, flow_tag(memory, &t.flow), t.tcp_seq, now_ms)
        return why
    if why != WHY_LOOK_UP:
        return why
    tag[0] = flow_tag(memory, &t.flow)
    entry = recall(memory, tag[0], now_ms)
    if entry == NULL or (t.is_error and entry.why != WHY_ESTABLISHED):
        return WHY_LOOK_UP
    why = <Why>entry.why
    if t.tcp_flags & TCP_RST:
        forget(memory, tag[0])  # the stack ends the flow now
    return WHY_ICMP_ERROR if t.is_error else why


cdef inline Why second_look(const Guard* guard, Memory* memory, const Tunnel* t, uint64_t tag, int state, bint cookies,
                            uint32_t now_ms, uint32_t remember_ms, int* hop) noexcept nogil:
    """The reason, given the state of the socket that the kernel found (TCP_STATE_NONE: none). `cookies`: in use just now."""
    cdef RecentEntry* entry
    if state == TCP_STATE_UNKNOWN:
        return WHY_LOOK_UP_FAILED
    if state != TCP_STATE_NONE and state != TCP_STATE_LISTEN:
        if remember_ms and not t.tcp_flags & TCP_RST:
            remember(memory, tag, WHY_ESTABLISHED, now_ms, remember_ms)
        return WHY_ICMP_ERROR if t.is_error else WHY_ESTABLISHED
    if not t.is_error:
        # A cookie accepted earlier in this very batch: its segments arrive before the stack has made the socket.
        entry = recall(memory, tag, now_ms)
        if entry != NULL and entry.why == WHY_SYN_COOKIE:
            return WHY_SYN_COOKIE
        if (cookies and state == TCP_STATE_LISTEN and t.tcp_flags & (TCP_ACK | TCP_SYN | TCP_FIN | TCP_RST) == TCP_ACK
                and follows_syn(memory, tag, t.tcp_seq, now_ms)):
            remember(memory, tag, WHY_SYN_COOKIE, now_ms, 2000)
            return WHY_SYN_COOKIE
    hop[0] = next_hop(guard, t)
    if hop[0] < 0:
        return WHY_LAST_RESORT
    if t.start[8] <= 1:  # TTL: the kernel, which lowers it, would answer with an ICMP error
        return WHY_TTL
    return WHY_BOUNCE


cdef inline bint is_accept(Why why) noexcept nogil:
    return why < WHY_BOUNCE


cdef inline bint fits_in_place(const Tunnel* t) noexcept nogil:
    """Whether the kernel may go on with the inner packet where the tunnel packet was.

    By then it has checked the IPv4 header and noted where it ends, for the outer one; so the inner one must end at the same
    place and be sound. Every other packet enters by the TUN device and is checked like one from a wire."""
    cdef const uint8_t* ip = t.start + t.inner_at
    return (t.family == 4 and t.inner_header == t.outer_header
            and fold_checksum(sum_be16(ip, t.inner_header, 0)) == 0)


def decide(packet, Settings settings not None, sockets=None, *, Recollection recollection=None, cookies_in_use=False,
           uint32_t now_ms=1, uint32_t remember_ms=0):
    """Judge one tunnel packet (bytes from the outer IPv4 header on) as the engine does.

    `sockets(family, local, local_port, remote, remote_port)` answers for the kernel's TCP table: addresses as packed bytes, ports
    in host order; it returns a key of `STATES`. Absent: no socket at all. `recollection` carries memory from call to call.
    """
    # Exactly as long as the packet: AddressSanitizer notices a byte read beyond (GLB_CYTHON_DEBUG=1).
    cdef bytes given = bytes(packet)
    cdef size_t length = len(given)
    cdef uint8_t* buffer = <uint8_t*>calloc(length if length else 1, 1)
    cdef Tunnel t
    cdef uint64_t tag = 0
    cdef int hop = -1, state = TCP_STATE_NONE
    cdef Why why
    if buffer == NULL:
        raise MemoryError()
    memory = recollection if recollection is not None else Recollection()
    cdef Memory* m = &(<Recollection>memory).memory
    try:
        memcpy(buffer, <const uint8_t*><char*>given, length)
        why = first_look(&settings.guard, m, &t, buffer, length, now_ms, &tag)
        if why == WHY_LOOK_UP:
            if sockets is not None:
                width = 4 if t.flow.family == 4 else 16
                state = STATES[sockets(int(t.flow.family), bytes(t.flow.local[:width]), int(load_be16(t.flow.local_port_be)),
                                       bytes(t.flow.remote[:width]), int(load_be16(t.flow.remote_port_be)))]
            why = second_look(&settings.guard, m, &t, tag, state, cookies_in_use, now_ms, remember_ms, &hop)
        output = b""
        if why == WHY_BOUNCE:
            redirect(&t, hop)
            output = bytes(buffer[:t.length])
        elif is_accept(why):
            output = bytes(buffer[t.inner_at:t.inner_at + t.inner_length])
        return Decision(REASONS[<int>why].name, output, hop if why == WHY_BOUNCE else -1)
    finally:
        free(buffer)


# -- the engine --------------------------------------------------------------------------------------------------------

cdef struct Loop:
    int queue_fd             # NFQUEUE netlink socket
    int wake_fd              # eventfd of the engine; readable when the loop is to return to Python
    int tun_fd               # -1: none, then IPv6 cannot be delivered
    int netstat_fd           # /proc/net/netstat; -1: SYN cookies cannot be noticed
    int cookie_column        # of SyncookiesSent in its TcpExt line
    uint16_t queue_be
    uint32_t batch           # packets read at once, 1..MAX_BATCH
    uint32_t remember_ms
    bint accept_all          # bench/agent_verdicts.py: the loop alone, without a look at the packets
    volatile int interrupted
    uint64_t cookies_sent
    uint32_t cookies_until_ms
    uint32_t cookies_read_ms
    bint cookies
    uint64_t reasons[N_REASONS]
    uint64_t bounced_to[256]           # by position in the hop list
    uint64_t look_ups
    uint64_t recalled                  # decided from memory, without a look-up
    uint64_t verdict_errors            # the kernel refused a verdict
    uint64_t overruns                  # the netlink socket lost packets
    uint32_t last_source[N_REASONS]    # outer source of the last packet dropped for a reason, host order
    uint8_t* buffers                   # MAX_BATCH * RECEIVE_BYTES
    mmsghdr messages[MAX_BATCH]
    iovec vectors[MAX_BATCH]
    VerdictMessage verdicts[MAX_BATCH]
    iovec verdict_vectors[3 * MAX_BATCH]
    int n_vectors
    Tunnel tunnels[MAX_BATCH]
    uint8_t* packets[MAX_BATCH]
    size_t lengths[MAX_BATCH]
    uint32_t packet_ids[MAX_BATCH]
    Why whys[MAX_BATCH]
    uint64_t tags[MAX_BATCH]
    uint32_t asked[MAX_BATCH]          # index of the packet's look-up
    uint64_t asked_tags[MAX_BATCH]     # by index of the look-up
    LookUps look_ups_of_batch


cdef inline uint32_t clock_ms() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return <uint32_t>(<uint64_t>now.tv_sec * 1000 + <uint64_t>now.tv_nsec // 1000000)


cdef void watch_cookies(Loop* loop, uint32_t now_ms) noexcept nogil:
    """Read SyncookiesSent; when it has grown since the last time, cookies are in use for the next 10 s. About 20 us."""
    cdef char text[NETSTAT_BYTES]
    cdef const char* at
    cdef ssize_t length
    cdef uint64_t sent = 0
    cdef int column = -1
    loop.cookies_read_ms = now_ms
    if loop.netstat_fd < 0:
        return
    length = pread(loop.netstat_fd, text, NETSTAT_BYTES - 1, 0)
    if length <= 0:
        return
    text[length] = 0
    at = <const char*>memchr(text, 10, length)  # the first line has the names, the second the numbers
    while at != NULL and column < loop.cookie_column:
        at = <const char*>memchr(at + 1, 32, text + length - at - 1)
        column += 1
    if at == NULL:
        return
    at += 1
    while 48 <= at[0] <= 57:
        sent = sent * 10 + <uint64_t>(at[0] - 48)
        at += 1
    if sent != loop.cookies_sent:
        loop.cookies_sent = sent
        loop.cookies_until_ms = now_ms + COOKIES_FOR_MS
        loop.cookies = True
    elif loop.cookies and not in_time(loop.cookies_until_ms, now_ms):
        loop.cookies = False


cdef inline void conclude(Loop* loop, int i, Why why, int hop) noexcept nogil:
    """Count packet `i` once and put its verdict on the list."""
    cdef Tunnel* t = &loop.tunnels[i]
    cdef uint8_t* packet = NULL
    cdef size_t length = 0
    cdef uint32_t verdict = NF_DROP
    if why == WHY_BOUNCE:
        redirect(t, hop)
        packet = t.start
        length = t.length
        verdict = NF_ACCEPT
        loop.bounced_to[hop] += 1
    elif is_accept(why):
        packet = t.start + t.inner_at
        length = t.inner_length
        if fits_in_place(t):
            verdict = NF_ACCEPT
        else:
            if loop.tun_fd < 0 or write(loop.tun_fd, packet, length) != <ssize_t>length:
                why = WHY_UNDELIVERED
            packet = NULL
    loop.reasons[<int>why] += 1
    if why > WHY_BOUNCE and loop.lengths[i] >= MIN_IPV4_BYTES:
        loop.last_source[<int>why] = load_be32(loop.packets[i] + 12)
    loop.n_vectors += put_verdict(&loop.verdicts[i], &loop.verdict_vectors[loop.n_vectors], loop.queue_be, loop.packet_ids[i],
                                  verdict, packet, length)


cdef void judge_batch(Loop* loop, const Guard* guard, Memory* memory, int n, uint32_t now_ms) noexcept nogil:
    """Verdicts for the packets 0..n-1, in their order, with at most one round of questions to the kernel."""
    cdef LookUps* look_ups = &loop.look_ups_of_batch
    cdef int i, hop, state
    cdef uint32_t k
    cdef bint maybe_cookie = False
    look_ups.count = 0
    for i in range(n):
        loop.whys[i] = first_look(guard, memory, &loop.tunnels[i], loop.packets[i], loop.lengths[i], now_ms, &loop.tags[i])
        if loop.whys[i] == WHY_LOOK_UP:
            for k in range(look_ups.count):
                if loop.asked_tags[k] == loop.tags[i]:
                    break
            else:
                k = ask_about(look_ups, &loop.tunnels[i].flow)
                loop.asked_tags[k] = loop.tags[i]
            loop.asked[i] = k
        elif loop.whys[i] == WHY_ESTABLISHED or loop.whys[i] == WHY_SYN_COOKIE or loop.whys[i] == WHY_ICMP_ERROR:
            loop.recalled += 1
    if look_ups.count:
        ask_kernel(look_ups)
        loop.look_ups += look_ups.count
    for i in range(n):
        hop = -1
        if loop.whys[i] == WHY_LOOK_UP:
            state = look_ups.states[loop.asked[i]]
            if state == TCP_STATE_LISTEN and not loop.cookies and not maybe_cookie:
                # The first cookies of a flood may be newer than what we know: ask before bouncing their answers away.
                maybe_cookie = follows_syn(memory, loop.tags[i], loop.tunnels[i].tcp_seq, now_ms)
                if maybe_cookie:
                    watch_cookies(loop, now_ms)
            loop.whys[i] = second_look(guard, memory, &loop.tunnels[i], loop.tags[i], state, loop.cookies, now_ms,
                                       loop.remember_ms, &hop)
        conclude(loop, i, loop.whys[i], hop)


cdef int serve(Loop* loop, const Guard* guard, Memory* memory) noexcept nogil:
    """Batches until somebody interrupts: 0. Or -errno when the queue's socket fails."""
    cdef int received, i, n
    cdef pollfd waits[2]
    cdef msghdr out
    cdef uint32_t now_ms
    waits[0].fd = loop.queue_fd
    waits[1].fd = loop.wake_fd
    waits[0].events = waits[1].events = POLLIN
    memset(&out, 0, sizeof(out))
    while loop.interrupted != RETURN_NOW:
        received = recvmmsg(loop.queue_fd, loop.messages, loop.batch, MSG_DONTWAIT, NULL)
        now_ms = clock_ms()
        if now_ms - loop.cookies_read_ms >= IDLE_MS:
            watch_cookies(loop, now_ms)
        if received < 0:
            if errno == EAGAIN:
                if loop.interrupted:
                    return 0
                poll(waits, 2, IDLE_MS)
            elif errno == ENOBUFS:
                loop.overruns += 1
            elif errno != EINTR:
                return -errno
            continue
        n = 0
        loop.n_vectors = 0
        for i in range(received):
            loop.packets[n] = read_packet(loop.buffers + <size_t>i * RECEIVE_BYTES, loop.messages[i].msg_len,
                                          &loop.lengths[n], &loop.packet_ids[n])
            if loop.packets[n] == NULL:
                loop.verdict_errors += 1  # an NLMSG_ERROR: the only other thing that the queue sends
            else:
                n += 1
        if loop.accept_all:
            for i in range(n):
                loop.n_vectors += put_verdict(&loop.verdicts[i], &loop.verdict_vectors[loop.n_vectors], loop.queue_be,
                                              loop.packet_ids[i], NF_ACCEPT, NULL, 0)
            loop.reasons[<int>WHY_UDP] += n
        else:
            judge_batch(loop, guard, memory, n, now_ms)
        if loop.n_vectors:
            out.msg_iov = loop.verdict_vectors
            out.msg_iovlen = loop.n_vectors
            # The verdicts are in force when this call returns.
            while sendmsg(loop.queue_fd, &out, 0) < 0:
                if errno != EINTR and errno != ENOBUFS:
                    return -errno
    return 0


cdef describe(int error):
    return f"{os.strerror(error)} ({errno_names.errorcode.get(error, error)})"


cdef class Engine:
    """One NFQUEUE, judged in one thread: `open`, then `run` in a thread of its own until `stop`.

    `ifindex`: the interface that tunnel packets come in by. `tun_fd`: TUN device for inner packets that cannot go on in place, not
    owned. `remember_ms`: how long a positive answer is believed (0: ask every time).
    """

    cdef Loop* loop
    cdef Settings settings
    cdef Settings next_settings
    cdef object in_force  # threading.Event of next_settings
    cdef Recollection recollection
    cdef readonly int queue_num
    cdef bint stopping

    def __cinit__(self):
        self.loop = <Loop*>calloc(1, sizeof(Loop))
        if self.loop == NULL:
            raise MemoryError()
        self.loop.queue_fd = self.loop.wake_fd = self.loop.tun_fd = self.loop.netstat_fd = -1
        self.loop.look_ups_of_batch.fd = -1
        self.loop.buffers = <uint8_t*>calloc(MAX_BATCH, RECEIVE_BYTES)
        if self.loop.buffers == NULL:
            raise MemoryError()

    def __init__(self, queue_num, ifindex, Settings settings not None, tun_fd=-1, *, remember_ms=DEF_REMEMBER_MS, batch=MAX_BATCH,
                 accept_all=False):
        self.queue_num = queue_num
        self.settings = settings
        self.recollection = Recollection(RECENT_SETS, SYN_SLOTS)
        self.loop.tun_fd = tun_fd
        self.loop.batch = max(1, min(batch, MAX_BATCH))
        self.loop.remember_ms = remember_ms
        self.loop.accept_all = accept_all
        self.loop.look_ups_of_batch.ifindex = ifindex
        store_be16(<uint8_t*>&self.loop.queue_be, queue_num)

    def __dealloc__(self):
        if self.loop != NULL:
            self._close()
            free(self.loop.buffers)
            free(self.loop)

    cdef void _close(self):
        cdef Loop* loop = self.loop
        for fd in (loop.queue_fd, loop.wake_fd, loop.netstat_fd, loop.look_ups_of_batch.fd):
            if fd >= 0:
                close(fd)
        loop.queue_fd = loop.wake_fd = loop.netstat_fd = loop.look_ups_of_batch.fd = -1

    def open(self):
        """Bind the queue and the socket table. Packets wait in the queue from here on. DeviceError says what is missing."""
        cdef Loop* loop = self.loop
        cdef int i, on = 1
        for i in range(MAX_BATCH):
            loop.vectors[i].iov_base = loop.buffers + <size_t>i * RECEIVE_BYTES
            loop.vectors[i].iov_len = RECEIVE_BYTES
            loop.messages[i].msg_hdr.msg_iov = &loop.vectors[i]
            loop.messages[i].msg_hdr.msg_iovlen = 1
        prepare_look_ups(&loop.look_ups_of_batch)
        loop.wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        loop.look_ups_of_batch.fd = open_netlink(NETLINK_SOCK_DIAG, 1 << 20, 1 << 20)
        if loop.look_ups_of_batch.fd < 0:
            raise DeviceError(f"cannot ask for TCP sockets (NETLINK_SOCK_DIAG): {describe(errno)}; the kernel needs CONFIG_INET_DIAG")
        self._try_look_up()
        loop.queue_fd = open_netlink(NETLINK_NETFILTER, SOCKET_BYTES, SOCKET_BYTES)
        if loop.queue_fd < 0:
            raise DeviceError(f"cannot open NETLINK_NETFILTER: {describe(errno)}; the kernel needs CONFIG_NETFILTER_NETLINK_QUEUE")
        self._bind_queue()
        # Packets lost for want of socket memory are counted by the kernel (queue_dropped_packets); an error per loss helps nobody.
        setsockopt(loop.queue_fd, SOL_NETLINK, NETLINK_NO_ENOBUFS, &on, sizeof(on))
        self._open_netstat()

    def _try_look_up(self):
        """One look-up of a flow that cannot exist, so that a kernel without inet_diag is noticed before packets depend on it."""
        cdef LookUps* look_ups = &self.loop.look_ups_of_batch
        cdef Flow flow
        memset(&flow, 0, sizeof(flow))
        flow.family = 4
        look_ups.count = 0
        ask_about(look_ups, &flow)
        ask_kernel(look_ups)
        if look_ups.states[0] == TCP_STATE_UNKNOWN:
            raise DeviceError("the kernel does not look up TCP sockets (NETLINK_SOCK_DIAG): it needs CONFIG_INET_TCP_DIAG")

    def _bind_queue(self):
        cdef uint8_t request[CONFIG_BYTES]
        cdef uint8_t reply[1024]
        cdef ssize_t length
        cdef size_t size = put_config(request, self.queue_num, NFQNL_CFG_CMD_BIND, 1)
        cdef int error = 0
        if send(self.loop.queue_fd, request, size, 0) < 0:
            error = errno
        else:
            length = recv(self.loop.queue_fd, reply, sizeof(reply), 0)
            if length < <ssize_t>(sizeof(nlmsghdr) + sizeof(nlmsgerr)):
                error = errno if length < 0 else 71  # EPROTO
            else:
                error = -(<nlmsgerr*>(<nlmsghdr*>reply + 1)).error
        if error:
            hint = "another program reads it: set queue_num" if error in (errno_names.EPERM, errno_names.EBUSY) else (
                "the kernel needs CONFIG_NETFILTER_NETLINK_QUEUE, and the agent CAP_NET_ADMIN")
            raise DeviceError(f"cannot bind NFQUEUE number {self.queue_num}: {describe(error)}; {hint}")

    def _open_netstat(self):
        """SYN cookies show in SyncookiesSent. Without it the agent works, but bounces the answers to cookies."""
        try:
            fd = os.open("/proc/thread-self/net/netstat", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return
        names = os.pread(fd, NETSTAT_BYTES, 0).split(b"\n", 1)[0].split()
        if names[:1] != [b"TcpExt:"] or b"SyncookiesSent" not in names:
            os.close(fd)
            return
        self.loop.netstat_fd = fd
        self.loop.cookie_column = names.index(b"SyncookiesSent") - 1
        watch_cookies(self.loop, clock_ms())
        self.loop.cookies = False  # what was sent before we came says nothing

    def run(self):
        """Judge packets until `stop`. DeviceError if the queue's socket fails."""
        cdef int result = 0
        cdef Settings settings
        while True:
            if self.next_settings is not None:
                self.settings, self.next_settings = self.next_settings, None
                self.in_force.set()
            settings = self.settings  # kept alive while the loop reads it
            # An eventfd left readable, also by a call before this one, would have the loop's poll return for ever.
            try:
                os.eventfd_read(self.loop.wake_fd)
            except BlockingIOError:
                pass
            self.loop.interrupted = RETURN_WHEN_EMPTY if self.stopping else 0
            if self.next_settings is not None or self.stopping and self.loop.interrupted != RETURN_WHEN_EMPTY:
                continue  # asked for since
            with nogil:
                result = serve(self.loop, &settings.guard, &self.recollection.memory)
            if result < 0:
                raise DeviceError(f"NFQUEUE number {self.queue_num} failed: {describe(-result)}")
            if self.stopping and self.loop.interrupted == RETURN_WHEN_EMPTY:
                return

    def replace(self, Settings settings not None):
        """Judge by these settings from the next batch on. Returns a `threading.Event` that is set when they are in force."""
        event = threading.Event()
        self.in_force = event
        self.next_settings = settings
        self._interrupt(RETURN_NOW)
        return event

    def stop(self):
        """Make `run` return once the queue is empty; first take the rules out, or that may never be."""
        self.stopping = True
        self._interrupt(RETURN_WHEN_EMPTY)

    def close(self):
        """Give the queue back, after `run` has returned; the kernel drops what is still queued."""
        self._close()

    cdef _interrupt(self, int how):
        self.loop.interrupted = how
        if self.loop.wake_fd >= 0:
            os.eventfd_write(self.loop.wake_fd, 1)

    def counters(self):
        """Packets by reason since the start: {name: count}, every name of decide.REASONS."""
        return {reason.name: self.loop.reasons[i] for i, reason in enumerate(REASONS)}

    def bounced_by_hop(self):
        """Bounced packets by the hop's position in the GUE header's list, from 0; positions never used are left out."""
        return {hop: self.loop.bounced_to[hop] for hop in range(256) if self.loop.bounced_to[hop]}

    def last_source(self, reason):
        """Outer source address of the last packet dropped for `reason`, or None."""
        names = [r.name for r in REASONS]
        address = self.loop.last_source[names.index(reason)]
        return str(ipaddress.IPv4Address(address)) if address else None

    def internals(self):
        """Counters of the loop itself: look_ups, recalled, verdict_errors, overruns, and whether SYN cookies are in use."""
        return {
            "look_ups": self.loop.look_ups,
            "recalled": self.loop.recalled,
            "verdict_errors": self.loop.verdict_errors,
            "overruns": self.loop.overruns,
            "syn_cookies_in_use": bool(self.loop.cookies),
        }


def live_flows(Settings settings not None):
    """Live TCP flows whose local address is a VIP: a list of counts, one for each of `settings.vips`.

    One dump per family, about 2 us per TCP socket of the host, without the GIL. DeviceError if the kernel refuses.
    """
    cdef size_t n = len(settings.vips)
    cdef uint64_t* counts = <uint64_t*>calloc(n + 1, sizeof(uint64_t))
    cdef uint8_t* buffer = <uint8_t*>calloc(1, DUMP_BYTES)
    cdef int fd = open_netlink(NETLINK_SOCK_DIAG, 1 << 20, 1 << 16)
    cdef int error = 0
    try:
        if counts == NULL or buffer == NULL:
            raise MemoryError()
        if fd < 0:
            raise DeviceError(f"cannot list TCP sockets: {describe(errno)}")
        with nogil:
            error = count_flows(fd, AF_INET, buffer, &settings.guard.vips, counts)
            if error == 0:
                error = count_flows(fd, AF_INET6, buffer, &settings.guard.vips, counts)
        if error < 0:
            raise DeviceError(f"cannot list TCP sockets: {describe(-error)}")
        return [counts[i] for i in range(n)]
    finally:
        if fd >= 0:
            close(fd)
        free(counts)
        free(buffer)
