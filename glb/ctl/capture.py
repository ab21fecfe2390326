"""``glbctl capture``: packets of running directors, as they come and as they go, into one pcapng file."""

from __future__ import annotations

import http.client
import ipaddress
import os
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from io import BufferedWriter, FileIO
from typing import BinaryIO

import click

from glb.ctl.fleet import LOCAL_DIRECTOR, Endpoint, UnreachableError, director_option, request
from glb.ctl.output import print_line, say
from glb.errors import GlbError
from glb.wire import pcapng

_SILENCE_S = 10.0  # a director sends statistics every second, packets or not
_LOOK_S = 0.2
_STDOUT = "-"
_RECEIVED = 0  # interface number of a director's received frames, in its own stream
_INTERFACES = 2  # of received and of sent frames
_HEAD_BLOCKS = 1 + _INTERFACES  # the section, and these
_READ_BYTES = 65536
_NO_CAPTURES = (404, 405)  # not found, method not allowed
_MAX_REASON_BYTES = 4096


class _ClientParam(click.ParamType[str]):
    """An address or a prefix."""

    name = "cidr"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            return str(ipaddress.ip_network(str(value)))
        except ValueError as error:
            self.fail(f"{error}; it is an address or a prefix, such as 198.51.100.0/24", param, ctx)


@click.command()
@click.option("-w", "--write", "target", required=True, metavar="FILE", help="The pcapng file; - is stdout.")
@click.option("--table", help="Only packets of this table.")
@click.option("--client", type=_ClientParam(), help="Only packets of these clients: an address or a prefix.")
@click.option("--limit", type=click.IntRange(1), help="End after so many packets.")
@click.option("--seconds", type=click.FloatRange(0), help="End after so long.")
@click.option(
    "--sample", type=click.IntRange(1), default=1, show_default=True, help="One packet in so many, by chance."
)
@click.option("--snaplen", type=int, default=2048, show_default=True, help="Bytes of a received frame kept at most.")
@director_option
def capture(
    target: str,
    table: str | None,
    client: str | None,
    limit: int | None,
    seconds: float | None,
    sample: int,
    snaplen: int,
    directors: tuple[Endpoint, ...],
) -> None:
    """Write packets for a VIP to FILE, before and after encapsulation, each with its verdict as comment.

    Without --director the one on this host is asked; with several, all write into the one file. Ends at --limit, after
    --seconds, or by Ctrl-C. A director with a full buffer leaves packets out of FILE; it loses none, and waits
    for nobody.

    \b
    Example:
      glbctl capture -w web.pcapng --table web --client 198.51.100.0/24 --limit 100
      glbctl capture -w - --seconds 10 | tshark -r - -T fields -e frame.comment
    """
    if target == _STDOUT and sys.stdout.isatty():
        raise click.UsageError("-w - writes a capture file to stdout: give it a pipe or a file, not a terminal")
    wanted = {
        "table": table,
        "client": client,
        "limit": limit,
        "seconds": seconds,
        "sample": sample,
        "snaplen": snaplen,
    }
    file = _File(target, limit)
    streams = [_Stream(endpoint, wanted, file) for endpoint in directors or (LOCAL_DIRECTOR,)]
    began = time.monotonic()
    interrupted = _run(streams, file)
    file.close(streams)
    failed = [stream for stream in streams if stream.error is not None]
    for stream in failed:
        say(f"glbctl: {stream.error}")
    if file.begun:
        (say if target == _STDOUT else print_line)(f"capture: {_packets(file.packets)} in {target}")
    if missed := sum(stream.missed for stream in streams):
        say(f"glbctl: {_packets(missed)} not captured: the buffer was full")
    as_asked = interrupted or file.full.is_set() or (seconds is not None and time.monotonic() - began >= seconds)
    if not failed and not as_asked:
        say("glbctl: the director has ended the capture")
    if failed or not as_asked:
        raise SystemExit(1)


def _packets(n: int) -> str:
    return f"{n} packet" if n == 1 else f"{n} packets"


def _run(streams: Sequence[_Stream], file: _File) -> bool:
    """Until all streams have ended; whether by Ctrl-C."""
    interrupted = False
    for stream in streams:
        stream.start()
    while any(stream.is_alive() for stream in streams):
        try:
            for stream in streams:
                stream.join(_LOOK_S / len(streams))
        except KeyboardInterrupt:
            interrupted = True
            file.full.set()
        if sys.stderr.isatty():
            click.echo(
                f"\r{_packets(file.packets)}, {sum(s.missed for s in streams)} not captured ", nl=False, err=True
            )
    if sys.stderr.isatty():
        click.echo("\r\x1b[K", nl=False, err=True)
    return interrupted


class _File:
    """The file, written in whole blocks, so that it is a good one whenever this process ends."""

    def __init__(self, target: str, limit: int | None) -> None:
        self._target = target
        self._limit = limit
        self._lock = threading.Lock()
        self._out: BinaryIO | None = None
        self._interfaces = 0
        self.packets = 0
        self.full = threading.Event()  # the streams end

    @property
    def begun(self) -> bool:
        return self._out is not None

    def begin(self, section: bytes, interfaces: Sequence[bytes]) -> int:
        """A director's interfaces; the number that its first one has in the file. Makes the file."""
        with self._lock:
            first = self._interfaces
            self._interfaces += len(interfaces)
            self._write([*([] if self.begun else [section]), *interfaces])
        return first

    def add(self, frames: Sequence[tuple[bytes, bool]]) -> bool:
        """Blocks of frames, each with whether it begins a packet; False: some packet was beyond the limit."""
        taken = []
        with self._lock:
            for block, is_new in frames:
                if is_new and self.full.is_set():
                    break
                self.packets += is_new
                taken.append(block)
                if self.packets == self._limit:
                    self.full.set()
            if taken:
                self._write(taken)
        return len(taken) == len(frames)

    def close(self, streams: Sequence[_Stream]) -> None:
        """With each director's last statistics."""
        if self._out is None:
            return
        try:
            self._write([stream.statistics for stream in streams if stream.statistics])
        except GlbError as error:
            say(f"glbctl: {error}")
        if self._target != _STDOUT:
            self._out.close()

    def _write(self, blocks: Sequence[bytes]) -> None:
        try:
            if self._out is None:
                self._out = sys.stdout.buffer if self._target == _STDOUT else BufferedWriter(FileIO(self._target, "w"))
            self._out.write(b"".join(blocks))
            self._out.flush()
        except BrokenPipeError:
            self.full.set()  # who reads has enough; nor shall the interpreter's end complain
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        except OSError as error:
            self.full.set()
            raise GlbError(f"{self._target}: {error.strerror or error}") from error


class _Stream(threading.Thread):
    """What one director sends, until it ends or the file is full."""

    def __init__(self, endpoint: Endpoint, wanted: Mapping[str, object], file: _File) -> None:
        super().__init__(daemon=True)
        self._endpoint = endpoint
        self._wanted = wanted
        self._file = file
        self._head: list[bytes] = []  # blocks before the first packet
        self._first = 0  # number of its first interface in the file
        self._room = True  # there is, for more of its packets
        self.error: GlbError | None = None
        self.statistics = b""
        self.missed = 0

    def _has_begun(self) -> bool:
        return len(self._head) == _HEAD_BLOCKS

    def run(self) -> None:
        rest = b""
        try:
            with request(self._endpoint.url, "/capture", timeout_s=_SILENCE_S, body=self._wanted) as reply:
                self._refuse(reply)
                while data := _read(reply):
                    blocks, rest = pcapng.split(rest + data)
                    self._take(blocks)
                    # The last word of a director that goes on comes within a second.
                    if self._file.full.is_set() and pcapng.STATISTICS in map(pcapng.kind_of, blocks):
                        break
            if not self._has_begun():
                raise UnreachableError(f"{self._endpoint.url}: sends no capture")
        except ValueError as error:
            self.error = UnreachableError(f"{self._endpoint.url}: sends no capture ({error})")
        except GlbError as error:
            self.error = error
        if self.error is not None and not self._has_begun():
            self._file.full.set()  # rather nothing than a part of the fleet

    def _take(self, blocks: Sequence[bytes]) -> None:
        frames = []
        for block in blocks:
            if not self._has_begun():
                self._head.append(block)
                if self._has_begun():
                    self._first = self._file.begin(self._head[0], self._head[1:])
                continue
            number, kind = pcapng.number_of(block), pcapng.kind_of(block)
            if kind not in (pcapng.PACKET, pcapng.STATISTICS) or number >= _INTERFACES:
                raise ValueError(f"a block of kind {kind}, for interface {number}")
            block_here = pcapng.renumbered(block, self._first + number)
            if kind == pcapng.STATISTICS:
                _, self.missed = pcapng.counts_of(block)
                self.statistics = block_here
            else:
                frames.append((block_here, number == _RECEIVED))
        self._room = self._room and self._file.add(frames)

    def _refuse(self, reply: http.client.HTTPResponse) -> None:
        """UnreachableError, with the director's reason, where it does not begin."""
        if reply.status == http.HTTPStatus.OK:
            return
        reason = reply.read(_MAX_REASON_BYTES).decode(errors="replace").strip() or reply.reason
        if reply.status in _NO_CAPTURES:
            reason = "is no director, or one without captures"
        raise UnreachableError(f"{self._endpoint.url}: {reason}")


def _read(reply: http.client.HTTPResponse) -> bytes:
    """What has come; empty at the end, which a director that dies is, too."""
    try:
        return reply.read1(_READ_BYTES)
    except http.client.IncompleteRead:
        return b""
