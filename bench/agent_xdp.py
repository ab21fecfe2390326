"""The agent's XDP program: by itself, beside one that strips without looking, and bouncing over veth."""

from __future__ import annotations

import itertools
import os
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_network
from pathlib import Path
from typing import Any

from pyroute2 import netns

from bench import compiled
from bench.errors import BenchError
from bench.established import Address, established
from bench.hosts import Host, hosts
from bench.live import LoadClient, ending
from bench.load import Order
from bench.measure import BASELINE, OURS, Session, figure, net_figure, pinned, significant, spread
from bench.xdp import Contest
from glb import _bpf
from glb.wire.checksum import ipv4_header
from glb.wire.gue import GUE_PORT, encapsulate
from proxy_agent import xdp
from proxy_agent.engine import Guard

SUMMARY = "the agent's XDP program alone, and bouncing over veth against a bare MAC swap"

_LINK = "glbb-agent"
_DIRECTOR, _PROXY, _NEXT = (IPv4Address(f"10.98.0.{n}") for n in (1, 2, 3))
_NEXT_MAC, _PROXY_MAC = bytes.fromhex("029800000003"), bytes.fromhex("029800000002")
_VIPS: dict[int, Address] = {4: IPv4Address("198.51.100.1"), 6: IPv6Address("2001:db8:51::1")}
_CLIENTS: dict[int, Address] = {4: IPv4Address("10.64.0.0"), 6: IPv6Address("2001:db8:99::1:0")}
_STRANGERS: dict[int, Address] = {4: IPv4Address("10.96.0.0"), 6: IPv6Address("2001:db8:99::2:0")}
_PORT = 80
_SYN, _ACK = 0x02, 0x10
_FEW = 8  # what they need stays in the first-level cache: only the program's own work counts
_MANY, _QUICK_MANY = 100_000, 2000
_PASS, _TX = 2, 3
_FIRST = bytes(4)
_HEADER_BYTES = 114

_REPEAT, _QUICK_REPEAT = 300_000, 20_000
_ALTERNATIONS = 5  # of each of four phases
_SECONDS, _QUICK_SECONDS = 0.5, 0.2
_LIVE_ALTERNATIONS = 15

_ALONE_METHOD = (
    "BPF_PROG_TEST_RUN, one core, in a network namespace with the sockets; before each repetition "
    "bench/agent_chain.bpf.c moves the head back, writes a tunnel packet with one hop of a random flow, and goes on "
    "with the program by a tail call; least processor time less the least of the same chain with the baseline"
)
_STRIP = "a program that strips the tunnel without looking (its own cost is not in the value)"
_LIVE_METHOD = (
    "a veth pair, native XDP, XDP_TX; tunnel packets of an unknown flow, from random sources, from BPF_PROG_TEST_RUN "
    "with live frames on the same core, as fast as it goes; counted by an XDP_DROP program at the other end; the two "
    "programs take turns on the same interface"
)


@dataclass(frozen=True)
class Case:
    """A kind of tunnel packet, and what must become of it."""

    flags: int
    known: bool  # its flows have sockets
    next_hop: int  # of one
    reason: str
    action: int


_CASES = {
    "established": Case(_ACK, True, 0, "established", _PASS),
    "syn": Case(_SYN, False, 0, "syn", _PASS),
    "last-resort": Case(_ACK, False, 1, "last_resort", _PASS),
    "bounce": Case(_ACK, False, 0, "bounce", _TX),
}


def run(session: Session) -> Iterator[dict[str, Any]]:
    yield from _alone(session)
    yield from _live(session)


def _frame(family: int, flags: int, next_hop: int = 0) -> bytes:
    """A stranger's tunnel packet to the proxy, with one further hop; its checksums are right but the inner TCP's."""
    client, vip = _STRANGERS[family], _VIPS[family]
    segment = struct.pack("!HHLLBBHHH", 1024, _PORT, 1, 1, 0x50, flags, 0xFFFF, 0, 0)
    if isinstance(client, IPv4Address) and isinstance(vip, IPv4Address):
        inner = ipv4_header(client, vip, 6, len(segment)) + segment
    else:
        inner = struct.pack("!LHBB", 0x60000000, len(segment), 6, 64) + client.packed + vip.packed + segment
    packet = encapsulate(inner, str(_DIRECTOR), [str(_PROXY), str(_NEXT)])
    gue = 28
    packet = packet[: gue + 6] + bytes([next_hop]) + packet[gue + 7 :]
    return _PROXY_MAC + _NEXT_MAC + b"\x08\x00" + packet


@contextmanager
def _program(ifindex: int) -> Iterator[xdp.Program]:
    """The installed program, serving the VIPs; not attached. What bounces leaves by `ifindex`."""
    program = xdp.Program(xdp.options(GUE_PORT, ifindex, by_redirect=False))
    vips = tuple(ip_network(str(vip)) for vip in _VIPS.values())
    with closing(program):
        program.adopt(Guard(vips, None, (str(_PROXY),)))
        yield program


# ---- the program by itself -----------------------------------------------------------------------------------------


class Chain:
    """Tunnel packets of a case, each of another of `n_flows` flows, to the agent's program; without one, to `strip`."""

    def __init__(self, family: int, case: Case, program: xdp.Program | None, n_flows: int = _FEW) -> None:
        self._case, self._program = case, program
        self._frame = _frame(family, case.flags, case.next_hop)
        self._object = _bpf.BpfObject(compiled.bpf_object("agent_chain.bpf.c"))
        first = int((_CLIENTS if case.known else _STRANGERS)[family]) & 0xFFFFFFFF
        head = struct.pack("=4I", len(self._frame), n_flows, first, _PORT) + self._frame[:_HEADER_BYTES]
        _bpf.update_map(self._object.map("settings"), _FIRST, head.ljust(132, b"\0"))
        goes_on = program.fd if program else self._object.program(f"strip_ipv{family}")
        _bpf.update_map(self._object.map("programs"), _FIRST, goes_on.to_bytes(4, "little"))
        self._reset = self._object.program(f"reset_ipv{family}")

    def measure_ns(self, repeat: int) -> float:
        """This thread's processor time for a repetition, in nanoseconds."""
        before = self._counted()
        began = time.thread_time_ns()
        action, _, _ = _bpf.test_run(self._reset, self._frame, repeat=repeat)
        taken = (time.thread_time_ns() - began) / repeat
        if self._program and (action != self._case.action or self._counted() - before != repeat):
            raise BenchError(f"not every packet was {self._case.reason}: {self._program.counters()}, action {action}")
        return taken

    def _counted(self) -> int:
        return self._program.counters()[self._case.reason] if self._program else 0

    def close(self) -> None:
        self._object.close()


@contextmanager
def _proxy(far: Host) -> Iterator[int]:
    """The far host is a proxy, and this thread is on it; the interface's index."""
    with far.routes() as ipr:
        lo, (link, *_) = ipr.link_lookup(ifname="lo")[0], ipr.link_lookup(ifname=_LINK)
        ipr.link("set", index=lo, state="up")
        ipr.link("set", index=link, address=_PROXY_MAC.hex(":"))
        ipr.addr("add", index=link, address=str(_PROXY), prefixlen=24)
        ipr.addr("add", index=link, address="2001:db8:98::2", prefixlen=64)
        for vip in _VIPS.values():
            ipr.addr("add", index=lo, address=str(vip), prefixlen=vip.max_prefixlen)
        ipr.neigh("add", dst=str(_NEXT), lladdr=_NEXT_MAC.hex(":"), ifindex=link, state="permanent")
        ipr.route("add", dst="default", gateway=str(_NEXT))
        ipr.route("add", dst="default", gateway="2001:db8:98::3")
    netns.pushns(far.path)
    try:
        for name in (_LINK, "lo"):  # a test run's packets come in by lo
            Path(f"/proc/sys/net/ipv4/conf/{name}/forwarding").write_text("1")
        yield link
    finally:
        netns.popns()


def _alone(session: Session) -> Iterator[dict[str, Any]]:
    repeat, most = (_QUICK_REPEAT, _QUICK_MANY) if session.quick else (_REPEAT, _MANY)
    # Few flows and many, twice and mirrored: what drifts favours neither.
    phases = (False, True) if session.quick else (False, True, True, False)
    with hosts(_LINK) as (_, far), _proxy(far) as ifindex, _program(ifindex) as program, ExitStack() as stack:
        stack.enter_context(pinned(session.cores.work))
        for family in _VIPS:
            chains = {name: stack.enter_context(closing(Chain(family, case, program))) for name, case in _CASES.items()}
            chains["spread"] = stack.enter_context(closing(Chain(family, _CASES["established"], program, most)))
            chains[BASELINE] = stack.enter_context(closing(Chain(family, _CASES["established"], None)))
            taken: dict[bool, dict[str, list[float]]] = {False: {}, True: {}}
            for many in phases:
                flows = range(most if many else _FEW)
                sides = {
                    name: lambda chain=chain: chain.measure_ns(repeat)  # type: ignore[misc]
                    for name, chain in chains.items()
                    if many or name != "spread"
                }
                with established(_VIPS[family], _PORT, _CLIENTS[family], flows):
                    label = f"agent-xdp/alone-ipv{family}, {len(flows)} flows"
                    for name, values in session.alternate(label, sides, session.times(_ALTERNATIONS)).items():
                        taken[many].setdefault(name, []).extend(values)
            for name in ("established", "spread", "syn", "last-resort", "bounce"):
                yield from _figures(family, name, taken, most)


def _figures(family: int, name: str, taken: dict[bool, dict[str, list[float]]], most: int) -> Iterator[dict[str, Any]]:
    """With few established flows on the host, and with many."""
    found: dict[bool, float] = {}
    for many in (False, True):
        if name not in taken[many]:
            continue
        line = net_figure(
            f"agent-xdp/{name}-ipv{family}" + ("-many" if many and name != "spread" else ""),
            {OURS: taken[many][name], BASELINE: taken[many][BASELINE]},
            frame_bytes=[len(_frame(family, _ACK))],
            method=_ALONE_METHOD,
            baseline=_STRIP,
            not_included="receiving and sending",
            established_flows=most if many else _FEW,
            flows_of_the_packets=most if name == "spread" else _FEW,
        )
        found[many] = line["value"]
        yield line | ({"to_few_flows": significant(found[True] / found[False])} if len(found) == 2 else {})


# ---- over veth -----------------------------------------------------------------------------------------------------


def _live(session: Session) -> Iterator[dict[str, Any]]:
    seconds, most = (_QUICK_SECONDS, _QUICK_MANY) if session.quick else (_SECONDS, _MANY)
    core = session.cores.load
    with hosts(_LINK) as (near, far), ExitStack() as stack:
        load = LoadClient(near, core, [_LINK])
        stack.enter_context(ending(load.process))
        bare = stack.enter_context(closing(_bpf.BpfObject(compiled.bpf_object("chain.bpf.c"))))
        ifindex = stack.enter_context(_proxy(far))
        program = stack.enter_context(_program(ifindex))
        programs = {OURS: program.fd, BASELINE: bare.program("swap")}
        link = _bpf.attach_xdp(programs[BASELINE], ifindex)
        stack.callback(os.close, link)
        for family, n_flows in itertools.product(_VIPS, (0, most)):
            frame = _frame(family, _ACK)
            contest = Contest(load, link, programs, programs, Order(_LINK, frame, 0.0, seconds), core)
            name = f"agent-xdp/live-bounce-ipv{family}" + ("-many" if n_flows else "")
            counted = program.counters()
            with established(_VIPS[family], _PORT, _CLIENTS[family], range(n_flows)):
                taken = session.alternate(name, contest.sides(), session.times(_LIVE_ALTERNATIONS))
            changed = {reason for reason, n in program.counters().items() if n != counted[reason]}
            if changed != {"bounce"}:
                raise BenchError(f"packets were judged {', '.join(sorted(changed))}, not only bounced")
            yield figure(
                name,
                taken,
                unit="frames/s",
                better="higher",
                frame_bytes=[len(frame)],
                method=_LIVE_METHOD,
                baseline="an XDP program that exchanges the MAC addresses and returns XDP_TX",
                not_included="a network card",
                cpu_ratio=contest.cpu_ratio(),
                cpu_ns_per_frame={side: spread(values) for side, values in contest.cpu_ns.items()},
                established_flows=n_flows,
                seconds_each=seconds,
            )
