"""glbctl capture against directors that send what a test wants."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from scapy.utils import RawPcapNgReader

from glb.ctl.cli import main
from glb.wire import pcapng


def head(name: str) -> bytes:
    return pcapng.section("test") + pcapng.interface(f"{name} received", 64) + pcapng.interface(f"{name} sent", 64)


def packet(payload: bytes) -> bytes:
    frames = (("received", payload), ("sent", b"front" + payload))
    return b"".join(
        pcapng.packet(number, 1, frame, whole_bytes=len(frame), direction=direction, comment="forward")  # type: ignore[arg-type]
        for number, (direction, frame) in enumerate(frames)
    )


def end(received: int, dropped: int = 0) -> bytes:
    return pcapng.statistics(0, 1, received=received, dropped=dropped)


@contextmanager
def director(stream: bytes, *, status: int = 200, cut_off: bool = False) -> Iterator[tuple[str, list[Any]]]:
    """One that answers a POST with this, and then ends (`cut_off`: dies); its URL, and what was asked."""
    asked: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            assert self.path == "/capture" and self.headers["Content-Type"] == "application/json"
            asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(status)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for at in range(0, len(stream), 100):  # blocks come in pieces
                piece = stream[at : at + 100]
                self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            if not cut_off:
                self.wfile.write(b"0\r\n\r\n")
            self.close_connection = True

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
        server.shutdown()
        thread.join()


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["capture", *map(str, arguments)])


def frames(path: Path) -> list[tuple[str, bytes]]:
    with RawPcapNgReader(str(path)) as reader:
        return [(is_.ifname.decode(), frame) for frame, is_ in reader]


def test_packets_of_a_director_come_into_the_file(tmp_path: Path) -> None:
    path = tmp_path / "out.pcapng"
    with director(head("a") + packet(b"1") + packet(b"2") + end(2)) as (url, asked):
        options = ("--table", "web", "--client", "198.51.100.0/24", "--limit", 2, "--sample", 3, "--snaplen", 100)
        result = run("-w", path, "--director", url, *options)
    assert (result.exit_code, result.stdout, result.stderr) == (0, f"capture: 2 packets in {path}\n", "")
    wanted = {"table": "web", "client": "198.51.100.0/24", "limit": 2, "seconds": None, "sample": 3, "snaplen": 100}
    assert asked == [wanted]
    names = ("a received", "a sent")
    expected = [(name, frame) for n in (b"1", b"2") for name, frame in zip(names, (n, b"front" + n), strict=True)]
    assert frames(path) == expected


def test_several_directors_share_the_file_and_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "out.pcapng"
    many = b"".join(packet(bytes([n])) for n in range(50))
    with director(head("a") + many + end(50)) as (one, _), director(head("b") + many + end(50)) as (other, _):
        assert run("-w", path, "--director", one, "--director", other).exit_code == 1  # they ended by themselves
        assert len(frames(path)) == 200
        assert {name for name, _ in frames(path)} == {"a received", "a sent", "b received", "b sent"}
        result = run("-w", path, "--director", one, "--director", other, "--limit", 60)
    assert result.exit_code == 0 and "60 packets" in result.stdout
    assert sum(name.endswith("received") for name, _ in frames(path)) == 60
    assert len(frames(path)) == 120


def test_packets_that_were_not_captured_are_said(tmp_path: Path) -> None:
    path = tmp_path / "out.pcapng"
    with director(head("a") + packet(b"1") + end(2, 1) + end(8, 7)) as (url, _):
        result = run("-w", path, "--director", url, "--seconds", 0)
    assert result.exit_code == 0
    assert result.stdout == f"capture: 1 packet in {path}\n"
    assert result.stderr == "glbctl: 7 packets not captured: the buffer was full\n"
    statistics = [block for block in pcapng.split(path.read_bytes())[0] if pcapng.kind_of(block) == pcapng.STATISTICS]
    assert [pcapng.counts_of(block) for block in statistics] == [(8, 7)]  # the last ones


def test_stdout_takes_the_file_and_stderr_the_talk() -> None:
    with director(head("a") + packet(b"1") + end(1)) as (url, _):
        result = run("-w", "-", "--director", url, "--limit", 1)
    assert result.exit_code == 0 and result.stderr == "capture: 1 packet in -\n"
    assert pcapng.split(result.stdout_bytes)[1] == b""


@pytest.mark.parametrize("cut_off", [False, True])
def test_a_director_that_ends_by_itself_is_said(tmp_path: Path, cut_off: bool) -> None:
    path = tmp_path / "out.pcapng"
    with director(head("a") + packet(b"1") + packet(b"2")[:-20], cut_off=cut_off) as (url, _):
        result = run("-w", path, "--director", url, "--limit", 5)
    assert result.exit_code == 1 and "the director has ended the capture" in result.stderr
    assert frames(path) == [("a received", b"1"), ("a sent", b"front1"), ("a received", b"2")]


@pytest.mark.parametrize(
    ("status", "text", "said"),
    [
        (
            409,
            b"another capture is running: table web, for 127.0.0.1, since 12:00:00\n",
            "another capture is running: table",
        ),
        (422, b"there is no table wob; there are: web\n", "there is no table wob; there are: web"),
        (404, b"404: Not Found", "is no director, or one without captures"),
        (405, b"405: Method Not Allowed", "is no director, or one without captures"),
        (200, b"hello world, hello world", "sends no capture"),
        (200, b"", "sends no capture"),
    ],
)
def test_a_refusal_is_said_and_the_file_stays(tmp_path: Path, status: int, text: bytes, said: str) -> None:
    path = tmp_path / "out.pcapng"
    path.write_text("precious")
    with director(text, status=status) as (url, _):
        result = run("-w", path, "--director", url)
    assert result.exit_code == 1 and f"glbctl: {url}: {said}" in result.stderr
    assert path.read_text() == "precious"


@pytest.mark.parametrize(
    ("block", "said"),
    [
        (pcapng.packet(2, 1, b"2", whole_bytes=1, direction="sent"), "a block of kind 6, for interface 2"),
        (pcapng.statistics(7, 1, received=1, dropped=0), "a block of kind 5, for interface 7"),
        (pcapng.section("again"), "a block of kind 168627466"),
        (pcapng.interface("third", 64), "a block of kind 1, for interface"),
    ],
)
def test_what_no_director_sends_is_its_fault_and_not_in_the_file(tmp_path: Path, block: bytes, said: str) -> None:
    path = tmp_path / "out.pcapng"
    with director(head("a") + packet(b"1") + block + packet(b"3")) as (url, _):
        result = run("-w", path, "--director", url, "--seconds", 0)
    assert result.exit_code == 1 and f"glbctl: {url}: sends no capture ({said}" in result.stderr
    assert {name for name, frame in frames(path) if frame != b"1"} <= {"a sent"} and len(frames(path)) <= 2


def test_nobody_there_is_said(tmp_path: Path) -> None:
    result = run("-w", tmp_path / "x", "--director", "http://127.0.0.1:1")
    assert result.exit_code == 1 and "http://127.0.0.1:1: Connection refused" in result.stderr


def test_a_file_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    with director(head("a") + end(0)) as (url, _):
        result = run("-w", tmp_path / "no" / "x", "--director", url)
    assert result.exit_code == 1 and f"{tmp_path}/no/x: No such file or directory" in result.stderr


@pytest.mark.parametrize("client", ["198.51.100.7/24", "nobody", "1.2.3.4/33"])
def test_a_bad_client_is_a_mistake_of_usage(client: str) -> None:
    result = run("-w", "x", "--client", client)
    assert result.exit_code == 2 and "such as 198.51.100.0/24" in result.stderr
