"""nginx and HAProxy on a host of a test, bound to the VIPs or to any address, saying in every answer whose they are."""

from __future__ import annotations

import http.client
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.netns.agents import VIP4, VIP6
from tests.netns.topology import Host, eventually

PORT = 8080
BODY = bytes(range(256)) * 32  # within HAProxy's buffer of 16 KiB
NAMED = "X-Proxy"  # the header with the host's name


@dataclass(frozen=True)
class Kind:
    """A server program: its command line for a configuration file, and that file by where it listens."""

    command: tuple[str, ...]
    write: Callable[[Host, Path, str], str]  # host, folder of its own, listening lines
    listen: dict[str, str]  # where it listens -> lines


def _nginx(host: Host, home: Path, listen: str) -> str:
    temporary = " ".join(f"{each}_temp_path {home}/{each};" for each in ("proxy", "fastcgi", "uwsgi", "scgi"))
    return f"""\
daemon off; master_process off; pid {home}/pid; error_log stderr warn;
events {{ worker_connections 256; }}
http {{
    access_log off; client_body_temp_path {home}/client; {temporary}
    server {{ {listen} root {home}; add_header {NAMED} {host.name}; }}
}}
"""


def _haproxy(host: Host, home: Path, listen: str) -> str:
    return f"""\
defaults
    mode http
    timeout client 30s
    timeout connect 5s
    timeout server 30s
frontend web
    {listen}
    http-request return status 200 content-type application/octet-stream file {home}/body hdr {NAMED} {host.name}
"""


KINDS = {
    "nginx": Kind(
        ("nginx", "-e", "stderr", "-c"),
        _nginx,
        {
            "vip": f"listen {VIP4}:{PORT}; listen [{VIP6}]:{PORT};",
            "any": f"listen {PORT}; listen [::]:{PORT};",
            "dual-stack": f"listen [::]:{PORT} ipv6only=off;",
        },
    ),
    "haproxy": Kind(
        ("haproxy", "-db", "-f"),
        _haproxy,
        {
            "vip": f"bind {VIP4}:{PORT},[{VIP6}]:{PORT}",
            "any": f"bind *:{PORT},:::{PORT} v6only",
            "dual-stack": f"bind :::{PORT} v4v6",
        },
    ),
}


@contextmanager
def serving(kind: str, where: str, host: Host, directory: Path) -> Iterator[None]:
    """The server runs on the host and accepts; AssertionError with what it said if it does not."""
    program = KINDS[kind]
    home = directory / f"{kind}-{where}-{host.name}"
    home.mkdir()
    (home / "body").write_bytes(BODY)
    config = home / "server.conf"
    config.write_text(program.write(host, home, program.listen[where]))
    log = home / "log"
    with log.open("w") as output:
        process = host.start(*program.command, str(config), stdout=output, stderr=output)
    try:

        def listens() -> bool:
            assert process.poll() is None, log.read_text()
            return f":{PORT} " in host.run("ss", "-Hltn")

        eventually(listens)
        yield
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(5)
        process.kill()
        process.wait()


class Browser:
    """A kept-alive HTTP connection of a host to a VIP."""

    def __init__(self, host: Host, vip: str) -> None:
        self._connection = http.client.HTTPConnection(vip, PORT, timeout=10)
        with host.inside():
            self._connection.connect()
        self._connection.auto_open = 0  # a connection that breaks is an error, not begun anew

    def get(self) -> str:
        """Who answered; every byte of the answer is verified."""
        self._connection.request("GET", "/body")
        answer = self._connection.getresponse()
        assert (answer.status, answer.read()) == (200, BODY)
        return answer.headers[NAMED]

    def close(self) -> None:
        self._connection.close()
