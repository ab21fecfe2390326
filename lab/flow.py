"""One HTTP connection of the load client: from a chosen source address, every byte verified as it comes."""

from __future__ import annotations

import asyncio
import socket
from ipaddress import IPv4Address, IPv6Address

from lab import content, plan
from lab.nginx import PROXY_HEADER

STALL_S = 12.0  # longer than any change of the lab takes to converge, SYN retransmissions (1, 3, 7 s) included
# Small, so that a slowly read download stays a conversation (window updates, ACKs), not one burst into a large buffer.
_RECEIVE_BUFFER_BYTES = 4096
_HEADER_LIMIT_BYTES = 4096

Address = IPv4Address | IPv6Address


class Broken(Exception):
    """The connection did not bring what was asked for: reset, refused, stalled, cut short, bad answer, corrupt."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(f"{kind}: {detail}")
        self.kind = kind


class Flow:
    """``await open()``, then ``await read_to(n)`` until ``received == length``. Raises ``Broken``; ``close`` always."""

    def __init__(self, source: Address, vip: Address, path: str) -> None:
        self.source, self.vip, self.path = source, vip, path
        self.proxy = ""  # who answered
        self.length = 0  # bytes of the body
        self.received = 0  # bytes of the body, all verified
        self._expected = memoryview(content.expected(path))
        family = socket.AF_INET if vip.version == 4 else socket.AF_INET6
        self._socket = socket.socket(family, socket.SOCK_STREAM)
        self._socket.setblocking(False)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER_BYTES)

    def __str__(self) -> str:
        so_far = f"{self.received} of {self.length} bytes, {self.proxy or 'no proxy yet'}"
        return f"{self.source} -> {self.vip} {self.path} ({so_far})"

    def close(self) -> None:
        self._socket.close()

    async def open(self) -> None:
        """Connect, ask, and read the answer's header."""
        loop = asyncio.get_running_loop()
        request = f"GET {self.path} HTTP/1.1\r\nHost: lab\r\nConnection: close\r\n\r\n".encode()
        try:
            self._socket.bind((str(self.source), 0))
            async with asyncio.timeout(STALL_S):
                await loop.sock_connect(self._socket, (str(self.vip), plan.HTTP_PORT))
                await loop.sock_sendall(self._socket, request)
        except TimeoutError:
            raise Broken("stalled", f"no connection in {STALL_S:g} s") from None
        except ConnectionRefusedError:
            raise Broken("refused", "the SYN was answered with a RST") from None
        except OSError as error:
            raise Broken("reset", f"while connecting: {error.strerror}") from None
        answer = b""
        while b"\r\n\r\n" not in answer:
            if len(answer) > _HEADER_LIMIT_BYTES:
                raise Broken("bad answer", "the header does not end")
            answer += await self._receive(_HEADER_LIMIT_BYTES)
        header, _, body = answer.partition(b"\r\n\r\n")
        status, *lines = header.decode("latin-1").split("\r\n")
        fields = dict(line.split(": ", 1) for line in lines if ": " in line)
        self.proxy = fields.get(PROXY_HEADER, "")
        self.length = int(fields.get("Content-Length", 0))
        if " 200 " not in status or self.length != len(self._expected) or not self.proxy:
            raise Broken("bad answer", status)
        self._verify(body)

    async def read_to(self, received: int, at_most: int = 65536) -> None:
        """Read until that much of the body has come and been verified (more may have)."""
        while self.received < min(received, self.length):
            self._verify(await self._receive(at_most))

    async def _receive(self, at_most: int) -> bytes:
        try:
            async with asyncio.timeout(STALL_S):
                chunk = await asyncio.get_running_loop().sock_recv(self._socket, at_most)
        except TimeoutError:
            raise Broken("stalled", f"nothing came for {STALL_S:g} s") from None
        except OSError as error:
            raise Broken("reset", error.strerror or str(error)) from None
        if not chunk:
            raise Broken("cut short", "the connection was closed before the end")
        return chunk

    def _verify(self, chunk: bytes) -> None:
        if self._expected[self.received : self.received + len(chunk)] != chunk:
            raise Broken("corrupt", f"wrong content at or after byte {self.received}")
        self.received += len(chunk)
