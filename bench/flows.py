"""How long the agent takes to count the live flows of its host, and whether anybody else notices."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from ipaddress import ip_network
from pathlib import Path
from typing import Any

from pyroute2 import netns

from bench.errors import BenchError
from bench.flows_sockets import CLIENT, VIPS, most_per_process
from bench.hosts import Host, hosts
from bench.measure import BASELINE, OURS, Session, figure
from proxy_agent.flows import FlowCounter

SUMMARY = "the agent's count of live flows, against ss"

_FLOWS = 100_000
_QUICK_FLOWS = 2_000
_ALTERNATIONS = 15
_LINK = "flows0"
_NEAR = "10.0.0.1"
_WITHIN_S = 120
_LOOP_S = 0.5
_COUNTS_PER_S = 10
_NETWORK = (ip_network("198.51.100.0/24"),)
_METHOD = (
    "real TCP connections from another network namespace to four VIPs; milliseconds for one count by VIP and port, as "
    "for one GET /status"
)


@contextmanager
def _connected(n: int) -> Iterator[Host]:
    """A host with n connections."""
    with hosts(_LINK) as (near, far), ExitStack() as stack:
        with near.routes() as routes:
            link = routes.link_lookup(ifname=_LINK)[0]
            lo = routes.link_lookup(ifname="lo")[0]
            routes.link("set", index=lo, state="up")
            routes.addr("add", index=link, address=_NEAR, prefixlen=24)
            for vip in VIPS:
                routes.addr("add", index=lo, address=vip, prefixlen=32)
        with far.routes() as routes:
            link = routes.link_lookup(ifname=_LINK)[0]
            routes.addr("add", index=link, address=CLIENT, prefixlen=24)
            routes.route("add", dst=str(_NETWORK[0]), gateway=_NEAR)
        for first in range(0, n, most_per_process()):
            command = [sys.executable, "-m", "bench.flows_sockets", near.path, far.path, str(first)]
            command.append(str(min(most_per_process(), n - first)))
            holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            stack.callback(holder.wait, _WITHIN_S)
            assert holder.stdin is not None and holder.stdout is not None
            stack.callback(holder.stdin.close)
            if holder.stdout.readline() != "ready\n":
                raise BenchError(f"cannot make {n} connections: the process that opens them ended")
        yield near


def _milliseconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) * 1e3


def _check(counter: FlowCounter, n: int) -> None:
    counted = counter.count(_NETWORK).by_vip
    if list(counted.values()) != [n]:
        raise BenchError(f"{n} flows are there, and {counted} counted")


def _ss() -> None:
    subprocess.run("ss -Htn state established | wc -l", shell=True, check=True, stdout=subprocess.DEVNULL)


def _loops(work: Callable[[], object]) -> float:
    """Millions of turns a second of a Python loop, while another thread of the process does this work."""
    over = threading.Event()

    def repeat() -> None:
        while not over.wait(1 / _COUNTS_PER_S):
            work()

    thread = threading.Thread(target=repeat)
    thread.start()
    turns, until = 0, time.perf_counter() + _LOOP_S
    while time.perf_counter() < until:
        turns += 1
    over.set()
    thread.join()
    return turns / _LOOP_S / 1e6


def _unlocked_work(milliseconds: float) -> Callable[[], object]:
    """Something that takes about so long and does not hold the interpreter's lock: a hash over a long buffer."""
    buffer = bytes(1 << 20)
    best = min(_milliseconds(lambda: hashlib.sha256(buffer)) for _ in range(5))
    buffer = bytes(int(len(buffer) * milliseconds / best))
    return lambda: hashlib.sha256(buffer)


def run(session: Session) -> Iterator[dict[str, Any]]:
    if shutil.which("ss") is None:
        raise BenchError("missing: ss (apt-get install iproute2)")
    n = _QUICK_FLOWS if session.quick else _FLOWS
    with ExitStack() as stack:
        with session.talk.steps(f"{n} connections", 1) as step:
            near = stack.enter_context(_connected(n))
            step()
        netns.pushns(near.path)
        stack.callback(netns.popns)
        walk = FlowCounter()
        stack.callback(walk.close)
        if walk.refusal is not None:
            raise BenchError(walk.refusal)
        dump = FlowCounter(Path(os.devnull))  # no eBPF program, as where that is not allowed
        for counter in (walk, dump):
            _check(counter, n)
        times = session.times(_ALTERNATIONS)
        samples = {
            OURS: lambda: _milliseconds(lambda: walk.count(_NETWORK)),
            "inet_diag": lambda: _milliseconds(lambda: dump.count(_NETWORK)),
            BASELINE: lambda: _milliseconds(_ss),
        }
        taken = session.alternate("flows/count", samples, times)
        for name, side in (("count", OURS), ("count-inet_diag", "inet_diag")):
            yield figure(
                f"flows/{name}",
                {OURS: taken[side], BASELINE: taken[BASELINE]},
                unit="ms",
                better="lower",
                method=_METHOD,
                baseline="ss -Htn state established | wc -l",
                not_included="HTTP",
                flows=n,
            )
        as_long = _unlocked_work(min(taken[OURS]))
        loops = {OURS: lambda: _loops(lambda: walk.count(_NETWORK)), BASELINE: lambda: _loops(as_long)}
        yield figure(
            "flows/beside",
            session.alternate("flows/beside", loops, session.times(_ALTERNATIONS)),
            unit="million turns/s",
            better="higher",
            method=f"a Python loop in one thread, while another of its process counts {_COUNTS_PER_S} times a second",
            baseline="the same beside a hash that takes as long and does not hold the interpreter's lock",
            not_included="the network",
            flows=n,
        )
