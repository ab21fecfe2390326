"""Pieces of the director's network tests: a director as a process, what arrives at a proxy, what is sent to VIPs."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from scapy.layers.l2 import Ether

import glb
from glb import _bpf
from glb.wire.gue import TunnelPacket, parse_tunnel
from tests.netns.topology import Host, Switch, eventually, repeating

SO_RCVBUFFORCE = 33
SOL_PACKET, PACKET_AUXDATA = 263, 8
IP_MTU_DISCOVER, IP_MTU, IPV6_MTU_DISCOVER, IPV6_MTU, PMTUDISC_DO = 10, 14, 23, 24, 2
VIP, VIP6 = "203.0.113.10", "2001:db8::10"


class Director:
    """glb-director on the host `director`, with a table of the hosts named."""

    def __init__(self, net: Switch, folder: Path, datapath: str = "auto") -> None:
        self.net, self.folder = net, folder
        self.host = net["director"]
        self.table = folder / "tables.json"
        self.log = folder / "director.log"
        self.config = folder / "director.toml"
        self.config.write_text(
            f'interface = "eth0"\ntable = "{self.table}"\nannounce_device = "glb0"\ndatapath = "{datapath}"\n'
        )
        self.process: subprocess.Popen[str] | None = None
        self.listeners: list[Listener] = []

    def write_table(self, *proxies: str, **more: Any) -> None:
        """Replaced whole, as glbctl does."""
        backends = [{"ip": self.net[name].ipv4, "state": "active", "healthy": True} for name in proxies]
        binds = [{"ip": ip, "proto": proto, "port": 80} for ip in (VIP, VIP6) for proto in ("tcp", "udp")]
        table = {"name": "web", "hash_key": "00" * 16, "seed": "11" * 16, "binds": binds, "backends": backends}
        self.replace_table(json.dumps({"tables": [table | more]}))

    def replace_table(self, text: str) -> None:
        temporary = self.table.with_suffix(".new")
        temporary.write_text(text)
        temporary.rename(self.table)

    def start(self, *program: str) -> Director:
        """`program`: what Python runs instead of glb-director."""
        command = [sys.executable, *(program or ("-m", "glb.director.cli")), "run", "--config", str(self.config)]
        with self.log.open("w") as out:
            self.process = self.host.start(*command, stderr=out, stdout=out)
        eventually(lambda: self.ended() or "forwarding on" in self.log.read_text())
        assert not self.ended(), self.log.read_text()
        return self

    def listen(self, name: str, interface: str = "eth0") -> Listener:
        self.listeners.append(Listener(self.net[name], interface))
        return self.listeners[-1]

    def ended(self) -> bool:
        return self.process is not None and self.process.poll() is not None

    def signal(self, number: int) -> None:
        """To the director itself, not to `ip netns exec` (which becomes it)."""
        assert self.process is not None
        os.kill(self.process.pid, number)

    def configure(self, lines: str) -> None:
        """Append to director.toml."""
        with self.config.open("a") as file:
            file.write(lines)

    def end(self) -> None:
        if self.process is not None and not self.ended():
            self.signal(signal.SIGKILL)
            self.process.wait(5)
        for listener in self.listeners:
            listener.socket.close()

    def get(self, path: str) -> str:
        with self.host.inside(), urllib.request.urlopen(f"http://127.0.0.1:9523{path}", timeout=5) as answer:
            return str(answer.read().decode())

    def status(self) -> Any:
        return json.loads(self.get("/status"))

    def metric(self, name: str) -> float:
        lines = [line for line in self.get("/metrics").splitlines() if line.startswith(name)]
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines)


class Listener:
    """What arrives at a host as a tunnel packet."""

    def __init__(self, host: Host, interface: str = "eth0") -> None:
        with host.inside():
            self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800))
            self.socket.bind((interface, 0))
        self.socket.setblocking(False)

    def next(self) -> tuple[Ether, TunnelPacket]:
        """The next tunnel packet."""
        return eventually(self._poll)

    def _poll(self) -> tuple[Ether, TunnelPacket] | None:
        while True:
            try:
                frame = self.socket.recv(65535)
            except BlockingIOError:
                return None
            if frame[23] == 17 and frame[36:38] == (19523).to_bytes(2, "big"):
                return Ether(frame), parse_tunnel(frame[14:])

    def empty(self) -> bool:
        return self._poll() is None


@cache  # the verifier takes a quarter of a second
def _forwards_by_nothing() -> _bpf.BpfObject:
    return _bpf.BpfObject(Path(glb.__file__).parent / "bpf_objects" / "director.bpf.o")


@contextmanager
def passing_program(net: Switch, port: str) -> Iterator[None]:
    """An XDP program that passes everything on the switch's port: a veth takes frames from XDP only if it has one."""
    with net.core.inside():
        link = _bpf.attach_xdp(_forwards_by_nothing().program("glb_director"), socket.if_nametoindex(port))
    try:
        yield
    finally:
        os.close(link)


@contextmanager
def port_of(net: Switch, name: str) -> Iterator[socket.socket]:
    """A raw socket on the switch's port of a host: what it sends arrives there as it is."""
    with net.core.inside(), socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as port:
        port.bind((name, 0))
        port.setblocking(False)
        yield port


def send_udp(host: Host, address: str, port: int, payload: bytes = b"x" * 20) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with host.inside(), socket.socket(family, socket.SOCK_DGRAM) as sender:
        sender.sendto(payload, (address, port))


@contextmanager
def numbered_load(client: Host, address: str = VIP, port: int = 80) -> Iterator[list[int]]:
    """Datagrams while the block lasts, each with its number as payload; how many were sent so far."""
    with client.inside():
        sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with sender, repeating(lambda n: sender.sendto(n.to_bytes(4, "big"), (address, port)), 0.0005) as sent:
        yield sent
