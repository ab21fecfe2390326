"""Many established flows of a host without anybody at their other ends: sockets made by TCP_REPAIR, as CRIU does.

Nothing is sent for them, neither when they are made nor when they are closed. They are held by processes of their own
(``python -m bench.established VIP PORT FIRST FROM TO``), as one may open only so many files. These end with stdin.
"""

from __future__ import annotations

import resource
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

from bench.errors import BenchError

FLOWS_PER_ADDRESS = 1 << 14
_FIRST_PORT = 1024
_TCP_REPAIR = 19
_OTHER_FILES = 100

Address = IPv4Address | IPv6Address


def client(first: Address, flow: int) -> tuple[Address, int]:
    """Address and port of a flow's client: as bench/agent_chain.bpf.c makes them."""
    return first + flow // FLOWS_PER_ADDRESS, _FIRST_PORT + flow % FLOWS_PER_ADDRESS


@contextmanager
def established(vip: Address, port: int, first: Address, flows: range) -> Iterator[None]:
    """These flows of `client(first, ..)` to the VIP's port exist in this thread's network namespace.

    The VIP must be an address of it, and the clients must have a route.
    """
    each = max(1, min(resource.getrlimit(resource.RLIMIT_NOFILE)[1], 100_000) - _OTHER_FILES)
    with ExitStack() as stack:
        holders = []
        for start in range(flows.start, flows.stop, each):
            words = (vip, port, first, start, min(start + each, flows.stop))
            holder = subprocess.Popen(
                [sys.executable, "-m", "bench.established", *map(str, words)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                cwd=Path(__file__).parents[1],
            )
            stack.enter_context(holder)  # leaving closes its pipes, which ends it, and waits
            holders.append(holder)
        for holder in holders:
            assert holder.stdout is not None
            if holder.stdout.readline() != b"ready\n":
                raise BenchError(f"cannot make {len(flows)} established flows (TCP_REPAIR)")
        yield


def _hold(vip: str, port: int, first: Address, flows: range) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    made = []
    for flow in flows:
        address, client_port = client(first, flow)
        each = socket.socket(socket.AF_INET if first.version == 4 else socket.AF_INET6, socket.SOCK_STREAM)
        each.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR, 1)
        each.bind((vip, port))
        each.connect((str(address), client_port))
        made.append(each)
    print("ready", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    _vip, _port, _first, _from, _to = sys.argv[1:]
    _hold(_vip, int(_port), ip_address(_first), range(int(_from), int(_to)))
