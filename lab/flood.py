"""A flood of SYNs: ``python -m lab.flood GATEWAY_MAC SYNS_PER_S``, started inside the client's namespace.

From random addresses of ``plan.FLOOD_V4`` and ``FLOOD_V6``, which nobody answers for, to both VIPs. Until SIGTERM; then
one line on stdout: how many SYNs were sent. SYNS_PER_S 0: as fast as it goes.
"""

from __future__ import annotations

import random
import signal
import struct
import sys
import time
from ipaddress import IPv4Address, IPv6Address

from glb.wire.checksum import internet_checksum, ipv4_header, pseudo_header
from lab import plan, ring

_IMAGES = 8  # 32,768 different SYNs
_BURST = 64  # of a flood at a pace
_TCP, _SYN = 6, 0x02
_MSS_OPTION = bytes((2, 4)) + (1460).to_bytes(2, "big")


def _segment(source: IPv4Address | IPv6Address, vip: IPv4Address | IPv6Address, port: int, sequence: int) -> bytes:
    words = (port, plan.HTTP_PORT, sequence, 0, 0x60, _SYN, 65535)
    segment = struct.pack("!HHIIBBHHH", *words, 0, 0) + _MSS_OPTION
    checksum = internet_checksum(pseudo_header(source, vip, _TCP, len(segment)) + segment)
    return segment[:16] + checksum.to_bytes(2, "big") + segment[18:]


def _syn4(chance: random.Random) -> bytes:
    source, vip = plan.FLOOD_V4[chance.randrange(plan.FLOOD_V4.num_addresses)], plan.GLB_VIP.v4
    segment = _segment(source, vip, chance.randrange(1024, 65536), chance.getrandbits(32))
    return b"\x08\x00" + ipv4_header(source, vip, _TCP, len(segment)) + segment


def _syn6(chance: random.Random) -> bytes:
    source, vip = plan.FLOOD_V6[chance.getrandbits(64)], plan.GLB_VIP.v6
    segment = _segment(source, vip, chance.randrange(1024, 65536), chance.getrandbits(32))
    header = struct.pack("!IHBB", 6 << 28, len(segment), _TCP, 64) + source.packed + vip.packed
    return b"\x86\xdd" + header + segment


def _images(gateway_mac: bytes) -> list[bytes]:
    chance = random.Random()
    addresses = gateway_mac + bytes.fromhex("020000000001")

    def frames() -> list[bytes]:
        return [addresses + (_syn6 if n % 2 else _syn4)(chance) for n in range(ring.FRAMES)]

    return [ring.image(frames()) for _ in range(_IMAGES)]


def main() -> None:
    gateway_mac, per_second = bytes.fromhex(sys.argv[1].replace(":", "")), float(sys.argv[2])
    images = _images(gateway_mac)
    sender = ring.Ring("eth0")
    ended = False

    def end(*_: object) -> None:
        nonlocal ended
        ended = True

    signal.signal(signal.SIGTERM, end)
    print("flooding", flush=True)
    sent, begun = 0, time.monotonic()
    count = _BURST if per_second else ring.FRAMES
    while not ended:
        sender.send(images[sent // ring.FRAMES % _IMAGES], count)
        sent += count
        if per_second:
            time.sleep(max(0.0, begun + sent / per_second - time.monotonic()))
    print(sent, flush=True)


if __name__ == "__main__":
    main()
