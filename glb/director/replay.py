"""`glb-director replay`: the packet path over a capture file, offline, packets in order."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path
from typing import BinaryIO, Literal

import dpkt

from glb._fastpath import DROP_REASONS
from glb.director.config import Config
from glb.director.forwarding import compile_forwarding
from glb.errors import ConfigError, GlbError, Problem
from glb.table.config import TableSet
from glb.table.rows import RowBuilder

ETHERNET = 1  # pcap link type
BATCH = 1024
_PCAPNG_MAGIC = b"\x0a\x0d\x0d\x0a"
_PCAP_HEADER_BYTES, _PCAP_RECORD_BYTES, _PCAP_CAPTURED_AT = 24, 16, 8


def replay(
    config: Config, tables: TableSet, source: Path, target: Path, mtu_bytes: int | None = None
) -> dict[str, object]:
    """Encapsulate the frames of `source` (pcap or pcapng) into `target` (pcap): what would be sent, in order.

    Returns counts: {"received", "sent", "host", "dropped": {reason: frames}}. Without `outbound_src_mac` each frame
    sent takes the received frame's destination as its source. `mtu_bytes`: of the path to every proxy; packets too big
    for it are dropped, and their answers (no limit to their rate: there is no time) are written too, and counted:
    "answered". Raises ConfigError, TableError, GlbError.
    """
    if config.outbound_src_ip is None or config.outbound_gateway_mac is None:
        missing = [k for k in ("outbound_src_ip", "outbound_gateway_mac") if getattr(config, k) is None]
        raise ConfigError(
            "replay", [Problem(f"$.{key}", "is needed to replay: there is no network") for key in missing]
        )
    published = compile_forwarding(
        tables,
        RowBuilder().build_all(tables),
        config,
        source_ip=IPv4Address(config.outbound_src_ip),
        source_mac=config.outbound_src_mac,
        answers_per_s=None if config.too_big_answers_per_s else 0,
    )
    for address in published.backends():
        if mtu_bytes is None:
            published.forwarding.set_next_hop(address.packed, config.outbound_gateway_mac)
        else:
            published.forwarding.set_next_hop(address.packed, config.outbound_gateway_mac, mtu_bytes)
    counters = published.forwarding.new_counters()
    with source_file(source) as stream, replacing(target) as out:
        writer = dpkt.pcap.Writer(out, snaplen=262144, linktype=ETHERNET)
        for times, frames in batches(stream, source):
            for time, (_, frame) in zip(times, published.forwarding.encapsulate(frames, counters), strict=True):
                if frame is not None:
                    writer.writepkt(frame, time)
    counts = published.forwarding.counts()
    verdicts = counts["verdicts"]
    return {
        "received": sum(verdicts.values()),
        "sent": verdicts["forward"],
        "host": verdicts["host"],
        "dropped": {reason: verdicts[reason] for reason in DROP_REASONS if verdicts[reason]},
        "answered": counts["answers"]["sent"],
    }


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file that takes the place of `path` when the block ends well, and is gone when it does not."""
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as out:
            try:
                yield out  # type: ignore[misc]  # a named temporary file is a BinaryIO in all but declaration
                os.fchmod(out.fileno(), 0o644)
                os.replace(out.name, path)
            except BaseException:
                os.unlink(out.name)
                raise
    except OSError as error:
        raise GlbError(f"{path}: {error.strerror or error}") from error


def source_file(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise GlbError(f"{path}: {os.strerror(error.errno or 0)}") from error


def batches(stream: BinaryIO, path: Path) -> Iterator[tuple[list[float], list[bytes]]]:
    """(timestamps, frames) of a capture, up to BATCH at a time. GlbError where the file is broken."""
    magic = stream.read(4)
    stream.seek(0)
    try:
        reader = dpkt.pcap.UniversalReader(stream)
    except (ValueError, dpkt.dpkt.Error) as error:
        raise GlbError(f"{path}: neither pcap nor pcapng") from error
    if reader.datalink() != ETHERNET:
        raise GlbError(f"{path}: link type {reader.datalink()}; only Ethernet (1) can be replayed")
    times: list[float] = []
    frames: list[bytes] = []
    position = 0
    last_at, beyond = 0, _PCAP_HEADER_BYTES
    try:
        for time, frame in reader:
            position += 1
            last_at, beyond = beyond, beyond + _PCAP_RECORD_BYTES + len(frame)
            times.append(time)
            frames.append(bytes(frame))
            if len(frames) == BATCH:
                yield times, frames
                times, frames = [], []
    except (dpkt.dpkt.Error, ValueError) as error:
        raise GlbError(f"{path}: broken after packet {position}: {error}") from error
    # dpkt takes the end of a classic capture as it comes, also in the middle of a packet.
    if magic != _PCAPNG_MAGIC and last_at:
        stream.seek(last_at + _PCAP_CAPTURED_AT)
        order: Literal["little", "big"] = "big" if magic[0] == 0xA1 else "little"
        whole = int.from_bytes(stream.read(4), order) == beyond - last_at - _PCAP_RECORD_BYTES
        if not whole or beyond != os.fstat(stream.fileno()).st_size:
            raise GlbError(f"{path}: broken after packet {position}: the file ends inside a packet")
    if frames:
        yield times, frames
