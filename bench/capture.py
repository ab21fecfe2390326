"""What a packet capture costs the XDP program: while there is none, while nothing matches, while everything does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from ipaddress import ip_network
from typing import Any

from bench import samples
from bench.chain import Chain, Director
from bench.errors import BenchError
from bench.measure import BASELINE, OURS, Session, net_figure, pinned
from glb import _bpf
from glb._capture import ANY_TABLE, KernelTap, Wanted

SUMMARY = "the XDP program alone while packets are captured, against the plain one"

_FLEET = samples.Fleet(n_backends=100, vips=252, cidrs=16)
_REPEAT = 4000  # as many as the buffer of a processor holds of these frames; some 1 ms
_ALTERNATIONS = 45
_CLIENTS = 7  # a mask; so few, and so few VIPs, that rows are in the first-level cache even in short samples
_FEW_VIPS = 8
_NOBODY = ip_network("192.0.2.1/32")
_METHOD = (
    "as flat/ hot, in short samples that fit the buffer of captured packets, which is emptied between them; the plain "
    "program, the capturing one and the bare chain take turns"
)


def run(session: Session) -> Iterator[dict[str, Any]]:
    for family, frame in ((4, samples.ipv4_frame(64, 0, 0)), (6, samples.ipv6_frame(78, 0, 0))):
        yield from _family(session, family, frame)


def _family(session: Session, family: int, frame: bytes) -> Iterator[dict[str, Any]]:
    vips = _FLEET.vips_of(family)[_FLEET.cidrs :][:_FEW_VIPS]
    kinds = {"off": None, "no-match": Wanted(_bpf.SharedArrays, client=_NOBODY), "all": Wanted(_bpf.SharedArrays)}
    with ExitStack() as stack, pinned(session.cores.work):
        sides: dict[str, Callable[[], float]] = {}
        for kind, wanted in kinds.items():
            director = stack.enter_context(closing(Director(_FLEET.document(), capture=wanted)))
            chain = stack.enter_context(closing(Chain(frame, vips, director, clients=_CLIENTS)))
            if wanted is None:
                sides[kind] = lambda chain=chain: chain.measure_ns(_REPEAT)  # type: ignore[misc]
            else:
                wanted.want_table(0, ANY_TABLE)
                tap = KernelTap(director.map("glb_captured"))
                sides[kind] = _captured(chain, tap, wanted, expected=_REPEAT if kind == "all" else 0)
        bare = stack.enter_context(closing(Chain(frame, vips, None, clients=_CLIENTS)))
        sides[BASELINE] = lambda: bare.measure_ns(_REPEAT)
        taken = session.alternate(f"capture/ipv{family}", sides, session.times(_ALTERNATIONS))
    off = min(taken["off"]) - min(taken[BASELINE])
    for kind in kinds:
        line = net_figure(
            f"capture/{kind}-ipv{family}",
            {OURS: taken[kind], BASELINE: taken[BASELINE]},
            frame_bytes=[len(frame)],
            method=_METHOD,
            baseline="the chain alone, which is not in the value",
            not_included="receiving, sending and reading what was captured",
        )
        yield line | {"to_off": round(line["value"] / off, 3)}


def _captured(chain: Chain, tap: KernelTap, wanted: Wanted, expected: int) -> Callable[[], float]:
    def measure() -> float:
        missed = wanted.missed
        taken = chain.measure_ns(_REPEAT)
        got = 0
        while packets := tap.take(_REPEAT, 0):
            got += len(packets)
        if got + wanted.missed - missed != expected or got < expected * 0.9:
            raise BenchError(f"{got} packets were captured of {expected}")
        return taken

    return measure
