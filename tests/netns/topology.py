"""Hosts for tests: network namespaces on one switch, with addresses, permanent neighbours and a sure clean-up.

    with Switch("client", "director", "proxy1") as net:
        net["proxy1"].run("ip", "addr")
        with net["client"].inside():
            connection = socket.create_connection(...)   # this thread's sockets are the client's

Every host has one interface, `eth0`, with 10.99.0.<n>/24 and fd99::<n>/64, n counting from 1 in the order given. Names
are unique to the test process: glbt-<process>-<serial>-<host>. BPF file systems are mounted as glbt-<process>. `sweep`
removes what processes that no longer live left.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

CLONE_NEWNET = 0x40000000
NETNS_DIR = Path("/run/netns")
PREFIX = "glbt"

T = TypeVar("T")
_libc = ctypes.CDLL(None, use_errno=True)
_serial = itertools.count(1)


class Host:
    """One network namespace with its interface eth0."""

    def __init__(self, name: str, namespace: str, number: int) -> None:
        self.name = name
        self.namespace = namespace
        self.ipv4 = f"10.99.0.{number}"
        self.ipv6 = f"fd99::{number}"
        self.mac = f"02:99:00:00:00:{number:02x}"

    def run(self, *command: str, check: bool = True) -> str:
        """Run a command here and return what it printed (stdout)."""
        done = subprocess.run(self._here(command), capture_output=True, text=True, timeout=30)
        if check and done.returncode:
            raise AssertionError(f"{self.name}: {' '.join(command)}: exit {done.returncode}\n{done.stderr}")
        return done.stdout

    def start(self, *command: str, **options: Any) -> subprocess.Popen[str]:
        """Start a program here; whoever starts it ends it."""
        return subprocess.Popen(self._here(command), text=True, **options)

    def sysctl(self, name: str, value: object | None = None) -> str:
        """Read a sysctl (path below /proc/sys, as in net/ipv4/ip_forward), after setting it if a value is given."""
        with self.inside():
            path = Path("/proc/sys", name)  # net/ is that of the thread that opens it
            if value is not None:
                path.write_text(str(value))
            return path.read_text().strip()

    @contextmanager
    def inside(self) -> Iterator[None]:
        """This thread is in the host's network namespace; sockets opened meanwhile stay there."""
        before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            _set_namespace(NETNS_DIR / self.namespace)
            yield
        finally:
            if _libc.setns(before, CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), "cannot return to the test's own namespace")
            os.close(before)

    def _here(self, command: tuple[str, ...]) -> list[str]:
        return ["ip", "netns", "exec", self.namespace, *command]


class Switch:
    """Hosts on one Ethernet switch (a bridge in a namespace of its own)."""

    def __init__(self, *names: str, mtu: int = 1500) -> None:
        stem = f"{PREFIX}-{os.getpid()}-{next(_serial)}"
        self.hosts = {name: Host(name, f"{stem}-{name}", i) for i, name in enumerate(names, 1)}
        self.core = Host("switch", f"{stem}-switch", 250)
        self.mtu = mtu

    def __getitem__(self, name: str) -> Host:
        return self.hosts[name]

    def __enter__(self) -> Switch:
        try:
            self._build()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._remove()

    def _build(self) -> None:
        every = [self.core, *self.hosts.values()]
        for host in every:
            _ip("netns", "add", host.namespace)
            host.sysctl("net/ipv6/conf/default/accept_dad", 0)
            host.sysctl("net/ipv6/conf/default/accept_ra", 0)
            _ip("-n", host.namespace, "link", "set", "lo", "up")
        _batch(self.core, ["link add br0 type bridge", "link set br0 up"])
        for host in self.hosts.values():
            mtu = self.mtu
            _batch(
                self.core,
                [
                    f"link add name {host.name} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {host.namespace}",
                    f"link set dev {host.name} master br0 up",
                ],
            )
            others = [other for other in self.hosts.values() if other is not host]
            _batch(
                host,
                [
                    f"link set eth0 address {host.mac}",
                    "link set eth0 up",
                    f"addr add {host.ipv4}/24 dev eth0",
                    f"addr add {host.ipv6}/64 dev eth0 nodad",
                    *(f"neigh replace {o.ipv4} lladdr {o.mac} dev eth0 nud permanent" for o in others),
                    *(f"neigh replace {o.ipv6} lladdr {o.mac} dev eth0 nud permanent" for o in others),
                ],
            )
            # Whole checksums on the wire, as a network card would send them.
            host.run("ethtool", "-K", "eth0", "tx", "off", check=False)

    def _remove(self) -> None:
        for host in [self.core, *self.hosts.values()]:
            _delete_namespace(host.namespace)


@contextmanager
def bpf_file_system(folder: Path) -> Iterator[Path]:
    """One of the test process's own, there while the block lasts."""
    subprocess.run(["mount", "-t", "bpf", f"{PREFIX}-{os.getpid()}", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def sweep() -> None:
    """Remove the namespaces and BPF file systems of test processes that no longer live."""
    for path in NETNS_DIR.glob(f"{PREFIX}-*") if NETNS_DIR.is_dir() else ():
        if _is_left(path.name):
            _delete_namespace(path.name)
    for line in Path("/proc/self/mounts").read_text().splitlines():
        source, folder, *_ = line.split()
        if _is_left(source):
            # Lazily: what was killed with its namespace may not have ended yet. Another test process may be the first.
            subprocess.run(["umount", "--lazy", folder], capture_output=True)


def _is_left(name: str) -> bool:
    owner = re.match(rf"{PREFIX}-(\d+)(-|$)", name)
    return owner is not None and not Path(f"/proc/{owner[1]}").exists()


@contextmanager
def repeating(step: Callable[[int], object], every_s: float = 0.0) -> Iterator[list[int]]:
    """Calls step(0), step(1) and so on in a thread while the block lasts; how many have returned so far."""
    done, over = [0], threading.Event()

    def run() -> None:
        while not over.wait(every_s):
            step(done[0])
            done[0] += 1

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield done
    finally:
        over.set()
        thread.join()


def eventually(question: Callable[[], T], *, within_s: float = 10.0) -> T:
    """Ask until the answer is true, and return it; AssertionError with the last answer when time is up.

    For events of other processes that nothing announces.
    """
    deadline = time.monotonic() + within_s
    while True:
        answer = question()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {within_s} s; last answer: {answer!r}")
        time.sleep(0.01)


def _delete_namespace(name: str) -> None:
    """End what runs in it, then remove it: a process would keep it alive."""
    if not (NETNS_DIR / name).exists():
        return
    pids = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True).stdout.split()
    for pid in pids:
        if int(pid) != os.getpid():
            with suppress(ProcessLookupError):
                os.kill(int(pid), 9)
    subprocess.run(["ip", "netns", "del", name], capture_output=True)


def _set_namespace(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _libc.setns(fd, CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), f"cannot enter {path}")
    finally:
        os.close(fd)


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    if done.returncode:
        raise AssertionError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")


def _batch(host: Host, lines: list[str]) -> None:
    done = subprocess.run(
        ["ip", "-n", host.namespace, "-batch", "-"], input="\n".join(lines) + "\n", capture_output=True, text=True
    )
    if done.returncode:
        raise AssertionError(f"{host.name}: {done.stderr.strip()}")
