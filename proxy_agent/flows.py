"""How many live TCP flows each VIP, and each bind of it, has on this proxy: a drain is done when the numbers are zero.

Live means that something may still be delivered: established, closing with data on the way (FIN_WAIT1, CLOSE_WAIT,
LAST_ACK, CLOSING), or FIN_WAIT2 while a process holds the socket. TIME_WAIT and half-open ones do not count.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from glb._bpf import BpfObject
from glb.errors import DeviceError
from proxy_agent._flows import Diag, Tally, Walk, enter_namespace
from proxy_agent.config import Network, namespace_path
from proxy_agent.vips import text

PROGRAM = "glb_list_flows"
MEMORY = ".bss"  # libbpf's map of the program's variables
OWN_NAMESPACE = "/proc/thread-self/ns/net"


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


def object_path() -> Path:
    return Path(str(files("glb"))) / "bpf_objects" / "flows.bpf.o"


class FlowCounter:
    """Counts in the thread that asks, without the GIL. Loads its eBPF program where that is allowed."""

    def __init__(self, program: Path | None = None) -> None:
        """`program`: the eBPF object, if not the one that the package ships."""
        self.refusal: str | None = None  # why flows are counted by inet_diag, which takes longer
        self._lock = threading.Lock()
        self._own = Diag()
        self._elsewhere: dict[int, Diag | str] = {}  # by inode of the network namespace; or why it cannot be asked
        self._known: set[tuple[Network, int]] = set()  # binds: a server that leaves stops listening first
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
            self._known = {(vip, port) for vip, port in self._known if vip in index}
            known = [(index[vip], port) for vip, port in self._known]
            asked = [self._own, *(diag for diag in elsewhere.values() if isinstance(diag, Diag))]
            try:
                tally = self._tally(Tally(vips, known), asked, elsewhere)
            except DeviceError as error:
                if self._walk is None:
                    raise
                self._walk, self.refusal = None, str(error)
                tally = self._tally(Tally(vips, known), asked, elsewhere)
            for inode, diag_or_reason in elsewhere.items():
                if isinstance(diag_or_reason, str):
                    what = "flows are not counted" if self._walk is None else "its listeners are not known"
                    problems.append(f"network namespace {inode}: {what}: {diag_or_reason}")
            return self._result(tally, problems)

    def _tally(self, tally: Tally, asked: Iterable[Diag], elsewhere: Iterable[int]) -> Tally:
        for diag in asked:
            diag.listeners(tally)
        if self._walk is not None:
            self._walk.flows(tally, [os.stat(OWN_NAMESPACE).st_ino, *elsewhere])
        else:
            for diag in asked:
                diag.flows(tally)
        return tally

    def _result(self, tally: Tally, problems: list[str]) -> FlowCount:
        rest = tally.by_vip()
        binds = []
        for entry, port, flows in sorted(tally.binds()):
            rest[entry] -= flows
            binds.append(BindFlows(text(tally.vips[entry]), port, flows))
            self._known.add((tally.vips[entry], port))
        binds += [BindFlows(text(vip), None, left) for vip, left in zip(tally.vips, rest, strict=True) if left]
        by_vip = dict(zip(map(text, tally.vips), tally.by_vip(), strict=True))
        return FlowCount(by_vip, tuple(binds), "inet_diag" if self._walk is None else "bpf", tuple(problems))

    def _open(self, names: Iterable[str], problems: list[str]) -> dict[int, Diag | str]:
        """The other network namespaces that are there, by inode."""
        found: dict[int, Diag | str] = {}
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


def _diag_of(fd: int) -> Diag | str:
    """Ask in a network namespace: opened by a thread that goes there and ends. Why it cannot be, else."""
    opened: list[Diag | str] = []

    def enter() -> None:
        try:
            enter_namespace(fd)
            opened.append(Diag())
        except (OSError, DeviceError) as error:
            opened.append(f"{error}; that needs CAP_SYS_ADMIN")

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    return opened[0]
