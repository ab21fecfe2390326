"""A director on an interface of several receive queues: a worker each, pinned, sleeping or polling."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from tests.netns.directors import VIP, Director, passing_program, port_of
from tests.netns.topology import Switch, eventually

pytestmark = [pytest.mark.netns, pytest.mark.bpf]

CORES = sorted(os.sched_getaffinity(0))


@pytest.fixture(params=["cython", "xdp"])
def director(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Director]:
    """Its interface has two queues, and so has the other end of the veth."""
    with Switch("client", "director", "proxy1") as net:
        net["director"].run("ethtool", "-L", "eth0", "rx", "2", "tx", "2")
        net.core.run("ethtool", "-L", "director", "rx", "2", "tx", "2")
        with passing_program(net, "director"):
            director = Director(net, tmp_path, request.param)
            director.write_table("proxy1")
            yield director
            director.end()


def send_on_both_queues(director: Director, n: int = 64) -> None:
    """Flows of which some go to either queue; with IPv4 options, so that workers get them whatever the datapath."""
    net = director.net
    with port_of(net, "director") as port:
        for source_port in range(n):
            frame = Ether(src=net["client"].mac, dst=net["director"].mac)
            frame /= IP(src=net["client"].ipv4, dst=VIP, options=b"\x01\x01\x01\x01")
            port.send(bytes(frame / UDP(sport=1000 + source_port, dport=80) / Raw(b"x" * 20)))


@pytest.mark.parametrize("busy_poll", [False, True])
def test_each_queue_has_a_worker_that_runs_where_it_is_told(director: Director, busy_poll: bool) -> None:
    cores = [CORES[-1], CORES[0]] if len(CORES) > 1 else CORES
    director.configure(f"worker_cores = {cores}\nbusy_poll = {str(busy_poll).lower()}\n")
    director.start()
    listener = director.listen("proxy1")
    send_on_both_queues(director)
    for _ in range(64):
        listener.next()
    queues = director.status()["queues"]
    assert [queue["queue"] for queue in queues] == [0, 1]
    assert [queue["cores"] for queue in queues] == [[cores[i % len(cores)]] for i in range(2)]
    assert [queue["busy_poll"] for queue in queues] == [busy_poll] * 2
    assert [queue["zero_copy"] for queue in queues] == [False] * 2, "a veth copies"
    assert all(queue["packets"] for queue in queues) and sum(queue["packets"] for queue in queues) == 64
    # What the kernel says of the threads, and not only the director of itself.
    assert director.process is not None
    masks = [os.sched_getaffinity(int(task)) for task in os.listdir(f"/proc/{director.process.pid}/task")]
    if len(CORES) > 1:
        assert sorted(min(mask) for mask in masks if len(mask) == 1) == sorted(cores)
    # Tables are published, and the workers end, though they never sleep.
    before = director.status()["tables"][0]["digest"]
    director.write_table("proxy1", hash_key="22" * 16)
    eventually(lambda: director.status()["tables"][0]["digest"] != before)
    send_on_both_queues(director)
    for _ in range(64):
        listener.next()
    director.end()


def test_workers_may_run_anywhere_where_nothing_is_said(director: Director) -> None:
    director.start()
    queues = director.status()["queues"]
    assert [(queue["cores"], queue["busy_poll"]) for queue in queues] == [(None, False)] * 2


def test_one_core_serves_every_queue_if_it_is_the_only_one_named(director: Director) -> None:
    director.configure(f"worker_cores = [{CORES[0]}]\n")
    director.start()
    assert [queue["cores"] for queue in director.status()["queues"]] == [[CORES[0]]] * 2


def test_a_core_that_is_not_there_is_refused(director: Director) -> None:
    director.configure("worker_cores = [8000]\n")
    command = [sys.executable, "-m", "glb.director.cli", "run", "--config", str(director.config)]
    process = director.host.start(*command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 1 and "Traceback" not in said
    assert f"worker_cores: this process may not use 8000, only {CORES[0]}" in said


def test_busy_polling_that_the_kernel_refuses_says_so(director: Director) -> None:
    """Without CAP_NET_ADMIN a socket may not poll longer than the system allows."""
    director.configure("busy_poll = true\n")
    less = ["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin"]
    command = [*less, sys.executable, "-m", "glb.director.cli", "run", "--config", str(director.config)]
    process = director.host.start(*command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 1 and "Traceback" not in said
    assert "busy_poll: the kernel refuses it" in said and "set busy_poll = false" in said
