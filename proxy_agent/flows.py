"""How many live TCP flows each VIP, and each bind of it, has on this proxy: a drain is done when the numbers are zero.

Live means that something may still be delivered: established, closing with data on the way (FIN_WAIT1, CLOSE_WAIT,
LAST_ACK, CLOSING), or FIN_WAIT2 while a process holds the socket. TIME_WAIT and half-open ones do not count.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

from glb._bpf import BpfObject
from glb.errors import DeviceError
from proxy_agent._flows import Diag, Tally, Walk, enter_namespace
from proxy_agent.config import Network, namespace_path
from proxy_agent.vips import text

log = logging.getLogger("glb-proxy-agent")

PROGRAM = "glb_list_flows"
MEMORY = ".bss"  # libbpf's map of the program's variables
OWN_NAMESPACE = "/proc/thread-self/ns/net"
SYSCTLS = Path("/proc/sys/net/ipv4")  # of the calling thread's network namespace
TOLD_FOR_S = 600.0  # a bind without flows and listener: whoever watches a drain gets to see its 0


@dataclass(frozen=True)
class BindFlows:
    """Live flows at one port of a VIP; `port` None: at all ports without a listener together."""

    address: str  # the VIP as written in the configuration
    port: int | None
    flows: int


@dataclass(frozen=True)
class FlowCount:
    """One count."""

    by_vip: dict[str, int]  # every VIP of the configuration
    binds: tuple[BindFlows, ...]
    counted_by: str  # "bpf" or "inet_diag"
    problems: tuple[str, ...] = ()  # what was not counted, and why


class _Namespace(NamedTuple):
    """Another network namespace that has been entered."""

    diag: Diag
    table: int


def object_path() -> Path:
    return Path(str(files("glb"))) / "bpf_objects" / "flows.bpf.o"


class FlowCounter:
    """Counts in the thread that asks, without the GIL. Loads its eBPF program where that is allowed."""

    def __init__(self, program: Path | None = None) -> None:
        """`program`: the eBPF object, if not the one that the package ships."""
        self.refusal: str | None = None  # why flows are counted by inet_diag, which takes longer
        self._lock = threading.Lock()
        self._own = Diag()
        self._table = socket_table()
        self._elsewhere: dict[int, _Namespace | str] = {}  # by inode; or why it cannot be asked
        # Binds, and when each last had a listener or flows: a server that leaves stops listening first.
        self._known: dict[tuple[Network, int], float] = {}
        self._object: BpfObject | None = None
        self._walk: Walk | None = None
        try:
            self._object = BpfObject(program or object_path())
            self._walk = Walk(self._object.program(PROGRAM), self._object.map(MEMORY))
            self._walk.flows(Tally(()), [os.stat(OWN_NAMESPACE).st_ino])
        except DeviceError as error:
            self._walk = None
            self.refusal = str(error).partition("\n")[0]

    def close(self) -> None:
        with self._lock:
            self._walk = None
            if self._object is not None:
                self._object.close()
                self._object = None

    def count(self, vips: Sequence[Network], namespaces: Iterable[str] = ()) -> FlowCount:
        """Live flows of `vips` in this network namespace and in others, given by name or path. DeviceError."""
        with self._lock:
            problems: list[str] = []
            elsewhere = self._open(namespaces, problems)
            index = {vip: i for i, vip in enumerate(vips)}
            now = time.monotonic()
            self._known = {
                (vip, port): last
                for (vip, port), last in self._known.items()
                if vip in index and now - last < TOLD_FOR_S
            }
            known = [(index[vip], port) for vip, port in self._known]
            tally = self._walked(Tally(vips, known), elsewhere) or self._dumped(Tally(vips, known), elsewhere)
            for inode, found in elsewhere.items():
                if isinstance(found, str):
                    problems.append(f"network namespace {inode}: {self._not_counted()}: {found}")
            return self._result(tally, problems, now)

    def _walked(self, tally: Tally, elsewhere: dict[int, _Namespace | str]) -> Tally | None:
        """The flows of our table of sockets walked, those of other tables dumped; None, from now on, if it fails."""
        if self._walk is None:
            return None
        self._listeners(tally, elsewhere)
        apart = {i for i, found in elsewhere.items() if isinstance(found, _Namespace) and found.table != self._table}
        try:
            self._walk.flows(tally, [os.stat(OWN_NAMESPACE).st_ino, *(elsewhere.keys() - apart)])
        except DeviceError as error:
            self._walk, self.refusal = None, str(error)
            log.warning("flows are counted by inet_diag from now on, 2 us for each socket of the host: %s", error)
            return None
        self._dump(tally, {inode: elsewhere[inode] for inode in apart})
        return tally

    def _dumped(self, tally: Tally, elsewhere: dict[int, _Namespace | str]) -> Tally:
        self._listeners(tally, elsewhere)
        self._own.flows(tally)
        self._dump(tally, elsewhere)
        return tally

    def _listeners(self, tally: Tally, elsewhere: dict[int, _Namespace | str]) -> None:
        self._own.listeners(tally)
        for found in elsewhere.values():
            if isinstance(found, _Namespace):
                found.diag.listeners(tally)

    def _dump(self, tally: Tally, elsewhere: dict[int, _Namespace | str]) -> None:
        for found in elsewhere.values():
            if isinstance(found, _Namespace):
                found.diag.flows(tally)

    def _not_counted(self) -> str:
        """What is left out of a network namespace that cannot be entered."""
        if self._walk is None:
            return "flows are not counted"
        if _sysctl("tcp_child_ehash_entries"):
            return "its listeners are not known, and its flows only if it has no table of sockets of its own"
        return "its listeners are not known"

    def _result(self, tally: Tally, problems: list[str], now: float) -> FlowCount:
        rest = tally.by_vip()
        binds = []
        for entry, port, flows, listens in sorted(tally.binds()):
            rest[entry] -= flows
            binds.append(BindFlows(text(tally.vips[entry]), port, flows))
            if flows or listens:
                self._known[tally.vips[entry], port] = now
        binds += [BindFlows(text(vip), None, left) for vip, left in zip(tally.vips, rest, strict=True) if left]
        by_vip = dict(zip(map(text, tally.vips), tally.by_vip(), strict=True))
        return FlowCount(by_vip, tuple(binds), "inet_diag" if self._walk is None else "bpf", tuple(problems))

    def _open(self, names: Iterable[str], problems: list[str]) -> dict[int, _Namespace | str]:
        """The other network namespaces that are there, by inode."""
        found: dict[int, _Namespace | str] = {}
        own = os.stat(OWN_NAMESPACE).st_ino
        for name in names:
            try:
                fd = os.open(namespace_path(name), os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                problems.append(f"{name}: {error.strerror}")
                continue
            try:
                inode = os.fstat(fd).st_ino
                if inode != own:
                    found[inode] = self._elsewhere.get(inode) or _diag_of(fd)
            finally:
                os.close(fd)
        self._elsewhere = found
        return found


def socket_table() -> int:
    """Which table of TCP sockets the calling thread's network namespace has: 0, the machine's, or one of its own."""
    # Negative: no table of its own. The sysctl beside it is in the machine's first network namespace alone.
    if _sysctl("tcp_ehash_entries") <= 0 or (SYSCTLS / "tcp_max_orphans").exists():
        return 0
    return os.stat(OWN_NAMESPACE).st_ino


def _sysctl(name: str) -> int:
    """0 where there is none: before Linux 6.1 all namespaces share one table."""
    try:
        return int((SYSCTLS / name).read_text())
    except (OSError, ValueError):
        return 0


def _diag_of(fd: int) -> _Namespace | str:
    """Ask in a network namespace: opened by a thread that goes there and ends. Why it cannot be, else."""
    opened: list[_Namespace | str] = []

    def enter() -> None:
        try:
            enter_namespace(fd)
            opened.append(_Namespace(Diag(), socket_table()))
        except (OSError, DeviceError) as error:
            opened.append(f"{error}; that needs CAP_SYS_ADMIN, and a unit without RestrictNamespaces")

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    return opened[0]
