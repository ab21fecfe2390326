"""Part of 100,000 real connections: python -m bench.flows_sockets NEAR FAR FIRST N; holds them until its stdin ends.

Servers are on the near host (a path to its network namespace), clients on the far one. A client's socket is taken away
once it is connected, without a packet (TCP_REPAIR): clients are elsewhere, and the near host's share of the kernel's
table is what is measured. Each connection has a port of its own: FIRST counts those of other processes.
"""

from __future__ import annotations

import resource
import socket
import sys

from pyroute2 import netns

VIPS = tuple(f"198.51.100.{i}" for i in range(1, 5))
CLIENT = "10.0.0.2"
PORT = 80
FIRST_PORT = 1024
TCP_REPAIR = 19  # <linux/tcp.h>


def most_per_process() -> int:
    """As many as one process may hold."""
    return min(resource.getrlimit(resource.RLIMIT_NOFILE)[1] - 200, 60_000)


def main(near: str, far: str, first: int, n: int) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    netns.setns(near)
    listener = socket.create_server(("", PORT), backlog=64, reuse_port=True)
    netns.setns(far)
    held = []
    for i in range(first, first + n):
        with socket.socket() as client:
            client.bind((CLIENT, FIRST_PORT + i // len(VIPS)))
            client.connect((VIPS[i % len(VIPS)], PORT))
            held.append(listener.accept()[0])
            client.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
    listener.close()
    print("ready", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
