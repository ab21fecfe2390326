"""glbctl capture at a running director: what is in the file is what was on the wire, and traffic does not notice."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Raw
from scapy.utils import RawPcapNgReader

from glb.wire import pcapng
from tests.netns.directors import SO_RCVBUFFORCE, VIP, VIP6, Director, Listener, numbered_load, port_of, send_udp
from tests.netns.topology import eventually

pytestmark = [pytest.mark.netns, pytest.mark.bpf]

PLAIN, CAPTURING = "glb_director", "glb_capturing"


class Capture:
    """`glbctl capture` on the director's host, with a file of its own; it captures when this is made."""

    def __init__(self, director: Director, *options: str) -> None:
        self.director = director
        self.path = director.folder / "out.pcapng"
        self.path.unlink(missing_ok=True)
        command = [sys.executable, "-m", "glb.ctl.cli", "capture", "-w", str(self.path), *options]
        self.process = director.host.start(*command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        eventually(lambda: self.process.poll() is not None or (self.path.exists() and self.path.stat().st_size))

    def end(self, number: signal.Signals | None = None) -> str:
        """What it said, after a signal (None: it ends by itself), when the director has ended it, too."""
        if number is not None:
            self.process.send_signal(number)
        said, _ = self.process.communicate(timeout=10)
        eventually(lambda: self.director.status()["capture"] is None)
        return str(said)

    def packets(self) -> list[tuple[str, bytes, str]]:
        """(received or sent, frame, comment)"""
        with RawPcapNgReader(str(self.path)) as reader:
            return [(is_.ifname.decode().rsplit(" ")[-1], frame, is_.comments[0].decode()) for frame, is_ in reader]


def program_of(director: Director) -> str:
    """Name of the XDP program that is in force."""
    shown = director.host.run("ip", "-d", "-j", "link", "show", "eth0")
    number = json.loads(shown)[0]["xdp"]["prog"]["id"]
    return str(json.loads(subprocess.check_output(["bpftool", "-j", "prog", "show", "id", str(number)]))["name"])


def raw_frames(listener: Listener) -> list[bytes]:
    """Every tunnel packet that has arrived, as it is."""
    frames = []
    while True:
        try:
            frame = listener.socket.recv(65535)
        except BlockingIOError:
            return frames
        if frame[23] == 17 and frame[36:38] == (19523).to_bytes(2, "big"):
            frames.append(frame)


def test_the_file_holds_what_came_and_what_went_with_the_verdict(director: Director) -> None:
    net = director.net
    listener = director.listen("proxy1")
    director.start()
    client, ethernet = net["client"], Ether(src=net["client"].mac, dst=net["director"].mac)
    ipv4, payload = ethernet / IP(src=client.ipv4, dst=VIP), Raw(b"x" * 20)
    frames = [
        (ipv4 / UDP(dport=80) / payload, "forward table=web row="),
        (ethernet / IPv6(src=client.ipv6, dst=VIP6) / TCP(dport=80) / payload, "forward table=web row="),
        (
            ethernet / IP(src=client.ipv4, dst=VIP, options=b"\x01" * 4) / UDP(dport=80) / payload,
            "forward table=web row=",
        ),
        (ipv4 / UDP(dport=81) / payload, "host engine=xdp"),
        (ethernet / IP(src=client.ipv4, dst=VIP, len=500) / UDP(dport=80) / payload, "drop truncated engine=cython"),
        (ipv4 / UDP(dport=80) / Raw(bytes(1472)), "drop too_big answered table=web row="),
    ]
    not_ours = [ethernet / IP(src=client.ipv4, dst=director.host.ipv4) / UDP(dport=80) / payload]
    capture = Capture(director, "--limit", str(len(frames)))
    with port_of(net, "director") as port:
        for frame in [*not_ours, *(frame for frame, _ in frames)]:
            port.send(bytes(frame))
    assert capture.end() == f"capture: {len(frames)} packets in {capture.path}\n"
    packets = capture.packets()
    received = {frame: comment for where, frame, comment in packets if where == "received"}
    assert len(received) == len(frames)
    for frame, comment in frames:
        assert received[bytes(frame)].startswith(comment), comment
    tunnelled = [frame for where, frame, comment in packets if where == "sent" and comment.startswith("forward")]
    assert sorted(tunnelled) == sorted(raw_frames(listener)) and len(tunnelled) == 3
    (answer,) = [frame for where, frame, comment in packets if where == "sent" and "answered" in comment]
    assert Ether(answer).dst == client.mac
    forwarded = [comment for comment in received.values() if comment.startswith("forward")]
    assert all(f"hops={net['proxy1'].ipv4}" in comment for comment in forwarded)
    engines = sorted(comment.rpartition("engine=")[2] for comment in forwarded)
    accelerated = director.status()["engine"] == "accelerated"
    assert engines == (["cython", "xdp", "xdp"] if accelerated else ["cython"] * 3)


def test_only_the_client_and_the_table_asked_for_are_captured_across_a_reload(director: Director) -> None:
    net = director.net
    director.start()
    capture = Capture(director, "--table", "web", "--client", net["client"].ipv4)
    send_udp(net["client"], VIP, 80, b"1" * 20)
    send_udp(net["client"], VIP6, 80, b"3" * 20)
    before = director.status()["tables"][0]["digest"]
    # `web` is the second table now.
    table = json.loads(director.table.read_text())["tables"][0]
    other = table | {"name": "other", "binds": [{"ip": VIP, "proto": "udp", "port": 81}]}
    director.replace_table(json.dumps({"tables": [other, table | {"hash_key": "22" * 16}]}))
    eventually(lambda: director.status()["tables"][-1]["digest"] != before and len(director.status()["tables"]) == 2)
    send_udp(net["client"], VIP, 81, b"4" * 20)
    send_udp(net["client"], VIP, 80, b"5" * 20)
    eventually(lambda: len(capture.packets()) == 4)
    assert capture.end(signal.SIGINT).startswith("capture: 2 packets in ")
    packets = capture.packets()
    assert [frame[42:43] for where, frame, _ in packets if where == "received"] == [b"1", b"5"]
    assert all("table=web" in comment for _, _, comment in packets)


def test_traffic_and_counters_do_not_notice_that_captures_come_and_go(director: Director) -> None:
    listener = director.listen("proxy1")
    listener.socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 26)
    director.start()
    assert program_of(director) == PLAIN
    with numbered_load(director.net["client"]) as sent:
        for _ in range(2):
            capture = Capture(director, "--limit", "50")
            said = capture.end()
            assert "50 packets" in said
            eventually(lambda: program_of(director) == PLAIN)
    arrived = {listener.next()[1].inner[28:32] for _ in range(sent[0])}
    assert len(arrived) == sent[0] > 100
    assert director.metric("glb_director_packets_total") == sent[0]
    assert director.metric("glb_director_lost_total") == director.metric("glb_director_drops_total") == 0


def test_a_client_that_is_killed_leaves_a_good_file_and_the_plain_program(director: Director) -> None:
    director.start()
    capture = Capture(director)
    assert program_of(director) == CAPTURING
    send_udp(director.net["client"], VIP, 80)
    eventually(lambda: len(capture.packets()) == 2)
    capture.end(signal.SIGKILL)
    eventually(lambda: program_of(director) == PLAIN)
    assert len(capture.packets()) == 2
    # And the director stops while somebody captures.
    capture = Capture(director)
    director.signal(signal.SIGTERM)
    assert director.process is not None and director.process.wait(10) == 0
    said, _ = capture.process.communicate(timeout=10)
    assert "the director has ended the capture" in said and capture.process.returncode == 1


@pytest.mark.parametrize("director", ["xdp"], indirect=True)
def test_a_director_killed_during_a_capture_starts_with_the_plain_program(director: Director, pins: Path) -> None:
    director.configure(f'pin_dir = "{pins}/d"\n')
    listener = director.listen("proxy1")
    director.start()
    capture = Capture(director)
    director.signal(signal.SIGKILL)
    assert director.process is not None
    director.process.wait(10)
    said, _ = capture.process.communicate(timeout=10)
    assert "the director has ended the capture" in said
    assert program_of(director) == CAPTURING
    send_udp(director.net["client"], VIP, 80)
    listener.next()
    director.start()
    assert program_of(director) == PLAIN
    # The new program and its capturing one count on the maps of the old one, and are captured.
    capture = Capture(director, "--limit", "2")
    for _ in range(2):
        send_udp(director.net["client"], VIP, 80)
        listener.next()
    capture.end()
    assert [where for where, _, _ in capture.packets()] == ["received", "sent"] * 2
    assert director.metric("glb_director_accelerated_packets_total") == 3
    director.host.run(sys.executable, "-m", "glb.director.cli", "detach", "--config", str(director.config))


def post(
    director: Director, body: object, address: str = "127.0.0.1", kind: str = "application/json", **more: str
) -> tuple[int, str]:
    """Status and text of a capture that is refused."""
    request = urllib.request.Request(
        f"http://{address}:9523/capture", json.dumps(body).encode(), {"Content-Type": kind, **more}
    )
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request, timeout=5)
    with caught.value as error:
        return error.code, error.read().decode().strip()


@pytest.mark.parametrize("director", ["cython"], indirect=True)
def test_what_cannot_be_captured_is_refused_with_the_reason(director: Director) -> None:
    director.configure('admin = "0.0.0.0:9523"\n')
    director.start()
    with director.host.inside():
        refused: list[tuple[Any, int, str]] = [
            ({"table": "wob"}, 422, "there is no table wob; there are: web"),
            ({"client": "10.0.0.1/8"}, 400, "client is 10.0.0.1/8; must be an address or a prefix"),
            ({"client": "fe80::1%eth0"}, 400, "client is fe80::1%eth0; must be an address or a prefix (it has a zone)"),
            ({"snaplen": 5}, 400, "snaplen is 5; must be 64 to 4000"),
            ({"sample": 0}, 400, "sample is 0; must be 1 to"),
            ({"tabel": "web"}, 400, "Object contains unknown field `tabel`"),
            ([], 400, "Expected `object`"),
        ]
        for body, code, text in refused:
            status, said = post(director, body)
            assert status == code and text in said
        assert post(director, {}, kind="text/plain") == (415, "the request must be application/json")
        assert post(director, {}, Origin="http://rebound.example") == (403, "packets are not shown to web pages")
        capture = Capture(director, "--client", "198.51.100.0/24")
        status, said = post(director, {})
        assert status == 409 and said.startswith(
            "another capture is running: client 198.51.100.0/24, for 127.0.0.1, since"
        )
        assert director.status()["capture"].startswith("client 198.51.100.0/24, for 127.0.0.1, since ")
        capture.end(signal.SIGINT)
        assert pcapng.split(capture.path.read_bytes())[1] == b""
    with director.net["client"].inside():
        status, said = post(director, {}, director.host.ipv4)
    assert status == 403 and "remote_capture = true" in said


def test_a_client_that_takes_nothing_slows_nothing(director: Director) -> None:
    director.start()
    request = b"POST /capture HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
    with director.host.inside(), socket.create_connection(("127.0.0.1", 9523)) as stuck:
        stuck.sendall(request)
        eventually(lambda: program_of(director) == CAPTURING)
        with director.net["client"].inside(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            for sent in range(1000, 31_000, 1000):  # no more at once than a queue holds, whatever else the machine does
                for _ in range(1000):
                    sender.sendto(bytes(1000), (VIP, 80))
                eventually(lambda sent=sent: director.metric("glb_director_packets_total") == sent)  # type: ignore[misc]
    assert director.metric("glb_director_lost_total") == 0
    eventually(lambda: program_of(director) == PLAIN)
    # Who reads nothing loses what no buffer holds, and the director says how much.
    eventually(lambda: "packets were not captured: the buffer was full" in director.log.read_text())
