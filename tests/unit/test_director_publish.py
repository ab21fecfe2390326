"""A publication that the kernel refuses half-way: everything goes on by the tables before."""

from __future__ import annotations

import asyncio
from ipaddress import IPv4Address
from types import SimpleNamespace
from typing import Any

import pytest
from scapy.layers.inet import TCP
from scene import BACKENDS, forwarding, ipv4

from glb import _bpf
from glb._fastpath import CounterBlock, Forwarding, PlainMemory
from glb.director import daemon, datapath
from glb.director.config import Config
from glb.director.kept import KernelCounters
from glb.director.ledger import Ledger
from glb.errors import DeviceError

# Their places are file descriptors.
MAPS = ("glb_generations", "glb_chunks", "glb_backend_counts", "glb_counters", "glb_ledger")
FRAME = bytes(ipv4() / TCP(dport=80))


class Memory(PlainMemory):
    def __init__(self, name: str, n_bytes: int, n: int = 1) -> None:
        self.fds = [0] * n


class Worker:
    """Takes a frame by what was published last."""

    forwarding: Forwarding
    counters: CounterBlock

    def __init__(self, interface: str, queue: int, *, busy_poll: bool) -> None:
        self.queue = queue

    def publish(self, forwarding: Forwarding) -> None:
        self.forwarding, self.counters = forwarding, forwarding.new_counters()

    def take(self) -> None:
        self.forwarding.encapsulate([FRAME], self.counters)

    def lost(self) -> dict[str, int]:
        return {}


@pytest.fixture
def refuse(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What happens meanwhile if the kernel refuses a generation; empty: it takes it."""
    refusals: list[Any] = []

    def update_map(fd: int, key: bytes, value: bytes) -> None:
        if fd == MAPS.index("glb_generations") and refusals:
            refusals[0]()
            raise DeviceError("updating a map: ENOMEM")

    monkeypatch.setattr(datapath, "Worker", Worker)
    monkeypatch.setattr(_bpf, "update_map", update_map)
    monkeypatch.setattr(_bpf, "read_counts", lambda fd, first, n: [(0, 0)] * n)
    monkeypatch.setattr(_bpf, "sum_per_cpu", lambda *_: 0)
    return refusals


class _Object:
    def map(self, name: str) -> int:
        return MAPS.index(name)


def made() -> tuple[datapath.Datapath, list[Any]]:
    interface: Any = SimpleNamespace(name="eth0", rx_queues=2, kind="veth", index=1)
    result = datapath.Datapath(interface, accelerate=True, pin_dir=None)
    counters = KernelCounters(MAPS.index("glb_backend_counts"), MAPS.index("glb_ledger"), Ledger())
    vars(result).update(_object=_Object(), _counters=counters)
    workers: list[Any] = vars(result)["_workers"]
    return result, workers


def test_workers_go_on_by_the_tables_in_force(refuse: list[Any]) -> None:
    path, workers = made()
    first, second = forwarding(memory=Memory), forwarding(memory=Memory, bank=1)
    path.publish(first)
    workers[0].take()
    refuse.append(workers[0].take)
    with pytest.raises(DeviceError):
        path.publish(second)
    assert [worker.forwarding for worker in workers] == [first, first]
    assert path.next_bank == 1, "what was refused is what is filled next"
    workers[1].take()
    assert path.counts().verdicts["forward"] == 3
    refuse.clear()
    third = forwarding(memory=Memory, bank=1)
    path.publish(third)
    assert [worker.forwarding for worker in workers] == [third, third] and path.next_bank == 0
    workers[0].take()
    assert path.counts().verdicts["forward"] == 4


def test_the_next_hops_of_the_tables_in_force_are_followed_again(refuse: list[Any]) -> None:
    director = daemon.Director(Config(interface="eth0", store="/none"), "test")
    path, workers = made()
    old = SimpleNamespace(forwarding=forwarding(memory=Memory), backends=lambda: [IPv4Address(BACKENDS[0])])
    new = SimpleNamespace(forwarding=forwarding(memory=Memory, bank=1), backends=lambda: [IPv4Address(BACKENDS[1])])
    path.publish(old.forwarding)
    followed = []

    async def set_backends(backends: list[IPv4Address]) -> None:
        followed.append((backends, vars(director)["_prepared"]))

    vars(director).update(
        _datapath=path, _published=old, _next_hops=SimpleNamespace(set_backends=set_backends), _load=lambda: new
    )
    refuse.append(workers[0].take)
    asyncio.run(director.reload())
    assert not director.last_reload.ok and "ENOMEM" in str(director.last_reload.error)
    assert followed == [(new.backends(), new), (old.backends(), None)]
    assert workers[0].forwarding is old.forwarding


def test_next_hops_that_cannot_be_asked_for_do_not_end_the_director(refuse: list[Any]) -> None:
    director = daemon.Director(Config(interface="eth0", store="/none"), "test")
    path, workers = made()
    old = SimpleNamespace(forwarding=forwarding(memory=Memory), backends=lambda: [IPv4Address(BACKENDS[0])])
    new = SimpleNamespace(forwarding=forwarding(memory=Memory, bank=1), backends=lambda: [IPv4Address(BACKENDS[1])])
    path.publish(old.forwarding)

    async def set_backends(backends: list[IPv4Address]) -> None:
        raise OSError("no more sockets")

    vars(director).update(
        _datapath=path, _published=old, _next_hops=SimpleNamespace(set_backends=set_backends), _load=lambda: new
    )
    asyncio.run(director.reload())
    assert not director.last_reload.ok and "no more sockets" in str(director.last_reload.error)
    assert workers[0].forwarding is old.forwarding
