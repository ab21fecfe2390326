"""Sends tunnel packets as a director does, and listens for what comes back. The only raw sockets of glbctl.

What comes back is read off the interfaces, before the host's stack: a reply from a VIP may look to it like one from its
own addresses or by a wrong interface.
"""

from __future__ import annotations

import ctypes
import errno
import select
import socket
import struct
import time
from collections.abc import Iterator
from types import TracebackType

from glb.errors import DeviceError
from glb.wire.probe import Answer, read_answer

_SO_ATTACH_FILTER = 26  # <asm-generic/socket.h>
_SO_RCVBUFFORCE = 33
_IP_MTU_DISCOVER, _PMTUDISC_PROBE = 10, 3  # <linux/in.h>: by the interface's MTU alone, not by what was learned before
_ETH_P_IP, _ETH_P_IPV6 = 0x0800, 0x86DD
_RECEIVE_BYTES = 4 << 20
_SNAP_BYTES = 256  # of each answer
_BURST = 16  # packets between two looks at the clock

# Classic BPF, (code, jump if true, jump if false, constant): an answer is ICMP, or TCP with RST.
_LOAD_BYTE, _LOAD_BYTE_AFTER, _HEADER_LENGTH, _IF_EQUAL, _IF_SET, _RETURN = 0x30, 0x50, 0xB1, 0x15, 0x45, 0x06
_FILTERS = {
    _ETH_P_IP: (
        (_LOAD_BYTE, 0, 0, 9),
        (_IF_EQUAL, 4, 0, socket.IPPROTO_ICMP),
        (_IF_EQUAL, 0, 4, socket.IPPROTO_TCP),
        (_HEADER_LENGTH, 0, 0, 0),
        (_LOAD_BYTE_AFTER, 0, 0, 13),
        (_IF_SET, 0, 1, 0x04),
        (_RETURN, 0, 0, _SNAP_BYTES),
        (_RETURN, 0, 0, 0),
    ),
    _ETH_P_IPV6: (
        (_LOAD_BYTE, 0, 0, 6),
        (_IF_EQUAL, 3, 0, socket.IPPROTO_ICMPV6),
        (_IF_EQUAL, 0, 3, socket.IPPROTO_TCP),
        (_LOAD_BYTE, 0, 0, 53),
        (_IF_SET, 0, 1, 0x04),
        (_RETURN, 0, 0, _SNAP_BYTES),
        (_RETURN, 0, 0, 0),
    ),
}


class ProbeSocket:
    """Raw sockets of this host, as a context. DeviceError without the right to have them."""

    def __init__(self, packets_per_s: float) -> None:
        self._interval_s = _BURST / packets_per_s
        self._until_pause = _BURST
        self._burst_at = time.monotonic()
        try:
            self._sender = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
            self._sender.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC_PROBE)
            self._listeners = [_listener(kind, program) for kind, program in _FILTERS.items()]
        except OSError as error:
            raise DeviceError(f"cannot send probes: {error.strerror}; that needs root, or CAP_NET_RAW") from error

    def __enter__(self) -> ProbeSocket:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for each in (self._sender, *self._listeners):
            each.close()

    def send(self, packet: bytes) -> str | None:
        """Send bytes from the outer IPv4 header on, no faster than allowed. Why this host does not, or None."""
        if self._until_pause == 0:
            self._until_pause = _BURST
            time.sleep(max(0.0, self._burst_at + self._interval_s - time.monotonic()))
            self._burst_at = time.monotonic()
        self._until_pause -= 1
        try:
            self._sender.sendto(packet, (socket.inet_ntoa(packet[16:20]), 0))
        except OSError as error:
            if error.errno == errno.EMSGSIZE:
                return "larger than the MTU of this host's own interface"
            return error.strerror or str(error)
        return None

    def answers(self, timeout_s: float) -> Iterator[Answer]:
        """What has come back so far, and what comes within the time; the caller stops when it has enough."""
        until = time.monotonic() + timeout_s
        while True:
            left = until - time.monotonic()
            readable, _, _ = select.select(self._listeners, [], [], max(left, 0.0))
            if not readable:
                return
            for listener in readable:
                packet, (_, _, kind, *_) = listener.recvfrom(_SNAP_BYTES)
                answer = read_answer(packet) if kind != socket.PACKET_OUTGOING else None
                if answer is not None:
                    yield answer


def own_address(target: str) -> str:
    """The address that this host sends from to `target`. DeviceError without a route."""
    family = socket.AF_INET6 if ":" in target else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((target, 9))
        except OSError as error:
            raise DeviceError(f"no route to {target}: {error.strerror}") from error
        return str(probe.getsockname()[0])


def _listener(kind: int, program: tuple[tuple[int, int, int, int], ...]) -> socket.socket:
    listener = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(kind))
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in program))
    listener.setsockopt(
        socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HxxxxxxP", len(program), ctypes.addressof(code))
    )
    try:
        listener.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BYTES)
    except OSError:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BYTES)
    return listener
