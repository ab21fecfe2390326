"""The second chance, one decision per tunnel packet: accept, bounce or drop. And the NFQUEUE loop that carries it out.

In packet order: `first_look` (_judge.pxd) reads the packet (_tunnel.pxd) and recalls its flow (_memory.pxd); what is still open is
asked of the kernel's socket table, a batch at once (_diag.pxd), and what reaches a listener of its judgement of SYN cookies
(_cookie.pxd); `second_look` (_judge.pxd) turns the answers into a reason. `Engine` sets up the loop (_loop.pxd) that runs this over NFQUEUE (_nfqueue.pxd); `decide` runs it over one packet with a socket table of the
caller's, for tests and for explaining. The per-packet code never raises and touches no Python object: one `with nogil` until
somebody interrupts the loop.
"""

import errno as errno_names
import ipaddress
import os
import threading

from libc.errno cimport errno
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset
from posix.unistd cimport close

from glb._siphash cimport sip_key
from glb._wire cimport load_be16, store_be16
from proxy_agent._cookie cimport *
from proxy_agent._addresses cimport fill_set, free_set
from proxy_agent._diag cimport *
from proxy_agent._judge cimport *
from proxy_agent._loop cimport *
from proxy_agent._memory cimport *
from proxy_agent._nfqueue cimport *
from proxy_agent._tunnel cimport *

from glb.errors import DeviceError
from proxy_agent.decide import REASONS, Decision

assert len(REASONS) == N_REASONS  # decide.REASONS and `Why` are one table in two languages

STATES = {
    "none": TCP_STATE_NONE, "established": 1, "syn_sent": 2, "syn_recv": 3, "fin_wait1": 4, "fin_wait2": 5, "time_wait": 6,
    "close_wait": 8, "last_ack": 9, "listen": TCP_STATE_LISTEN, "closing": 11, "unknown": TCP_STATE_UNKNOWN,
}
_STATE_NAMES = {number: name for name, number in STATES.items()}
DEFAULT_REMEMBER_MS = 2000

# -- settings ----------------------------------------------------------------------------------------------------------

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
        free_set(&self.guard.sources)
        free_set(&self.guard.vips)
        free_set(&self.guard.own)


cdef class Recollection:
    """The tables of _memory.pxd, with a hash key of their own. `n_sets`, `n_slots`: their sizes, powers of two; `n_slots` 0: SYNs
    are not remembered."""

    cdef Memory memory

    def __cinit__(self, uint64_t n_sets=64, uint64_t n_slots=1024):
        cdef bytes key = os.urandom(16)
        self.memory.key = sip_key(<const uint8_t*><char*>key)
        self.memory.recent = <RecentEntry*>calloc(n_sets * RECENT_WAYS, sizeof(RecentEntry))
        self.memory.cookies = <RecentEntry*>calloc(n_sets * RECENT_WAYS, sizeof(RecentEntry))
        self.memory.syns = <SynEntry*>calloc(n_slots + 1, sizeof(SynEntry))
        self.memory.n_sets = n_sets
        self.memory.n_slots = n_slots
        if self.memory.recent == NULL or self.memory.cookies == NULL or self.memory.syns == NULL:
            raise MemoryError()

    def __dealloc__(self):
        free(self.memory.recent)
        free(self.memory.cookies)
        free(self.memory.syns)


cdef class Sockets:
    """The TCP sockets of this network namespace, as the engine asks for them, one flow at a time: call it like `decide` does."""

    cdef LookUps* look_ups

    def __init__(self, ifindex):
        self.look_ups = <LookUps*>calloc(1, sizeof(LookUps))
        if self.look_ups == NULL:
            raise MemoryError()
        prepare_look_ups(self.look_ups)
        self.look_ups.ifindex = ifindex
        self.look_ups.fd = open_netlink(NETLINK_SOCK_DIAG, 1 << 16, 1 << 16)
        if self.look_ups.fd < 0:
            raise DeviceError(f"cannot ask for TCP sockets (NETLINK_SOCK_DIAG): {describe(errno)}; the kernel needs CONFIG_INET_DIAG")

    def __call__(self, int family, bytes local, uint16_t local_port, bytes remote, uint16_t remote_port):
        """State of the flow's socket, a key of `STATES`. Addresses packed, ports in host order."""
        cdef uint8_t ours[16]
        cdef uint8_t theirs[16]
        cdef uint8_t ports[4]
        cdef Flow flow
        memcpy(ours, <const char*>local, 4 if family == 4 else 16)
        memcpy(theirs, <const char*>remote, 4 if family == 4 else 16)
        store_be16(ports, local_port)
        store_be16(ports + 2, remote_port)
        set_flow(&flow, family, ours, theirs, ports, ports + 2)
        self.look_ups.count = 0
        ask_about(self.look_ups, &flow)
        ask_kernel(self.look_ups)
        return _STATE_NAMES[self.look_ups.states[0]]

    def __dealloc__(self):
        if self.look_ups != NULL:
            if self.look_ups.fd >= 0:
                close(self.look_ups.fd)
            free(self.look_ups)


def valid_cookies(int program_fd, uint32_t ifindex, questions):
    """Which of up to 32 questions (struct glb_cookie_question, bytes) acknowledge a SYN cookie: a list of bool.

    `program_fd`: bpf/syncookie.bpf.c. `ifindex`: the interface that the segments came in by. DeviceError if it does not run."""
    cdef CookieFrame frame
    cdef uint32_t answers = 0
    memset(&frame, 0, sizeof(frame))
    for i, question in enumerate(questions):
        if i >= GLB_COOKIE_QUESTIONS or len(question) != sizeof(glb_cookie_question):
            raise ValueError(f"at most {GLB_COOKIE_QUESTIONS} questions of {sizeof(glb_cookie_question)} bytes")
        memcpy(&frame.questions[i], <const char*>question, sizeof(glb_cookie_question))
    cdef int result = run_cookie_program(program_fd, ifindex, &frame, len(questions), &answers)
    if result < 0:
        raise DeviceError(f"the kernel does not run the SYN cookie program: {describe(-result)}")
    return [bool(answers >> i & 1) for i in range(len(questions))]


# -- the decision ------------------------------------------------------------------------------------------------------

def decide(packet, Settings settings not None, sockets=None, *, Recollection recollection=None, cookies_in_use=False,
           answers_cookie=None, uint32_t now_ms=1, uint32_t remember_ms=0):
    """Judge one tunnel packet (bytes from the outer IPv4 header on) as the engine does.

    `sockets(family, local, local_port, remote, remote_port)` answers for the kernel's TCP table: addresses as packed bytes, ports
    in host order; it returns a key of `STATES`. Absent: no socket at all. `answers_cookie(question)` answers for the kernel's SYN
    cookies, a struct glb_cookie_question as bytes; absent: judged by the SYNs of `recollection` while `cookies_in_use`.
    `recollection` carries memory from call to call.
    """
    # Exactly as long as the packet: AddressSanitizer notices a byte read beyond (GLB_CYTHON_DEBUG=1).
    cdef bytes given = bytes(packet)
    cdef size_t length = len(given)
    cdef uint8_t* buffer = <uint8_t*>calloc(length if length else 1, 1)
    cdef Tunnel t
    cdef uint64_t tag = 0
    cdef int hop = -1, state = TCP_STATE_NONE
    cdef glb_cookie_question question
    cdef Cookie cookie = NO_COOKIE
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
            if state == TCP_STATE_LISTEN and may_answer_cookie(&t):
                put_question(&question, &t)
                if (answers_cookie((<const char*>&question)[:sizeof(question)]) if answers_cookie is not None
                        else cookies_in_use and follows_syn(m, tag, t.tcp_seq, now_ms)):
                    cookie = VALID_COOKIE
            why = second_look(&settings.guard, m, &t, tag, state, cookie, now_ms, remember_ms, &hop)
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

cdef describe(int error):
    return f"{os.strerror(error)} ({errno_names.errorcode.get(error, error)})"


cdef class Engine:
    """One NFQUEUE, judged in one thread: `open`, then `run` in a thread of its own until `stop`.

    `ifindex`: the interface that tunnel packets come in by. `tun_fd`: TUN device for inner packets that cannot go on in place, not
    owned. `remember_ms`: how long a positive answer is believed (0: ask every time). `cookie_program`: bpf/syncookie.bpf.c, not
    owned; -1: SYN cookies are judged by the SYNs that this engine remembers.
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
        self.loop.queue_fd = self.loop.wake_fd = self.loop.tun_fd = self.loop.netstat_fd = self.loop.questions.program_fd = -1
        self.loop.look_ups_of_batch.fd = -1
        self.loop.buffers = <uint8_t*>calloc(MAX_BATCH, RECEIVE_BYTES)
        if self.loop.buffers == NULL:
            raise MemoryError()

    def __init__(self, queue_num, ifindex, Settings settings not None, tun_fd=-1, *, remember_ms=DEFAULT_REMEMBER_MS, batch=MAX_BATCH,
                 accept_all=False, cookie_program=-1):
        self.queue_num = queue_num
        self.settings = settings
        self.recollection = Recollection(RECENT_SETS, SYN_SLOTS if cookie_program < 0 else 0)
        self.loop.tun_fd = tun_fd
        self.loop.batch = max(1, min(batch, MAX_BATCH))
        self.loop.remember_ms = remember_ms
        self.loop.accept_all = accept_all
        self.loop.look_ups_of_batch.ifindex = self.loop.questions.ifindex = ifindex
        self.loop.questions.program_fd = cookie_program
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
        # What is lost for want of socket memory is counted by the kernel (metrics.queue_state); an error per loss helps nobody.
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
        """SYN cookies show in SyncookiesSent. Without it an agent that judges them by remembered SYNs bounces their answers."""
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
        """Counters of the loop itself: look_ups, recalled, cookies_judged, verdict_errors; whether SYN cookies are in use."""
        return {
            "look_ups": self.loop.look_ups,
            "recalled": self.loop.recalled,
            "cookies_judged": self.loop.cookies_judged,
            "verdict_errors": self.loop.verdict_errors,
            "syn_cookies_in_use": bool(self.loop.cookies),
        }
