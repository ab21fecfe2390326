"""Capture files: the few blocks of pcapng (draft-ietf-opsawg-pcapng) that a packet capture consists of, little-endian.

A file is `section`, then an `interface` for each number that packets name, then packets and statistics in any order.
Blocks are whole in themselves: a file that ends after any of them is a good one.
"""

from __future__ import annotations

import struct
from typing import Literal

SECTION = 0x0A0D0D0A
INTERFACE = 1
STATISTICS = 5
PACKET = 6

_ETHERNET = 1  # link type
_NANOSECONDS = 9  # if_tsresol: 10^-9
_BYTE_ORDER = 0x1A2B3C4D
_UNKNOWN_LENGTH = -1
_COMMENT = 1
_SECTION_APPLICATION = 4
_INTERFACE_NAME, _INTERFACE_RESOLUTION = 2, 9
_PACKET_FLAGS = 2
_RECEIVED, _DROPPED = 4, 5  # isb_ifrecv, isb_ifdrop
_DIRECTIONS = {"received": 1, "sent": 2}  # epb_flags, its two low bits
_MAX_BLOCK_BYTES = 1 << 20
_LEAST_BLOCK_BYTES = 12

Direction = Literal["received", "sent"]


def section(application: str) -> bytes:
    """The head of a file; `application` is who writes it."""
    head = struct.pack("<IHHq", _BYTE_ORDER, 1, 0, _UNKNOWN_LENGTH)
    return _block(SECTION, head + _options((_SECTION_APPLICATION, application.encode())))


def interface(name: str, snap_bytes: int) -> bytes:
    """An Ethernet interface, of whose frames at most `snap_bytes` are kept; times are in nanoseconds."""
    options = _options((_INTERFACE_NAME, name.encode()), (_INTERFACE_RESOLUTION, bytes([_NANOSECONDS])))
    return _block(INTERFACE, struct.pack("<HHI", _ETHERNET, 0, snap_bytes) + options)


def packet(
    number: int, at_ns: int, frame: bytes, *, whole_bytes: int, direction: Direction, comment: str | None = None
) -> bytes:
    """A frame on interface `number`, `at_ns` after the epoch. `frame` is what was kept of its `whole_bytes`."""
    head = struct.pack("<5I", number, at_ns >> 32, at_ns & 0xFFFFFFFF, len(frame), whole_bytes)
    options = [(_PACKET_FLAGS, struct.pack("<I", _DIRECTIONS[direction]))]
    if comment is not None:
        options.append((_COMMENT, comment.encode()))
    return _block(PACKET, head + _padded(frame) + _options(*options))


def statistics(number: int, at_ns: int, *, received: int, dropped: int) -> bytes:
    """How many packets interface `number` has seen so far, and how many of them are not in the file."""
    head = struct.pack("<3I", number, at_ns >> 32, at_ns & 0xFFFFFFFF)
    counts = ((_RECEIVED, received.to_bytes(8, "little")), (_DROPPED, dropped.to_bytes(8, "little")))
    return _block(STATISTICS, head + _options(*counts))


def split(data: bytes) -> tuple[list[bytes], bytes]:
    """The whole blocks that `data` begins with, and the rest. ValueError where it is none that this module writes."""
    blocks = []
    at = 0
    while at + 8 <= len(data):
        length = int.from_bytes(data[at + 4 : at + 8], "little")
        if not _LEAST_BLOCK_BYTES <= length <= _MAX_BLOCK_BYTES or length % 4:
            raise ValueError(f"a pcapng block of {length} bytes")
        if at + length > len(data):
            break
        blocks.append(data[at : at + length])
        at += length
    return blocks, data[at:]


def kind_of(block: bytes) -> int:
    """SECTION, INTERFACE, PACKET or STATISTICS."""
    return int.from_bytes(block[:4], "little")


def number_of(block: bytes) -> int:
    """The interface that a packet or statistics block names."""
    return int.from_bytes(block[8:12], "little")


def renumbered(block: bytes, number: int) -> bytes:
    """A packet or statistics block with another interface number."""
    return block[:8] + number.to_bytes(4, "little") + block[12:]


def counts_of(block: bytes) -> tuple[int, int]:
    """(received, dropped) of a statistics block."""
    counts = {_RECEIVED: 0, _DROPPED: 0}
    at = 20
    while at + 4 <= len(block) - 4:
        code, length = struct.unpack_from("<HH", block, at)
        if code in counts:
            counts[code] = int.from_bytes(block[at + 4 : at + 4 + length], "little")
        at += 4 + length + -length % 4
    return counts[_RECEIVED], counts[_DROPPED]


def _padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % 4)


def _options(*options: tuple[int, bytes]) -> bytes:
    """Options, and the one that ends them."""
    parts = [struct.pack("<HH", code, len(value)) + _padded(value) for code, value in options]
    return b"".join(parts) + bytes(4)


def _block(kind: int, body: bytes) -> bytes:
    length = struct.pack("<I", _LEAST_BLOCK_BYTES + len(body))
    return struct.pack("<I", kind) + length + body + length
