"""Pieces of the agent's network tests: an agent as a process, a hand-made director, servers that say who they are."""

from __future__ import annotations

import http.client
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any

from glb.wire.gue import GUE_PORT, encapsulate
from proxy_agent import tun
from tests.netns.topology import Host, Switch

REPOSITORY = Path(__file__).parents[2]
VIP4 = "198.51.100.1"
VIP6 = "2001:db8:51::1"
READY_WITHIN_S = 20.0


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=10)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class Agent:
    """`glb-proxy-agent run` on a host, with an admin socket that tests reach from outside its namespace.

    `prefix`: a command that runs it, such as setpriv.
    """

    def __init__(self, host: Host, directory: Path, prefix: Sequence[str] = (), **keys: Any) -> None:
        self.host = host
        self.prefix = prefix
        self.directory = directory / f"agent-{host.name}"
        self.directory.mkdir(exist_ok=True)
        self.config_path = self.directory / "agent.toml"
        self.admin_path = self.directory / "admin.sock"
        self.keys = {
            "interface": "eth0",
            "engine": "netfilter",
            "vips": [VIP4, VIP6],
            "admin": f"unix:{self.admin_path}",
            "state_dir": str(self.directory / "state"),
            "mss": "off",  # spares each start and each detach two processes
            **keys,
        }
        self.log_path = self.directory / "log"
        self.process: subprocess.Popen[str] | None = None
        self.notified: socket.socket | None = None
        self._marked: dict[str, int] = {}
        self.write_config()

    def write_config(self, **keys: Any) -> None:
        """The configuration file, with these keys changed."""
        self.keys.update(keys)
        # Strings, numbers, booleans and lists are written in TOML as in JSON.
        lines = [f"{key} = {json.dumps(value)}" for key, value in self.keys.items() if value is not None]
        self.config_path.write_text("\n".join(lines) + "\n")

    def start(self) -> Agent:
        """Start it and wait until it says that it is ready."""
        self.launch()
        self.await_notice("READY=1")
        return self

    def launch(self) -> None:
        """Start it; `await_notice("READY=1")` waits for it."""
        self._close_notify_socket()
        self.notified = self._notify_socket()
        with self.log_path.open("a") as log:
            self.process = self.host.start(
                *self.prefix,
                sys.executable,
                "-m",
                "proxy_agent.cli",
                "run",
                "--config",
                str(self.config_path),
                cwd=REPOSITORY,
                env={**os.environ, "NOTIFY_SOCKET": str(self.directory / "notify")},
                stderr=log,
            )

    def _close_notify_socket(self) -> None:
        if self.notified is not None:
            self.notified.close()
            self.notified = None

    def _notify_socket(self) -> socket.socket:
        path = self.directory / "notify"
        path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        listener.bind(str(path))
        return listener

    def await_notice(self, state: str) -> None:
        """Wait for a notification of systemd's protocol; AssertionError with the log if the agent ends instead."""
        assert self.process is not None and self.notified is not None
        pidfd = os.pidfd_open(self.process.pid)
        try:
            while True:
                readable, _, _ = select.select([self.notified, pidfd], [], [], READY_WITHIN_S)
                if self.notified in readable:
                    if state in self.notified.recv(4096).decode().split("\n"):
                        return
                else:
                    raise AssertionError(f"no {state} from the agent on {self.host.name}:\n{self.log()}")
        finally:
            os.close(pidfd)

    def reload(self, **keys: Any) -> None:
        """Change the configuration file, send SIGHUP, wait until it has been dealt with."""
        self.write_config(**keys)
        self.signal(signal.SIGHUP)
        self.await_notice("READY=1")

    def signal(self, number: int) -> None:
        assert self.process is not None
        os.kill(self.process.pid, number)

    def wait(self) -> int:
        assert self.process is not None
        return self.process.wait(20)

    def stop(self) -> None:
        """SIGTERM, and wait. The host keeps its VIPs."""
        if self.process is not None and self.process.poll() is None:
            self.signal(signal.SIGTERM)
            self.wait()
        self._close_notify_socket()

    def detach(self) -> str:
        return self.host.run(sys.executable, "-m", "proxy_agent.cli", "detach", "--config", str(self.config_path))

    def log(self) -> str:
        return self.log_path.read_text()

    def get(self, path: str) -> tuple[int, str]:
        """Status and text of an admin page."""
        connection = _UnixConnection(self.admin_path)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def status(self) -> dict[str, Any]:
        code, text = self.get("/status")
        assert code == 200, text
        status: dict[str, Any] = json.loads(text)
        return status

    def counters(self) -> dict[str, int]:
        """Packets by reason since `mark` (or the start), without the zeros."""
        counters = self.status()["counters"]
        return {
            name: count - self._marked.get(name, 0)
            for name, count in counters.items()
            if count != self._marked.get(name, 0)
        }

    def mark(self) -> None:
        """Count from now on."""
        self._marked = self.status()["counters"]

    def warden_pid(self) -> int:
        """The supervisor process: the agent's only child."""
        assert self.process is not None
        return int(Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()[0])

    def rules(self) -> list[str]:
        """Lines of iptables-save that are ours."""
        lines = self.host.run("iptables-legacy-save").splitlines()
        return [line for line in lines if "glb-agent" in line and line.startswith("-A")]


class Director:
    """Encapsulates what its host forwards to the VIPs, to the hops it is told. One packet at a time, in Python."""

    def __init__(self, host: Host, hops: Sequence[Host], *, udp_checksum: bool = False) -> None:
        self.host = host
        self.lead(*hops)
        self._udp_checksum = udp_checksum
        host.sysctl("net/ipv4/ip_forward", 1)
        host.sysctl("net/ipv4/conf/all/send_redirects", 0)
        host.sysctl("net/ipv4/conf/eth0/send_redirects", 0)
        host.sysctl("net/ipv6/conf/all/forwarding", 1)
        with host.inside():
            self._tun = tun.create("vips")
            self._raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
        host.run("ip", "route", "add", f"{VIP4}/32", "dev", "vips")
        host.run("ip", "-6", "route", "add", f"{VIP6}/128", "dev", "vips")
        self._wake, self._woken = os.pipe()
        self._thread = threading.Thread(target=self._forward, daemon=True)
        self._thread.start()

    def lead(self, *hops: Host) -> None:
        """From now on, packets go to these hops."""
        self.hops = [hop.ipv4 for hop in hops]

    def encapsulate(self, inner: bytes, **fields: Any) -> bytes:
        return encapsulate(inner, self.host.ipv4, self.hops, udp_checksum=self._udp_checksum, **fields)

    def send(self, packet: bytes) -> None:
        """Send a packet with its own outer header, as it is (the kernel fills in the header checksum)."""
        self._raw.sendto(packet, (socket.inet_ntoa(packet[16:20]), 0))

    def close(self) -> None:
        os.write(self._woken, b"x")
        self._thread.join()
        for fd in (self._tun, self._wake, self._woken):
            os.close(fd)
        self._raw.close()

    def _forward(self) -> None:
        while True:
            readable, _, _ = select.select([self._tun, self._wake], [], [])
            if self._wake in readable:
                return
            with suppress(BlockingIOError):
                inner = os.read(self._tun, 65536)
                destination = inner[16:20] if inner[0] >> 4 == 4 else inner[24:40]
                if destination in (IPv4Address(VIP4).packed, IPv6Address(VIP6).packed):  # no multicast of the kernel's
                    self.send(self.encapsulate(inner))


class NamedServer:
    """A TCP and UDP server on a host that answers each line with its own name and the line."""

    def __init__(self, host: Host, address: str, port: int = 80) -> None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self.name = host.name
        with host.inside():
            self._listener = socket.create_server((address, port), family=family, backlog=64)
            self._datagrams = socket.socket(family, socket.SOCK_DGRAM)
            self._datagrams.bind((address, port))
        self._open: list[socket.socket] = []
        for target in (self._accept, self._answer_datagrams):
            threading.Thread(target=target, daemon=True).start()

    def close(self) -> None:
        for each in (self._listener, self._datagrams, *self._open):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)  # wakes the thread that waits in it
            each.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self._open.append(connection)
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with suppress(OSError), connection, connection.makefile("rwb") as lines:
            for line in lines:
                lines.write(self.name.encode() + b": " + line)
                lines.flush()

    def _answer_datagrams(self) -> None:
        with suppress(OSError):
            while True:
                data, sender = self._datagrams.recvfrom(65536)
                if data:
                    self._datagrams.sendto(self.name.encode() + b": " + data, sender)


class Client:
    """A TCP connection of a host to a VIP."""

    def __init__(self, host: Host, address: str, port: int = 80) -> None:
        with host.inside():
            self._socket = socket.create_connection((address, port), timeout=10)
        self._lines = self._socket.makefile("rwb")
        self.port = self._socket.getsockname()[1]

    def ask(self, text: str) -> str:
        """Send a line and return the answer's line."""
        self._lines.write(text.encode() + b"\n")
        self._lines.flush()
        return self._lines.readline().decode().rstrip("\n")

    def settimeout(self, seconds: float) -> None:
        """From now on, wait for an answer so long only."""
        self._socket.settimeout(seconds)

    def close(self) -> None:
        with suppress(OSError):
            self._lines.close()
        self._socket.close()


def sniffer(host: Host) -> socket.socket:
    """A packet socket on the host's eth0: IPv4 packets that arrive there, without their Ethernet header."""
    with host.inside():
        listener = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800))
        listener.bind(("eth0", 0x0800))
    listener.settimeout(10)
    return listener


def departures(host: Host, switch: Host) -> socket.socket:
    """A packet socket on the switch's port of the host: what the host sends, without its Ethernet header.

    (On the host that it is sent to, an XDP program may take the tunnel off before a packet socket sees it.)
    """
    with switch.inside():
        listener = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0003))
        listener.bind((host.name, 0x0003))
    listener.settimeout(10)
    return listener


def next_tunnel_packet(listener: socket.socket) -> bytes:
    """The next tunnel packet that arrives at a port watched by `departures`."""
    while True:
        packet, (_, _, kind, *_) = listener.recvfrom(65536)
        header = (packet[0] & 0x0F) * 4
        if (
            kind != socket.PACKET_OUTGOING
            and packet[0] >> 4 == 4
            and packet[9] == 17
            and packet[header + 2 : header + 4] == GUE_PORT.to_bytes(2, "big")
        ):
            return packet


@contextmanager
def fleet(mtu: int = 1500) -> Iterator[Switch]:
    """client, director, proxy1 and proxy2 on one switch; the client's way to the VIPs leads through the director.

    With GRO off at the switch, what an XDP program of a proxy redirects there would be lost (docs/operate/agent.md).
    """
    with Switch("client", "director", "proxy1", "proxy2", mtu=mtu) as switch:
        director = switch["director"]
        for name in ("proxy1", "proxy2"):
            switch.core.run("ethtool", "-K", name, "gro", "on")
        switch["client"].run("ip", "route", "add", f"{VIP4}/32", "via", director.ipv4)
        switch["client"].run("ip", "-6", "route", "add", f"{VIP6}/128", "via", director.ipv6)
        yield switch
