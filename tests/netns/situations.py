"""Real sockets of a host in each situation of tests/unit/agent_corpus.py, with a client that is made of packets alone.

The client is a TUN device of the host: what the host's stack sends to it is read, or is left to be lost; what it says
is written. So a FIN or an ACK is missing exactly where a state wants it to be.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from ipaddress import ip_address
from pathlib import Path

from glb.wire.checksum import internet_checksum, pseudo_header
from proxy_agent import tun
from tests.netns.topology import Host, eventually

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
import agent_corpus as corpus
import agent_packets as p
from agent_corpus import Numbers
from agent_packets import ACK, FIN, RST, SYN

DEVICE = "client"
WITHIN_S = 10.0
SO_BINDTODEVICE = 25
RENEWED_AFTER_S = 20.0  # of the 60 that TIME_WAIT lasts; the test that follows has the rest
# State -> what `ss` calls it; "": there is no socket.
SHOWN = {
    "none": "",
    "listen": "",
    "syn_recv": "SYN-RECV",
    "established": "ESTAB",
    "fin_wait1": "FIN-WAIT-1",
    "fin_wait2": "FIN-WAIT-2",
    "close_wait": "CLOSE-WAIT",
    "closing": "CLOSING",
    "last_ack": "LAST-ACK",
    "time_wait": "TIME-WAIT",
}


class Client:
    """The client's side of the flows: p.CLIENT4 and p.CLIENT6, behind a TUN device of the host that we are in."""

    def __init__(self, host: Host) -> None:
        self._tun = tun.create(DEVICE)
        host.run("ip", "route", "add", f"{p.CLIENT4}/32", "dev", DEVICE)
        host.run("ip", "-6", "route", "add", f"{p.CLIENT6}/128", "dev", DEVICE)

    def close(self) -> None:
        os.close(self._tun)

    def say(self, family: int, port: int, source_port: int, flags: int, numbers: Numbers) -> None:
        """A segment to the host, with right checksums."""
        client, vip = p.addresses(family)
        segment = p.tcp(flags, seq=numbers.seq, ack=numbers.ack, source_port=source_port, port=port)
        checksum = internet_checksum(pseudo_header(ip_address(client), ip_address(vip), 6, len(segment)) + segment)
        os.write(self._tun, p.ip(client, vip, 6, segment[:16] + struct.pack(">H", checksum) + segment[18:]))

    def open(self, family: int, port: int, source_port: int) -> Numbers:
        """Send a SYN and await its answer: the numbers of the next segment, which has not been sent."""
        self.say(family, port, source_port, SYN, Numbers(seq=999, ack=0))
        deadline = time.monotonic() + WITHIN_S
        while select.select([self._tun], [], [], max(0.0, deadline - time.monotonic()))[0]:
            packet = os.read(self._tun, 65536)
            if packet[0] >> 4 != family:
                continue  # of an earlier flow
            at, protocol = (20, packet[9]) if family == 4 else (40, packet[6])
            if protocol == 6 and struct.unpack_from(">HH", packet, at) == (port, source_port):
                assert packet[at + 13] & 0x3F == SYN | ACK, packet.hex()
                return Numbers(seq=1000, ack=struct.unpack_from(">I", packet, at + 4)[0] + 1 & 0xFFFFFFFF)
        raise AssertionError(f"no answer to the SYN of port {source_port}")


class Sockets:
    """All situations at once, in one host: `numbers[situation, family]` are the client's next ones."""

    def __init__(self, host: Host, stack: ExitStack) -> None:
        self.host = host
        self.numbers: dict[tuple[str, int], Numbers] = {}
        self._stack = stack
        self._brought_at: dict[tuple[str, int], float] = {}
        host.sysctl("net/ipv4/tcp_synack_retries", 15)  # SYN_RECV lasts 20 minutes, instead of one
        for address in (p.VIP4, p.ME):
            host.run("ip", "addr", "replace", f"{address}/32", "dev", "lo")
        host.run("ip", "addr", "replace", f"{p.VIP6}/128", "dev", "lo")
        with host.inside():
            self.client = stack.enter_context(closing(Client(host)))
            self._listeners = {
                (family, situation.port): self._listen(name, family, situation.port)
                for name, situation in corpus.SITUATIONS.items()
                if situation.state == "listen" or name == "established-dual-stack"
                for family in situation.families
            }
            for name, situation in corpus.SITUATIONS.items():
                for family in situation.families:
                    self._bring(name, family)
        self.check()

    def _listen(self, name: str, family: int, port: int) -> socket.socket:
        dual = name == "established-dual-stack"
        kind = socket.AF_INET if family == 4 and not dual else socket.AF_INET6
        listener = self._stack.enter_context(closing(socket.socket(kind)))
        if kind == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not dual)
        if name == "listener-of-the-interface":
            listener.setsockopt(socket.SOL_SOCKET, SO_BINDTODEVICE, b"eth0")
        listener.bind((p.addresses(family)[1] if name == "listener-of-the-vip" else "", port))
        listener.listen()
        listener.settimeout(WITHIN_S)
        return listener

    def renew(self) -> None:
        """Flows whose state would end by itself are as young as they need to be; their numbers are others then."""
        for (name, family), brought_at in list(self._brought_at.items()):
            at = corpus.SITUATIONS[name]
            if at.state == "time_wait" and time.monotonic() - brought_at > RENEWED_AFTER_S:
                numbers = self.numbers[name, family]
                after_the_fin = Numbers(numbers.seq + 1, numbers.ack)
                self.client.say(family, at.port, corpus.client_port(name), RST, after_the_fin)
                eventually(lambda name=name, family=family: self.state(name, family) == "")
                self._bring(name, family)

    def _bring(self, name: str, family: int) -> None:
        """A flow into its situation, with what the client says and what it leaves out."""
        self._brought_at[name, family] = time.monotonic()
        at = corpus.SITUATIONS[name]
        port = corpus.client_port(name)
        if name == "syn-cookie":
            before = self.host.sysctl("net/ipv4/tcp_syncookies")
            self.host.sysctl("net/ipv4/tcp_syncookies", 2)  # for every SYN, as if the queue were full
            self.numbers[name, family] = self.client.open(family, at.port, port)
            self.host.sysctl("net/ipv4/tcp_syncookies", before)
        if at.state in ("none", "listen"):
            return
        self.numbers[name, family] = numbers = self.client.open(family, at.port, port)
        if at.state == "syn_recv":
            return

        def say(flags: int, seq: int, ack: int) -> None:
            exact = Numbers(numbers.seq + seq, numbers.ack + ack & 0xFFFFFFFF)
            self.client.say(family, at.port, port, flags, exact)

        say(ACK, 0, 0)
        server = self._accept(family, at.port)
        if at.state in ("close_wait", "last_ack"):
            say(FIN | ACK, 0, 0)
            eventually(lambda: self.state(name, family) == SHOWN["close_wait"])
        if at.state in ("fin_wait1", "fin_wait2", "closing", "time_wait", "last_ack"):
            server.shutdown(socket.SHUT_WR)  # its FIN is lost on the way, as far as the client says
        if at.state == "closing":
            say(FIN | ACK, 0, 0)
        if at.state in ("fin_wait2", "time_wait"):
            say(ACK, 0, 1)
            eventually(lambda: self.state(name, family) == SHOWN["fin_wait2"])
        if at.state == "time_wait":
            say(FIN | ACK, 0, 1)

    def _accept(self, family: int, port: int) -> socket.socket:
        server = self._stack.enter_context(closing(self._listeners[family, port].accept()[0]))
        self._stack.callback(reset_on_close, server)
        return server

    def connect(self, family: int, port: int, source_port: int) -> tuple[Numbers, Callable[[], None]]:
        """A flow besides: the client's next numbers, and what ends it so that nothing of it is left."""
        numbers = self.client.open(family, port, source_port)
        self.client.say(family, port, source_port, ACK, numbers)
        server = self._accept(family, port)

        def end() -> None:
            reset_on_close(server)
            server.close()

        return numbers, end

    def state(self, name: str, family: int) -> str:
        """What `ss` shows of a situation's flow."""
        return self.states().get((family, corpus.SITUATIONS[name].port, corpus.client_port(name)), "")

    def states(self) -> dict[tuple[int, int, int], str]:
        """All flows of the clients by family, the VIP's port and the client's."""
        found = {}
        for line in self.host.run("ss", "-Htan").splitlines():
            state, _, _, local, remote = line.split()[:5]
            address, _, port = remote.rpartition(":")
            address = address.strip("[]").removeprefix("::ffff:")
            if address in (p.CLIENT4, p.CLIENT6):
                family = 4 if address == p.CLIENT4 else 6
                found[family, int(local.rpartition(":")[2]), int(port)] = state
        return found

    def check(self) -> None:
        """Every flow is in the state that its situation wants."""
        expected = {
            (family, at.port, corpus.client_port(name)): SHOWN[at.state]
            for name, at in corpus.SITUATIONS.items()
            for family in at.families
            if SHOWN[at.state]
        }
        eventually(lambda: self.states() == expected)


def reset_on_close(sock: socket.socket) -> None:
    """Let nothing of it be left when it is closed."""
    if sock.fileno() >= 0:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
