"""The kernel's TCP socket table, asked over NETLINK_SOCK_DIAG: exact look-ups in batches. Inline leaves, nogil."""

from libc.errno cimport EINTR, ENOENT, errno
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset
from posix.time cimport timespec
from posix.unistd cimport close

from proxy_agent._tunnel cimport Flow


cdef extern from "<sys/socket.h>" nogil:
    struct iovec:
        void* iov_base
        size_t iov_len
    struct msghdr:
        void* msg_name
        unsigned int msg_namelen
        iovec* msg_iov
        size_t msg_iovlen
        void* msg_control
        size_t msg_controllen
        int msg_flags
    struct mmsghdr:
        msghdr msg_hdr
        unsigned int msg_len
    enum:
        AF_INET
        AF_INET6
        AF_NETLINK
        SOCK_RAW
        SOCK_CLOEXEC
        SOL_SOCKET
        SO_RCVBUF
        SO_RCVBUFFORCE
        SO_SNDBUF
        SO_SNDBUFFORCE
        MSG_DONTWAIT
        MSG_TRUNC
    int socket(int domain, int type, int protocol)
    struct sockaddr:
        pass
    int bind(int fd, const sockaddr* address, unsigned int length)
    int setsockopt(int fd, int level, int name, const void* value, unsigned int length)
    ssize_t send(int fd, const void* data, size_t length, int flags)
    ssize_t sendmsg(int fd, const msghdr* message, int flags)
    ssize_t recv(int fd, void* data, size_t length, int flags)
    int recvmmsg(int fd, mmsghdr* messages, unsigned int count, int flags, timespec* timeout)

cdef extern from "<linux/netlink.h>" nogil:
    struct sockaddr_nl:
        unsigned short nl_family
    struct nlmsghdr:
        uint32_t nlmsg_len
        uint16_t nlmsg_type
        uint16_t nlmsg_flags
        uint32_t nlmsg_seq
        uint32_t nlmsg_pid
    struct nlmsgerr:
        int error
    struct nlattr:
        uint16_t nla_len
        uint16_t nla_type
    enum:
        NETLINK_SOCK_DIAG
        NETLINK_NETFILTER
        NLM_F_REQUEST
        NLM_F_ACK
        NLM_F_DUMP
        NLMSG_ERROR
        NLMSG_DONE
        SOL_NETLINK
        NETLINK_NO_ENOBUFS

cdef extern from "<linux/sock_diag.h>" nogil:
    enum:
        SOCK_DIAG_BY_FAMILY

cdef extern from "<linux/inet_diag.h>" nogil:
    struct inet_diag_sockid:
        uint16_t idiag_sport
        uint16_t idiag_dport
        uint32_t idiag_src[4]
        uint32_t idiag_dst[4]
        uint32_t idiag_if
        uint32_t idiag_cookie[2]
    struct inet_diag_req_v2:
        uint8_t sdiag_family
        uint8_t sdiag_protocol
        uint8_t idiag_ext
        uint8_t pad
        uint32_t idiag_states
        inet_diag_sockid id
    struct inet_diag_msg:
        uint8_t idiag_family
        uint8_t idiag_state
        uint8_t idiag_timer
        uint8_t idiag_retrans
        inet_diag_sockid id
        uint32_t idiag_inode


cdef enum:
    MAX_BATCH = 64           # packets of one batch, and so look-ups of one request
    DIAG_REPLY_BYTES = 1024  # an answer without extensions is about 150 bytes
    TCP_STATE_NONE = 0       # no socket at all
    TCP_STATE_FIN_WAIT2 = 5
    TCP_STATE_LISTEN = 10
    TCP_STATE_UNKNOWN = 255  # the kernel did not answer


cdef struct DiagRequest:
    nlmsghdr header
    inet_diag_req_v2 request


cdef struct LookUps:
    int fd                               # NETLINK_SOCK_DIAG; owned by the Engine
    uint32_t ifindex                     # where the packets come in: sockets bound to another device do not match
    uint32_t sequence                    # of the first request of this batch
    uint32_t count
    DiagRequest requests[MAX_BATCH]
    uint8_t states[MAX_BATCH]            # answers: a TCP_STATE_* for each request
    mmsghdr messages[MAX_BATCH]
    iovec vectors[MAX_BATCH]
    uint8_t replies[MAX_BATCH][DIAG_REPLY_BYTES]


cdef inline int open_netlink(int protocol, int receive_bytes, int send_bytes) noexcept nogil:
    """A bound netlink socket with the given buffers (as far as the kernel lets us), or -1 with errno."""
    cdef sockaddr_nl address
    cdef int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, protocol)
    if fd < 0:
        return -1
    memset(&address, 0, sizeof(address))
    address.nl_family = AF_NETLINK
    if bind(fd, <sockaddr*>&address, sizeof(address)) != 0:
        close(fd)
        return -1
    if setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &receive_bytes, sizeof(int)) != 0:
        setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &receive_bytes, sizeof(int))
    if setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &send_bytes, sizeof(int)) != 0:
        setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &send_bytes, sizeof(int))
    return fd


cdef inline void prepare_look_ups(LookUps* look_ups) noexcept nogil:
    """Fill in what is the same in every batch."""
    cdef int i
    memset(look_ups.requests, 0, sizeof(look_ups.requests))
    memset(look_ups.messages, 0, sizeof(look_ups.messages))
    for i in range(MAX_BATCH):
        look_ups.requests[i].header.nlmsg_len = sizeof(DiagRequest)
        look_ups.requests[i].header.nlmsg_type = SOCK_DIAG_BY_FAMILY
        look_ups.requests[i].header.nlmsg_flags = NLM_F_REQUEST
        look_ups.requests[i].request.sdiag_protocol = 6
        look_ups.requests[i].request.idiag_states = 0xffffffff
        look_ups.requests[i].request.id.idiag_cookie[0] = 0xffffffff
        look_ups.requests[i].request.id.idiag_cookie[1] = 0xffffffff
        look_ups.vectors[i].iov_base = look_ups.replies[i]
        look_ups.vectors[i].iov_len = DIAG_REPLY_BYTES
        look_ups.messages[i].msg_hdr.msg_iov = &look_ups.vectors[i]
        look_ups.messages[i].msg_hdr.msg_iovlen = 1


cdef inline uint32_t ask_about(LookUps* look_ups, const Flow* flow) noexcept nogil:
    """Put one flow on the list; its index, to read the answer at after `ask_kernel`. At most MAX_BATCH a batch."""
    cdef uint32_t index = look_ups.count
    cdef inet_diag_req_v2* request = &look_ups.requests[index].request
    request.sdiag_family = AF_INET if flow.family == 4 else AF_INET6
    memcpy(&request.id.idiag_sport, flow.local_port_be, 2)
    memcpy(&request.id.idiag_dport, flow.remote_port_be, 2)
    memcpy(request.id.idiag_src, flow.local, 16)
    memcpy(request.id.idiag_dst, flow.remote, 16)
    request.id.idiag_if = look_ups.ifindex
    look_ups.count = index + 1
    return index


cdef inline void ask_kernel(LookUps* look_ups) noexcept nogil:
    """One request message with all look-ups; the kernel answers each while `send` runs. Unanswered: TCP_STATE_UNKNOWN."""
    cdef uint32_t i, answered = 0, index
    cdef int received, k
    cdef nlmsghdr* header
    cdef size_t length
    look_ups.sequence += MAX_BATCH
    for i in range(look_ups.count):
        look_ups.requests[i].header.nlmsg_seq = look_ups.sequence + i
        look_ups.states[i] = TCP_STATE_UNKNOWN
    while send(look_ups.fd, look_ups.requests, look_ups.count * sizeof(DiagRequest), 0) < 0:
        if errno != EINTR:
            return
    while answered < look_ups.count:
        received = recvmmsg(look_ups.fd, look_ups.messages, MAX_BATCH, MSG_DONTWAIT, NULL)
        if received <= 0:
            if received < 0 and errno == EINTR:
                continue
            return  # the kernel had no memory for an answer
        for k in range(received):
            header = <nlmsghdr*>look_ups.replies[k]
            length = look_ups.messages[k].msg_len
            if length < sizeof(nlmsghdr):
                continue
            index = header.nlmsg_seq - look_ups.sequence
            if index >= look_ups.count:
                continue  # late answer to an earlier batch
            if header.nlmsg_type == NLMSG_ERROR and length >= sizeof(nlmsghdr) + sizeof(nlmsgerr):
                if (<nlmsgerr*>(header + 1)).error == -ENOENT:
                    look_ups.states[index] = TCP_STATE_NONE
                answered += 1
            elif header.nlmsg_type == SOCK_DIAG_BY_FAMILY and length >= sizeof(nlmsghdr) + sizeof(inet_diag_msg):
                look_ups.states[index] = (<inet_diag_msg*>(header + 1)).idiag_state
                answered += 1
