"""Frames that are nearly right: structure-aware mutations of a corpus, reproducible from a seed."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

_ETHERNET = 14
# Values that sit on the edges of what a parser distinguishes.
_EDGES = (0, 1, 2, 3, 4, 5, 6, 8, 11, 12, 17, 43, 44, 58, 60, 0x40, 0x45, 0x46, 0x4F, 0x60, 0x7F, 0x80, 0xFE, 0xFF)


def mutated(corpus: Sequence[bytes], seed: int, n: int) -> Iterator[bytes]:
    """`n` frames, each one of the corpus with one to four changes. The same seed gives the same frames."""
    choose = random.Random(seed)
    changes = (_flip, _edge, _cut, _grow, _length, _splice, _extension, _protocol, _tag)
    for _ in range(n):
        frame = bytearray(choose.choice(corpus))
        for _ in range(choose.randint(1, 4)):
            choose.choice(changes)(frame, choose, corpus)
        yield bytes(frame)


def _at(frame: bytearray, choose: random.Random) -> int:
    """Most faults hide in the headers."""
    return choose.randrange(min(len(frame), choose.choice((40, 80, 120, len(frame)))))


def _flip(frame: bytearray, choose: random.Random, _: Sequence[bytes]) -> None:
    if frame:
        frame[_at(frame, choose)] ^= 1 << choose.randrange(8)


def _edge(frame: bytearray, choose: random.Random, _: Sequence[bytes]) -> None:
    if frame:
        frame[_at(frame, choose)] = choose.choice(_EDGES)


def _cut(frame: bytearray, choose: random.Random, _: Sequence[bytes]) -> None:
    del frame[choose.randrange(len(frame) + 1) :]


def _grow(frame: bytearray, choose: random.Random, _: Sequence[bytes]) -> None:
    frame += choose.randbytes(choose.randint(1, 40))


def _length(frame: bytearray, choose: random.Random, _: Sequence[bytes]) -> None:
    """The IP length field, near the truth."""
    if len(frame) < _ETHERNET + 6:
        return
    at = 16 if frame[12:14] == b"\x08\x00" else 18
    truth = len(frame) - _ETHERNET - (0 if at == 16 else 40)
    frame[at : at + 2] = max(0, min(0xFFFF, truth + choose.randint(-44, 8))).to_bytes(2, "big")


def _splice(frame: bytearray, choose: random.Random, corpus: Sequence[bytes]) -> None:
    """The tail of another frame."""
    other = choose.choice(corpus)
    at = choose.randrange(len(frame) + 1)
    frame[at:] = other[min(at, len(other)) :]


def _extension(frame: bytearray, choose: random.Random, _: Sequence[bytes]) -> None:
    """IPv6 extension headers, IPv4 options."""
    if len(frame) < _ETHERNET + 40:
        return
    if frame[12:14] == b"\x86\xdd":
        for _ in range(choose.choice((1, 1, 2, 7, 8, 9))):
            kind = choose.choice((0, 43, 44, 60))
            header = bytes((frame[20], 0 if kind == 44 else choose.choice((0, 0, 1, 255)))) + choose.choice(
                (bytes(6), choose.randbytes(6))
            )
            frame[54:54] = header + bytes(8 if header[1] == 1 and kind != 44 else 0)
            frame[20] = kind
        frame[18:20] = (len(frame) - 54).to_bytes(2, "big")
    else:
        words = choose.randint(1, 10)
        frame[34:34] = choose.randbytes(4 * words)
        frame[14] = 0x45 + words
        frame[16:18] = (len(frame) - _ETHERNET).to_bytes(2, "big")


def _protocol(frame: bytearray, choose: random.Random, _: Sequence[bytes]) -> None:
    at = 23 if frame[12:14] == b"\x08\x00" else 20
    if len(frame) > at:
        frame[at] = choose.choice((0, 1, 6, 17, 43, 44, 50, 58, 60))


def _tag(frame: bytearray, choose: random.Random, _: Sequence[bytes]) -> None:
    """VLAN tags; the other changes then hit what they took for another field."""
    for _ in range(choose.choice((1, 1, 2, 3))):
        frame[12:12] = choose.choice((b"\x81\x00", b"\x88\xa8", b"\x91\x00")) + choose.randbytes(2)
