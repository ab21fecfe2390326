"""What a host's stack gets to see: packets for the VIPs at its INPUT hook, taken out there so that no socket does."""

from __future__ import annotations

import select
import socket
import struct
import time

from tests.netns.agents import VIP4, VIP6
from tests.netns.topology import Host

NETLINK_NETFILTER = 12
SO_RCVBUFFORCE = 33
SUBSYSTEM = 3 << 8  # NFNL_SUBSYS_QUEUE
PACKET, CONFIG, VERDICT_BATCH = 0, 2, 3  # of <linux/netfilter/nfnetlink_queue.h>, as what follows
PACKET_HDR, PAYLOAD, VERDICT_HDR = 1, 10, 2
CFG_CMD, CFG_PARAMS, CFG_QUEUE_MAXLEN = 1, 2, 3
REQUEST, ACK = 1, 4
NLMSG_ERROR = 2
DROP = 0
QUEUE = 77


class Intake:
    """A queue of its own, NFQUEUE number 77. `except_from`: interface whose packets reach the stack as always."""

    def __init__(self, host: Host, except_from: str) -> None:
        with host.inside():
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER)
        self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 24)
        self._socket.bind((0, 0))
        self._configure(CFG_CMD, struct.pack(">BxH", 1, 0))  # bind
        self._configure(CFG_PARAMS, struct.pack(">IB", 0xFFFF, 2))  # whole packets
        self._configure(CFG_QUEUE_MAXLEN, struct.pack(">I", 16384))
        for command, vip in (("iptables-legacy", VIP4), ("ip6tables-legacy", VIP6)):
            rule = ("INPUT", "!", "-i", except_from, "-d", vip, "-j", "NFQUEUE", "--queue-num", str(QUEUE))
            host.run(command, "-w", "-A", *rule)

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def take(self, last: bytes, within_s: float = 10.0) -> list[bytes]:
        """Packets in the order of their arrival, until the one that is `last`, which is left out."""
        packets: list[bytes] = []
        deadline = time.monotonic() + within_s
        while select.select([self], [], [], max(0.0, deadline - time.monotonic()))[0]:
            number, packet = self._read(self._socket.recv(1 << 17))
            self._send(VERDICT_BATCH, _attribute(VERDICT_HDR, struct.pack(">II", DROP, number)), 0)
            if packet == last:
                return packets
            packets.append(packet)
        raise AssertionError(f"the last packet has not come within {within_s} s, but {len(packets)} others")

    @staticmethod
    def _read(message: bytes) -> tuple[int, bytes]:
        length, kind = struct.unpack_from("=IH", message)
        assert kind == SUBSYSTEM | PACKET, message[:32].hex()
        number, packet, at = 0, b"", 20
        while at + 4 <= length:
            size, attribute = struct.unpack_from("=HH", message, at)
            if attribute & 0x3FFF == PACKET_HDR:
                (number,) = struct.unpack_from(">I", message, at + 4)
            elif attribute & 0x3FFF == PAYLOAD:
                packet = message[at + 4 : at + size]
            at += (size + 3) & ~3
        return number, packet

    def _configure(self, attribute: int, value: bytes) -> None:
        self._send(CONFIG, _attribute(attribute, value), ACK)
        kind, error = struct.unpack_from("=H10xi", self._socket.recv(4096), 4)
        assert (kind, error) == (NLMSG_ERROR, 0), f"NFQUEUE attribute {attribute}: errno {-error}"

    def _send(self, kind: int, attribute: bytes, flags: int) -> None:
        header = struct.pack("=IHHII", 20 + len(attribute), SUBSYSTEM | kind, REQUEST | flags, 0, 0)
        self._socket.send(header + struct.pack(">BBH", 0, 0, QUEUE) + attribute)


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)
