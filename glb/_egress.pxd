"""Interfaces that tunnel packets leave by, other than the one they came in by: their entries, and sending there.

An AF_XDP socket sends on its own interface only, so what leaves by another one goes by a packet socket, which copies.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy

from glb._fastpath cimport GLB_MAX_EGRESSES, GLB_NEXT_HOP_EGRESS_BIT, glb_egress, glb_generation


# ---- entries -------------------------------------------------------------------------------------------------------

cdef inline uint32_t egress_index(glb_generation* generation, uint32_t n_backends, uint32_t* last, uint32_t ifindex,
                                  const uint8_t* source_mac, bint redirects) noexcept:
    """The entry that says this, filled in if there was none; 0: all are in use. `last`: the one filled in last, in and out.

    Entries are used in turn: a packet may still be on its way by one that no next hop names any more.
    """
    cdef glb_egress* entry
    cdef uint32_t i, index
    for index in range(1, GLB_MAX_EGRESSES):
        entry = &generation.egresses[index]
        if entry.ifindex == ifindex and entry.redirects == redirects and memcmp(entry.source_mac, source_mac, 6) == 0:
            return index
    for i in range(GLB_MAX_EGRESSES - 1):
        index = 1 + (last[0] + i) % (GLB_MAX_EGRESSES - 1)
        if not is_named(generation, n_backends, index):
            entry = &generation.egresses[index]
            entry.ifindex = ifindex
            memcpy(entry.source_mac, source_mac, 6)
            entry.redirects = redirects
            last[0] = index
            return index
    return 0


cdef inline bint is_named(const glb_generation* generation, uint32_t n_backends, uint32_t index) noexcept:
    """Whether a next hop leaves by it."""
    cdef uint32_t i
    for i in range(n_backends):
        if generation.backends[i].next_hop >> GLB_NEXT_HOP_EGRESS_BIT == index:
            return True
    return False


# ---- sending -------------------------------------------------------------------------------------------------------

cdef extern from *:
    """
    #include <arpa/inet.h>
    #include <errno.h>
    #include <linux/if_ether.h>
    #include <linux/if_packet.h>
    #include <string.h>
    #include <sys/socket.h>

    #define GLB_EGRESS_FRAMES 64
    #define GLB_EGRESS_ATTEMPTS 8             /* a batch, where the interface is behind; what is left then is refused */
    #define GLB_EGRESS_BUFFER_BYTES (4 << 20) /* so that a driver may be slow to give frames back */

    struct glb_departures {
        struct mmsghdr messages[GLB_EGRESS_FRAMES];
        struct iovec frames[GLB_EGRESS_FRAMES];
        struct sockaddr_ll to[GLB_EGRESS_FRAMES];
        unsigned n;
    };

    /* File descriptor, or minus the errno. It receives nothing, and sends past the queueing discipline, as AF_XDP does. */
    static inline int glb_open_egress(void)
    {
        int on = 1, bytes = GLB_EGRESS_BUFFER_BYTES, fd = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0);

        if (fd < 0)
            return -errno;
        setsockopt(fd, SOL_PACKET, PACKET_QDISC_BYPASS, &on, sizeof on);
        if (setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &bytes, sizeof bytes) < 0)
            setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &bytes, sizeof bytes);
        return fd;
    }

    static inline void glb_depart(struct glb_departures *departures, void *frame, unsigned length, unsigned ifindex)
    {
        unsigned i = departures->n++;
        struct sockaddr_ll *to = &departures->to[i];
        struct msghdr *message = &departures->messages[i].msg_hdr;

        departures->frames[i] = (struct iovec){frame, length};
        memset(to, 0, sizeof *to);
        to->sll_family = AF_PACKET;
        to->sll_protocol = htons(ETH_P_IP);
        to->sll_ifindex = ifindex;
        memset(message, 0, sizeof *message);
        message->msg_name = to;
        message->msg_namelen = sizeof *to;
        message->msg_iov = &departures->frames[i];
        message->msg_iovlen = 1;
    }

    /* Sends all, in order; how many the kernel refused: the interface is behind, down, gone, or its MTU is too small. */
    static inline unsigned glb_send_departures(int fd, struct glb_departures *departures)
    {
        unsigned done = 0, refused = 0, attempts = GLB_EGRESS_ATTEMPTS;

        while (done < departures->n) {
            int sent = sendmmsg(fd, departures->messages + done, departures->n - done, MSG_DONTWAIT);

            if (sent > 0) {
                done += sent;
            } else if ((errno == EAGAIN || errno == ENOBUFS) && attempts) {
                attempts--;
            } else if (errno != EINTR) {
                refused++;
                done++;
            }
        }
        departures->n = 0;
        return refused;
    }
    """
    enum:
        GLB_EGRESS_FRAMES
    struct glb_departures:
        unsigned int n  # frames added and not sent yet; GLB_EGRESS_FRAMES at most
    int glb_open_egress() nogil
    void glb_depart(glb_departures* departures, void* frame, unsigned int length, unsigned int ifindex) nogil
    unsigned int glb_send_departures(int fd, glb_departures* departures) nogil
