"""SYN cookies: the kernel's own judgement of a batch of segments, through bpf/syncookie.bpf.c. Inline leaves, nogil."""

from libc.errno cimport EINTR, errno
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from proxy_agent._diag cimport MAX_BATCH
from proxy_agent._tunnel cimport IPV6_BYTES, MIN_IPV4_BYTES, TCP_ACK, TCP_BYTES, TCP_FIN, TCP_RST, TCP_SYN, Tunnel


cdef extern from "glb_verdicts.h" nogil:
    enum:
        GLB_COOKIE_QUESTIONS
    struct glb_cookie_question:
        uint8_t ip[40]
        uint8_t tcp[20]

cdef extern from "<unistd.h>" nogil:
    long syscall(long number, ...)

cdef extern from "<sys/syscall.h>" nogil:
    enum:
        SYS_bpf

cdef extern from "<linux/bpf.h>" nogil:
    enum:
        BPF_PROG_TEST_RUN
    struct __sk_buff:
        uint32_t ifindex
    struct bpf_attr_test:  # in C it has no name; only its fields are used
        uint32_t prog_fd
        uint32_t retval
        uint32_t data_size_in
        uint64_t data_in
        uint32_t ctx_size_in
        uint64_t ctx_in
    union bpf_attr:
        bpf_attr_test test


cdef enum:
    ETHERNET_BYTES = 14
    CALLS = 2                # MAX_BATCH questions, GLB_COOKIE_QUESTIONS of them in a call


cdef enum Cookie:
    NO_COOKIE
    VALID_COOKIE
    UNKNOWN_COOKIE           # the kernel did not answer


cdef packed struct CookieFrame:
    uint8_t ethernet[ETHERNET_BYTES]  # what a test run wants in front; means nothing
    glb_cookie_question questions[GLB_COOKIE_QUESTIONS]


cdef struct CookieQuestions:
    int program_fd           # -1: no eBPF here, then SYNs are remembered (_memory.pxd); not owned
    uint32_t ifindex         # where the packets come in: listeners bound to another device do not count
    uint32_t count
    Cookie answers[MAX_BATCH]
    CookieFrame frames[CALLS]


cdef inline bint may_answer_cookie(const Tunnel* t) noexcept nogil:
    return not t.is_error and t.tcp_flags & (TCP_ACK | TCP_SYN | TCP_FIN | TCP_RST) == TCP_ACK


cdef inline void put_question(glb_cookie_question* question, const Tunnel* t) noexcept nogil:
    """The headers of a TCP segment that `may_answer_cookie`."""
    memset(question, 0, sizeof(glb_cookie_question))
    memcpy(question.ip, t.start + t.inner_at, MIN_IPV4_BYTES if t.family == 4 else IPV6_BYTES)
    memcpy(question.tcp, t.start + t.tcp_at, TCP_BYTES)


cdef inline uint32_t ask_about_cookie(CookieQuestions* questions, const Tunnel* t) noexcept nogil:
    """Put a segment on the list; its index, to read the answer at after `ask_for_cookies`. At most MAX_BATCH a batch."""
    cdef uint32_t index = questions.count
    put_question(&questions.frames[index // GLB_COOKIE_QUESTIONS].questions[index % GLB_COOKIE_QUESTIONS], t)
    questions.count = index + 1
    return index


cdef inline int run_cookie_program(int program_fd, uint32_t ifindex, CookieFrame* frame, uint32_t n, uint32_t* answers) noexcept nogil:
    """`n` questions to the kernel: bit i of `answers` is the answer to question i. 0, or -errno."""
    cdef bpf_attr attributes
    cdef __sk_buff context
    memset(&attributes, 0, sizeof(attributes))
    memset(&context, 0, sizeof(context))
    context.ifindex = ifindex
    attributes.test.prog_fd = program_fd
    attributes.test.data_in = <uint64_t>frame
    attributes.test.data_size_in = ETHERNET_BYTES + n * sizeof(glb_cookie_question)
    attributes.test.ctx_in = <uint64_t>&context
    attributes.test.ctx_size_in = sizeof(context)
    while syscall(SYS_bpf, BPF_PROG_TEST_RUN, &attributes, sizeof(attributes)) < 0:
        if errno != EINTR:
            return -errno
    answers[0] = attributes.test.retval
    return 0


cdef inline void ask_for_cookies(CookieQuestions* questions) noexcept nogil:
    """Answers to all questions on the list, 32 in a call. One in a call takes 2.6 us, 32 take 6 to 9."""
    cdef int call
    cdef uint32_t i, n, bits
    cdef bint answered
    cdef Cookie* answers
    for call in range(CALLS):
        n = call * GLB_COOKIE_QUESTIONS
        if questions.count <= n:
            return
        n = min(questions.count - n, <uint32_t>GLB_COOKIE_QUESTIONS)
        answers = &questions.answers[call * GLB_COOKIE_QUESTIONS]
        bits = 0
        answered = run_cookie_program(questions.program_fd, questions.ifindex, &questions.frames[call], n, &bits) == 0
        for i in range(n):
            answers[i] = UNKNOWN_COOKIE if not answered else VALID_COOKIE if bits >> i & 1 else NO_COOKIE
