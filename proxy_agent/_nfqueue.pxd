"""NFQUEUE spoken over raw netlink: reading a packet message, building a verdict, configuring a queue. Inline leaves, nogil."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memset

from glb._wire cimport Cursor, left, load_be32, store_be16, store_be32, take

from proxy_agent._diag cimport NLM_F_ACK, NLM_F_REQUEST, iovec, nlattr, nlmsghdr


cdef extern from "<linux/netfilter/nfnetlink.h>" nogil:
    struct nfgenmsg:
        uint8_t nfgen_family
        uint8_t version
        uint16_t res_id
    enum:
        NFNL_SUBSYS_QUEUE
        NFNETLINK_V0

cdef extern from "<linux/netfilter/nfnetlink_queue.h>" nogil:
    enum:
        NFQNL_MSG_PACKET
        NFQNL_MSG_VERDICT
        NFQNL_MSG_CONFIG
        NFQA_PACKET_HDR
        NFQA_VERDICT_HDR
        NFQA_PAYLOAD
        NFQA_CFG_CMD
        NFQA_CFG_PARAMS
        NFQA_CFG_QUEUE_MAXLEN
        NFQNL_CFG_CMD_BIND
        NFQNL_CFG_CMD_UNBIND
        NFQNL_COPY_PACKET

cdef extern from "<linux/netfilter.h>" nogil:
    enum:
        NF_DROP
        NF_ACCEPT


cdef enum:
    COPY_BYTES = 0xffff      # the most that NFQUEUE hands over: any tunnel packet
    RECEIVE_BYTES = 66560    # a packet of 65,535 bytes with the attributes around it
    QUEUE_PACKETS = 16384    # kernel side; 1,024, the default, overflows in one burst of a fast sender
    VERDICT_BYTES = 32       # netlink header, nfgenmsg, verdict attribute
    CONFIG_BYTES = 64


cdef packed struct VerdictMessage:
    nlmsghdr header
    nfgenmsg queue
    nlattr verdict_attribute
    uint8_t verdict_be[4]
    uint8_t packet_id_be[4]
    nlattr payload_attribute  # only sent when the packet was rewritten


cdef inline uint8_t* read_packet(uint8_t* message, size_t length, size_t* packet_length, uint32_t* packet_id) noexcept nogil:
    """The IP packet of one netlink message, and its queue's number for it; NULL if the message carries none."""
    cdef Cursor cursor
    cdef const nlmsghdr* header = <const nlmsghdr*>message
    cdef const nlattr* attribute
    cdef const uint8_t* value
    cdef uint8_t* packet = NULL
    cdef size_t padding
    cdef bint numbered = False
    if length < sizeof(nlmsghdr) + sizeof(nfgenmsg) or header.nlmsg_type != (NFNL_SUBSYS_QUEUE << 8 | NFQNL_MSG_PACKET):
        return NULL
    cursor.at = message + sizeof(nlmsghdr) + sizeof(nfgenmsg)
    cursor.end = message + length
    while True:
        attribute = <const nlattr*>take(&cursor, sizeof(nlattr))
        if attribute == NULL or attribute.nla_len < sizeof(nlattr):
            break
        value = take(&cursor, attribute.nla_len - sizeof(nlattr))
        if value == NULL:
            break
        if attribute.nla_type & 0x3fff == NFQA_PACKET_HDR and attribute.nla_len >= sizeof(nlattr) + 4:
            packet_id[0] = load_be32(value)
            numbered = True
        elif attribute.nla_type & 0x3fff == NFQA_PAYLOAD:
            packet = <uint8_t*>value
            packet_length[0] = attribute.nla_len - sizeof(nlattr)
        padding = -attribute.nla_len & 3
        take(&cursor, padding)
    return packet if numbered else NULL


cdef inline int put_verdict(VerdictMessage* message, iovec* vectors, uint16_t queue_be, uint32_t packet_id, uint32_t verdict,
                            uint8_t* packet, size_t length) noexcept nogil:
    """One verdict into up to 3 vectors; how many. `packet` replaces the queued packet (NULL: it stays as it is)."""
    memset(message, 0, sizeof(VerdictMessage))
    message.header.nlmsg_type = NFNL_SUBSYS_QUEUE << 8 | NFQNL_MSG_VERDICT
    message.header.nlmsg_flags = NLM_F_REQUEST
    message.header.nlmsg_len = VERDICT_BYTES
    message.queue.version = NFNETLINK_V0
    message.queue.res_id = queue_be
    message.verdict_attribute.nla_len = 12
    message.verdict_attribute.nla_type = NFQA_VERDICT_HDR
    store_be32(message.verdict_be, verdict)
    store_be32(message.packet_id_be, packet_id)
    vectors[0].iov_base = message
    vectors[0].iov_len = VERDICT_BYTES
    if packet == NULL:
        return 1
    message.payload_attribute.nla_len = <uint16_t>(sizeof(nlattr) + length)
    message.payload_attribute.nla_type = NFQA_PAYLOAD
    message.header.nlmsg_len = <uint32_t>(sizeof(VerdictMessage) + length)
    vectors[0].iov_len = sizeof(VerdictMessage)
    vectors[1].iov_base = packet
    vectors[1].iov_len = length
    # The next message starts at a multiple of 4; what the padding holds does not matter, so it is our own header.
    vectors[2].iov_base = message
    vectors[2].iov_len = -length & 3
    return 3


cdef inline size_t put_config(uint8_t* buffer, uint16_t queue_num, int command, uint32_t sequence) noexcept nogil:
    """A configuration message (NFQA_CFG_CMD of `command`; on bind also copy mode and queue length); its bytes. The flags stay
    off: no GSO packets (the kernel cuts them and completes checksums), no conntrack, and no fail-open, which would hand
    tunnel packets to a host that has no use for them."""
    cdef nlmsghdr* header = <nlmsghdr*>buffer
    cdef nfgenmsg* queue = <nfgenmsg*>(header + 1)
    cdef nlattr* attribute = <nlattr*>(queue + 1)
    cdef uint8_t* value
    memset(buffer, 0, CONFIG_BYTES)
    header.nlmsg_type = NFNL_SUBSYS_QUEUE << 8 | NFQNL_MSG_CONFIG
    header.nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK
    header.nlmsg_seq = sequence
    queue.version = NFNETLINK_V0
    store_be16(<uint8_t*>&queue.res_id, queue_num)
    attribute.nla_len = 8
    attribute.nla_type = NFQA_CFG_CMD
    value = <uint8_t*>(attribute + 1)
    value[0] = <uint8_t>command  # the protocol family behind it has meant nothing since Linux 3.8
    header.nlmsg_len = sizeof(nlmsghdr) + sizeof(nfgenmsg) + 8
    if command == NFQNL_CFG_CMD_BIND:
        attribute = <nlattr*>(buffer + header.nlmsg_len)
        attribute.nla_len = 9
        attribute.nla_type = NFQA_CFG_PARAMS
        value = <uint8_t*>(attribute + 1)
        store_be32(value, COPY_BYTES)
        value[4] = NFQNL_COPY_PACKET
        attribute = <nlattr*>(<uint8_t*>attribute + 12)
        attribute.nla_len = 8
        attribute.nla_type = NFQA_CFG_QUEUE_MAXLEN
        store_be32(<uint8_t*>(attribute + 1), QUEUE_PACKETS)
        header.nlmsg_len += 20
    return header.nlmsg_len
