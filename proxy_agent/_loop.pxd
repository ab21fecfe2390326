"""The verdict loop over one NFQUEUE: read a batch, judge it, answer it. Inline leaves, nogil; set up by `Engine` in _verdict.pyx."""

from libc.errno cimport EAGAIN, EINTR, ENOBUFS, errno
from libc.stdint cimport uint16_t, uint32_t, uint64_t, uint8_t
from libc.string cimport memchr, memset
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec
from posix.unistd cimport pread, write

from glb._wire cimport load_be32
from proxy_agent._cookie cimport *
from proxy_agent._diag cimport *
from proxy_agent._judge cimport first_look, fits_in_place, is_accept, second_look
from proxy_agent._memory cimport Memory, follows_syn, in_time
from proxy_agent._nfqueue cimport *
from proxy_agent._tunnel cimport *

cdef extern from "<poll.h>" nogil:
    struct pollfd:
        int fd
        short events
        short revents
    int poll(pollfd* fds, unsigned long count, int timeout_ms)
    enum:
        POLLIN


cdef enum:
    NETSTAT_BYTES = 16384    # /proc/net/netstat is about 4 KiB
    COOKIES_FOR_MS = 10000   # cookies count as in use this long after the last one was sent
    IDLE_MS = 1000
    RETURN_NOW = 1           # values of Loop.interrupted
    RETURN_WHEN_EMPTY = 2
    SOCKET_BYTES = 33554432  # asked for; a batch of the longest packets is 4 MiB of verdicts


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
    uint64_t cookies_judged            # segments to a listener that might have answered a SYN cookie
    uint64_t verdict_errors            # the kernel refused a verdict
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
    uint32_t asked_cookies[MAX_BATCH]  # index of the packet's question
    CookieQuestions questions          # of the batch


cdef inline uint32_t clock_ms() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return <uint32_t>(<uint64_t>now.tv_sec * 1000 + <uint64_t>now.tv_nsec // 1000000)


cdef inline void watch_cookies(Loop* loop, uint32_t now_ms) noexcept nogil:
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


cdef inline Cookie recall_syn(Loop* loop, Memory* memory, int i, bint* watched, uint32_t now_ms) noexcept nogil:
    """Where the kernel does not judge cookies: whether packet `i` follows a SYN of lately while the kernel sends cookies."""
    if not follows_syn(memory, loop.tags[i], loop.tunnels[i].tcp_seq, now_ms):
        return NO_COOKIE
    if not loop.cookies and not watched[0]:
        # The first cookies of a flood may be newer than what we know: ask before bouncing their answers away.
        watched[0] = True
        watch_cookies(loop, now_ms)
    return VALID_COOKIE if loop.cookies else NO_COOKIE


cdef inline void judge_batch(Loop* loop, const Guard* guard, Memory* memory, int n, uint32_t now_ms) noexcept nogil:
    """Verdicts for the packets 0..n-1, in their order, with at most two rounds of questions to the kernel: sockets, cookies."""
    cdef LookUps* look_ups = &loop.look_ups_of_batch
    cdef CookieQuestions* questions = &loop.questions
    cdef int i, hop, state
    cdef uint32_t k
    cdef bint watched = False
    cdef Cookie cookie
    look_ups.count = questions.count = 0
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
        elif loop.whys[i] == WHY_ESTABLISHED or loop.whys[i] == WHY_ICMP_ERROR:
            loop.recalled += 1
    if look_ups.count:
        ask_kernel(look_ups)
        loop.look_ups += look_ups.count
    if look_ups.count and questions.program_fd >= 0:
        for i in range(n):
            if (loop.whys[i] == WHY_LOOK_UP and look_ups.states[loop.asked[i]] == TCP_STATE_LISTEN
                    and may_answer_cookie(&loop.tunnels[i])):
                loop.asked_cookies[i] = ask_about_cookie(questions, &loop.tunnels[i])
        ask_for_cookies(questions)
    for i in range(n):
        hop = -1
        if loop.whys[i] == WHY_LOOK_UP:
            state = look_ups.states[loop.asked[i]]
            cookie = NO_COOKIE
            if state == TCP_STATE_LISTEN and may_answer_cookie(&loop.tunnels[i]):
                loop.cookies_judged += 1
                cookie = (questions.answers[loop.asked_cookies[i]] if questions.program_fd >= 0
                          else recall_syn(loop, memory, i, &watched, now_ms))
            loop.whys[i] = second_look(guard, memory, &loop.tunnels[i], loop.tags[i], state, cookie, now_ms,
                                       loop.remember_ms, &hop)
        conclude(loop, i, loop.whys[i], hop)


cdef inline int serve(Loop* loop, const Guard* guard, Memory* memory) noexcept nogil:
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
            elif errno != ENOBUFS and errno != EINTR:  # the kernel counts what the socket lost (socket_full)
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
