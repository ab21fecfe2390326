"""Frames sent as fast as a packet socket can: a ring in memory that one copy fills and one system call sends."""

from __future__ import annotations

import errno
import mmap
import socket
import struct
from collections.abc import Sequence

FRAME_BYTES = 256  # the largest frame, with the ring's own header of 32 bytes
FRAMES = 4096
_BLOCK_BYTES = 4096
_SOL_PACKET, _PACKET_TX_RING, _PACKET_QDISC_BYPASS = 263, 13, 20
_TP_STATUS_SEND_REQUEST = 1
_HEADER = struct.Struct("LIIHHII")  # struct tpacket_hdr, TPACKET_V1; the frame follows at the next multiple of 16
_FRONT_BYTES = -(-_HEADER.size // 16) * 16


def image(frames: Sequence[bytes]) -> bytes:
    """What the ring holds of whole Ethernet frames: FRAMES of them, the given ones round and round."""
    cells = [
        (_HEADER.pack(_TP_STATUS_SEND_REQUEST, len(frame), len(frame), 0, 0, 0, 0).ljust(_FRONT_BYTES, b"\0") + frame)
        for frame in frames
    ]
    if any(len(cell) > FRAME_BYTES for cell in cells):
        raise ValueError(f"a frame of the ring has up to {FRAME_BYTES - _FRONT_BYTES} bytes")
    return b"".join(cells[i % len(cells)].ljust(FRAME_BYTES, b"\0") for i in range(FRAMES))


class Ring:
    """A ring on an interface of the network namespace that this thread is in."""

    def __init__(self, interface: str) -> None:
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self._socket.setsockopt(_SOL_PACKET, _PACKET_QDISC_BYPASS, 1)
        n_blocks = FRAMES * FRAME_BYTES // _BLOCK_BYTES
        self._socket.setsockopt(
            _SOL_PACKET, _PACKET_TX_RING, struct.pack("4I", _BLOCK_BYTES, n_blocks, FRAME_BYTES, FRAMES)
        )
        self._socket.bind((interface, 0))
        self._ring = mmap.mmap(self._socket.fileno(), FRAMES * FRAME_BYTES)
        self._next = 0

    def send(self, image: bytes, count: int = FRAMES) -> None:
        """Send `count` frames of the image, which must divide FRAMES; the next call goes on behind them."""
        at, size = self._next * FRAME_BYTES, count * FRAME_BYTES
        self._ring[at : at + size] = image[at : at + size]
        self._next = (self._next + count) % FRAMES
        while True:
            try:
                self._socket.send(b"")
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:  # the device was full: the rest of the frames is still there
                    raise
