"""Structure-aware mutations of tunnel packets, reproducible from a seed: the inner packet's, then those around it."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator, Sequence

from agent_packets import with_header_checksum, with_length

from fuzz.mutations import mutated

OUTER_BYTES = 28  # IPv4 without options, UDP
FRONT_BYTES = 36  # and GUE, without hops
ETHERTYPES = {4: b"\x08\x00", 6: b"\x86\xdd"}
GUE_PROTOCOLS = {b"\x08\x00": 4, b"\x86\xdd": 41}


def front_bytes(tunnel: bytes) -> int:
    """Where the inner packet of a well-formed tunnel packet begins."""
    return FRONT_BYTES + 4 * tunnel[35]


def mutated_tunnels(tunnels: Sequence[bytes], seed: int, n: int) -> Iterator[bytes]:
    """`n` packets from the outer IPv4 header on: the front of one of `tunnels`, the inner packet of another, most of
    them changed in one or both. The same seed gives the same packets."""
    choose = random.Random(seed)
    frames = []
    for tunnel in tunnels:
        inner = tunnel[front_bytes(tunnel) :]
        frames.append(bytes(12) + ETHERTYPES[inner[0] >> 4] + inner)
    for changed in mutated(frames, seed, n):
        frame = changed if choose.random() < 0.7 else choose.choice(frames)
        template = choose.choice(tunnels)
        packet = bytearray(template[: front_bytes(template)] + frame[14:])
        if choose.random() < 0.95:
            packet[29] = GUE_PROTOCOLS.get(frame[12:14], packet[29])
        packet = bytearray(with_length(bytes(packet), len(packet)))
        for _ in range(choose.choice((0, 0, 0, 1, 1, 2, 3))):
            choose.choice(CHANGES)(packet, choose)
        yield with_header_checksum(bytes(packet)) if len(packet) >= 12 and choose.random() < 0.9 else bytes(packet)


def _bits(packet: bytearray, choose: random.Random) -> None:
    """Of the outer headers, the hop list included."""
    packet[choose.randrange(min(len(packet), 60))] ^= 1 << choose.randrange(8)


def _gue(packet: bytearray, choose: random.Random) -> None:
    """A byte of the GUE header on an edge of what it may be; hlen and the hop count by themselves or together."""
    hops = choose.choice((0, 1, 2, 3, 29, 30, 31, 255))
    at, value = choose.choice(
        (
            (28, choose.choice((0, 1, 2, 0x1F, 0x21, 0x41, 0xFF))),
            (29, choose.choice((4, 41, 6, 0))),
            (30 + choose.randrange(4), choose.choice((0, 1, 0x80))),
            (34, choose.choice((0, 1, 2, 29, 30, 31, 255))),
            (35, hops),
        )
    )
    if len(packet) > 35:
        packet[at] = value
        if choose.random() < 0.5:
            packet[28], packet[35] = 1 + hops & 0x1F, hops


def _length(packet: bytearray, choose: random.Random) -> None:
    """The outer IPv4 or the UDP length, near the truth or far from it."""
    if len(packet) < OUTER_BYTES:
        return
    at, truth = choose.choice(((2, len(packet)), (24, len(packet) - 20)))
    wrong = choose.choice((0, 7, 8, 19, 27, 28, 0xFFFF, truth + choose.randint(-50, 8)))
    packet[at : at + 2] = struct.pack(">H", max(0, wrong) & 0xFFFF)


def _cut(packet: bytearray, choose: random.Random) -> None:
    """To any length, told by the outer lengths or not."""
    length = choose.randint(min(len(packet), OUTER_BYTES), len(packet))
    packet[:] = with_length(bytes(packet), length) if choose.random() < 0.7 and length >= 26 else packet[:length]


def _pad(packet: bytearray, choose: random.Random) -> None:
    packet += choose.randbytes(choose.randint(1, 60))


def _options(packet: bytearray, choose: random.Random) -> None:
    """Outer IPv4 options."""
    words = choose.randint(1, 10)
    if len(packet) >= OUTER_BYTES and packet[0] == 0x45:
        packet[20:20] = choose.randbytes(4 * words)
        packet[0] += words
        packet[2:4] = struct.pack(">H", len(packet) & 0xFFFF)


def _fields(packet: bytearray, choose: random.Random) -> None:
    """What a verdict may depend on: fragment bits, TTL, addresses, port, UDP checksum."""
    at, values = choose.choice(
        (
            (6, (b"\0\0", b"\x20\0", b"\0\x01", b"\x80\0", b"\x5f\xff")),
            (8, (b"\0", b"\x01", b"\x02", b"\xff")),
            (12, (b"\x0a\0\0\x01", b"\0\0\0\0", b"\xff\xff\xff\xff")),
            (16, (b"\x0a\0\0\x02", b"\x7f\0\0\x01", b"\x0a\0\0\x09")),
            (22, (b"\x4c\x43", b"\0\x50")),
            (26, (b"\0\0", b"\xff\xff", choose.randbytes(2))),
        )
    )
    value = choose.choice(values)
    if len(packet) >= at + len(value):
        packet[at : at + len(value)] = value


CHANGES = (_bits, _gue, _length, _cut, _pad, _options, _fields)
