"""A captured packet as pcapng blocks: the frame received, the frame sent, and as their comment what was decided."""

from __future__ import annotations

from ipaddress import IPv4Address

from glb._capture import LOST_NO_SOCKET, Captured
from glb.version import __version__
from glb.wire import pcapng

RECEIVED, SENT = 0, 1  # interface numbers
_FRONT_BYTES = 36  # outer IPv4, UDP, GUE and private data header; 4 more for each hop after the first
_MOST_FRONT_BYTES = 72  # of a tunnel packet: 8 hops; an answer to a packet that is too big has less
_OUTER_DESTINATION, _HOP_COUNT = 16, 35  # places in it
_TAGS = (b"\x81\x00", b"\x88\xa8")
_OUTCOMES = {"forward": "forward", "host": "host", LOST_NO_SOCKET: f"lost {LOST_NO_SOCKET}"}  # the others: dropped


def head(interface: str, snap_bytes: int) -> bytes:
    """The blocks that a file begins with."""
    return (
        pcapng.section(f"glb-director {__version__}")
        + pcapng.interface(f"{interface} received", snap_bytes)
        + pcapng.interface(f"{interface} sent", snap_bytes + _MOST_FRONT_BYTES)
    )


def blocks(table: str | None, packet: Captured, epoch_ns: int) -> bytes:
    """One packet. `epoch_ns`: CLOCK_MONOTONIC's zero, after the epoch."""
    at_ns = epoch_ns + packet.at_ns
    text = comment(table, packet)
    result = pcapng.packet(
        RECEIVED,
        at_ns,
        packet.received,
        whole_bytes=packet.received_bytes,
        direction="received",
        comment=text,
    )
    if packet.sent is not None:
        result += pcapng.packet(SENT, at_ns, packet.sent, whole_bytes=packet.sent_bytes, direction="sent", comment=text)
    return result


def comment(table: str | None, packet: Captured) -> str:
    """What became of the packet, such as `forward table=web row=5 hash=9c.. hops=10.0.0.1,10.0.0.2 engine=xdp`."""
    words = [_OUTCOMES.get(packet.verdict, f"drop {packet.verdict}")]
    if packet.verdict == "too_big" and packet.sent is not None:
        words.append("answered")
    if table is not None:
        words.append(f"table={table}")
    if table is not None and packet.verdict != "fragment":  # it has no ports that would tell its row
        words += [f"row={packet.row}", f"hash={packet.hash:016x}"]
    if packet.verdict == "forward":
        words.append(f"hops={','.join(map(str, hops(packet)))}")
    words.append(f"engine={packet.engine}")
    return " ".join(words)


def hops(packet: Captured) -> list[IPv4Address]:
    """Where the tunnel packet went, and would go next, as it says itself."""
    frame = packet.sent
    assert frame is not None
    ip = 14
    while frame[ip - 2 : ip] in _TAGS:
        ip += 4
    further = frame[ip + _HOP_COUNT]
    places = [ip + _OUTER_DESTINATION, *(ip + _FRONT_BYTES + 4 * i for i in range(further))]
    return [IPv4Address(frame[at : at + 4]) for at in places]
