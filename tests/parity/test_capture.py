"""The capturing program forwards as the plain one does, byte for byte, and captures what a worker would."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Any

import corpus
import own
import pytest
from classifier import MINIMUM_BYTES, Program, shared_forwarding

from fuzz.mutations import mutated
from glb import _bpf
from glb._capture import ANY_TABLE, LOST_NO_SOCKET, Captured, KernelTap, Wanted, WorkerTap
from glb._fastpath import Forwarding
from glb.director.tap import SHARED_MAPS

pytestmark = pytest.mark.bpf

ROOT = Path(__file__).parents[2]
FRAMES = [bytes.fromhex(record["frame"]) for record in corpus.packets()]
ANY_CLIENT = (ip_network("0.0.0.0/0"), ip_network("::/0"))


class Both:
    """A frame through the plain program, the capturing one and a worker."""

    def __init__(self, forwarding: Forwarding, plain: Program, capturing: Program, wanted: Wanted) -> None:
        self.wanted = wanted
        self._forwarding, self._plain, self._capturing = forwarding, plain, capturing
        self._counters = forwarding.new_counters()
        self._kernel, self._worker = KernelTap(capturing.map("glb_captured")), WorkerTap(wanted)

    def run(self, frame: bytes) -> tuple[str | bytes, list[Captured], list[Captured]]:
        """What is done, and what the kernel and the worker capture of it."""
        result = self._plain.run(frame)
        assert self._capturing.run(frame) == result, frame.hex()
        self._worker.encapsulate(self._forwarding, self._counters, [frame])
        return result, self._kernel.take(10, 0), self._worker.take(10)


@contextmanager
def both(forwarding: Forwarding, *, accelerate: bool, table: int = ANY_TABLE, **wanted_options: Any) -> Iterator[Both]:
    wanted = Wanted(_bpf.SharedArrays, **wanted_options)
    wanted.want_table(0, table)
    with (
        Program(forwarding, accelerate=accelerate) as plain,
        Program(forwarding, accelerate=accelerate, capture=wanted) as capturing,
    ):
        yield Both(forwarding, plain, capturing, wanted)


def test_every_map_is_shared_with_the_plain_program() -> None:
    """A map that is left out would be another, empty one while a capture runs."""
    source = (ROOT / "bpf" / "director.bpf.c").read_text()
    assert sorted(SHARED_MAPS) == sorted(re.findall(r'^} (\w+) SEC\("\.maps"\);', source, re.MULTILINE))


@pytest.mark.parametrize(
    ("file", "accelerate"), [*((file, True) for file in own.FILES), ("plain", False), ("errors", False)]
)
def test_each_vector_is_captured_once_as_it_came_and_went(file: str, accelerate: bool) -> None:
    with both(own.forwarding(file, _bpf.SharedArrays), accelerate=accelerate) as programs:
        for vector in own.vectors(file):
            frame = bytes.fromhex(vector["input_hex"])
            if len(frame) < MINIMUM_BYTES:
                continue
            result, by_kernel, (by_worker,) = programs.run(frame)
            if isinstance(result, bytes):
                (seen,) = by_kernel
                assert (seen.received, seen.sent) == (frame, result)
                # Who captured it, and when, is all that differs from what a worker says of it.
                assert seen._replace(at_ns=0, engine="") == by_worker._replace(at_ns=0, engine="")
            else:
                # Handed over: there is no worker in a test run. To the host: captured if it is for a VIP.
                expected = {"over": LOST_NO_SOCKET, "host": "host"}[result]
                assert [(seen.verdict, seen.received, seen.sent) for seen in by_kernel] in (
                    [],
                    [(expected, frame, None)],
                )
                assert by_kernel or vector["name"].startswith("mapped") or result == "host"


@pytest.mark.parametrize("client", ANY_CLIENT)
@pytest.mark.parametrize("env", ["plain", "alt-four", "no-ping", "four-fields"])
def test_what_goes_to_the_host_is_captured_exactly_if_it_is_for_a_vip(
    env: str, client: IPv4Network | IPv6Network
) -> None:
    """By the worker's parser a packet has a client if it is well-formed and for a VIP."""
    frames = [*FRAMES[::5], *mutated(FRAMES, 1, 1000)]
    hosts = 0
    with both(shared_forwarding(env), accelerate=True, client=client) as programs:
        for frame in frames:
            if len(frame) < MINIMUM_BYTES:
                continue
            result, by_kernel, by_worker = programs.run(frame)
            if result == "host":
                assert [seen.verdict for seen in by_kernel] == ["host"] * len(by_worker), frame.hex()
                hosts += len(by_kernel)
            elif isinstance(result, bytes):
                assert [(seen.sent, seen.hash, seen.row) for seen in by_kernel] == [
                    (seen.sent, seen.hash, seen.row) for seen in by_worker
                ]
    assert hosts


def test_both_match_the_same_clients() -> None:
    seen = 0
    for client in ("0.0.0.0/1", "128.0.0.0/1", "2001:db8::/33"):
        with both(shared_forwarding("no-ping"), accelerate=True, client=ip_network(client)) as programs:
            for frame in FRAMES[::2]:
                result, by_kernel, by_worker = programs.run(frame)
                if result != "over":
                    assert len(by_kernel) == len(by_worker), frame.hex()
                    seen += len(by_kernel)
    assert seen


def test_table_sample_and_snap_length_are_the_kernels_too() -> None:
    forwarding = own.forwarding("plain", _bpf.SharedArrays)
    frames = [bytes.fromhex(vector["input_hex"]) for vector in own.vectors("plain")]
    with both(forwarding, accelerate=True) as programs:
        (frame, table), *_ = [(f, seen.table) for f in frames for seen in programs.run(f)[1] if seen.sent is not None]
    for wanted, n in ((table, 1), (table + 1, 0)):
        with both(forwarding, accelerate=True, table=wanted) as programs:
            assert [len(found) for found in programs.run(frame)[1:]] == [n, n]
    long = frame + bytes(500)
    with both(forwarding, accelerate=True, snap_bytes=64) as programs:
        _, (by_kernel,), (by_worker,) = programs.run(long)
        assert by_kernel.received == long[:64] and by_kernel.received_bytes == len(long)
        assert (by_kernel.sent, by_kernel.sent_bytes) == (by_worker.sent, by_worker.sent_bytes)
    with both(forwarding, accelerate=True, sample=10) as programs:
        assert 20 < sum(len(programs.run(frame)[1]) for _ in range(600)) < 120


def test_the_program_of_a_director_that_is_gone_captures_nothing() -> None:
    with both(own.forwarding("plain", _bpf.SharedArrays), accelerate=True) as programs:
        for frame in (bytes.fromhex(vector["input_hex"]) for vector in own.vectors("plain")):
            if len(frame) < MINIMUM_BYTES:
                continue
            programs.wanted.want_until(time.monotonic_ns() - 10**9)  # its clock is a coarse one
            result, by_kernel, _ = programs.run(frame)
            assert by_kernel == []
            programs.wanted.want_until(time.monotonic_ns() + 10**12)
            _, by_kernel, _ = programs.run(frame)
            assert by_kernel or not isinstance(result, bytes)


def test_what_finds_the_kernels_buffer_full_is_counted() -> None:
    forwarding = own.forwarding("plain", _bpf.SharedArrays)
    frame = next(bytes.fromhex(v["input_hex"]) for v in own.vectors("plain") if v["verdict"] == "host")
    wanted = Wanted(_bpf.SharedArrays)
    wanted.want_table(0, ANY_TABLE)
    with Program(forwarding, accelerate=True, capture=wanted) as program:
        tap = KernelTap(program.map("glb_captured"))
        _bpf.test_run(program.number, frame, repeat=20_000)
        got = 0
        while packets := tap.take(100_000, 0):
            got += len(packets)
        assert wanted.missed > 0 and got > 0 and got + wanted.missed == 20_000
        _bpf.test_run(program.number, frame)
        assert len(tap.take(10, 0)) == 1, "there is room again"
