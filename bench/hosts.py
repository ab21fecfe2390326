"""Two hosts without a name: network namespaces that last as long as their processes, so nothing is ever left over.

Each namespace is held by a process that reads a pipe of ours. When this process ends, in order or by `kill -9`, the
pipe ends, the holder with it, and with that the namespace and its links.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import IO

from pyroute2 import IPRoute, netns

from bench.errors import BenchError

_DEADLINE_S = 5.0


class Host:
    """A network namespace, and what runs in it. Made by `hosts`."""

    def __init__(self) -> None:
        self._holder = subprocess.Popen(
            ["unshare", "--net", "cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True
        )
        deadline = time.monotonic() + _DEADLINE_S
        while self._inode() == os.stat("/proc/self/ns/net").st_ino:
            if self._holder.poll() is not None or time.monotonic() > deadline:
                self.close()
                raise BenchError("cannot make a network namespace (unshare --net)")
            time.sleep(0.005)

    @property
    def path(self) -> str:
        return f"/proc/{self._holder.pid}/ns/net"

    @property
    def pid(self) -> int:
        return self._holder.pid

    def _inode(self) -> int:
        try:
            return os.stat(self.path).st_ino
        except OSError as error:
            raise BenchError("cannot make a network namespace (unshare --net)") from error

    def start(
        self,
        argv: Sequence[str],
        core: int | str,
        *,
        stdin: int = subprocess.DEVNULL,
        stderr: IO[bytes] | None = None,
        environment: dict[str, str] | None = None,
    ) -> subprocess.Popen[str]:
        """A program on this host and one core, or several ("0,1"); it is killed when this process ends, in any way."""
        command = ["setpriv", "--pdeathsig", "KILL", "nsenter", f"--net={self.path}", "taskset", "-c", str(core), *argv]
        return subprocess.Popen(
            command,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env=os.environ | (environment or {}),
            start_new_session=True,  # Ctrl-C in the terminal is for us; we end it
        )

    @contextmanager
    def routes(self) -> Iterator[IPRoute]:
        """pyroute2's `IPRoute`, speaking to this host."""
        netns.pushns(self.path)
        try:
            ipr = IPRoute()
            ipr.link_lookup(ifname="lo")  # opens its socket now, inside the namespace
        finally:
            netns.popns()
        with ipr:
            yield ipr

    def close(self) -> None:
        assert self._holder.stdin is not None
        self._holder.stdin.close()
        try:
            self._holder.wait(_DEADLINE_S)
        except subprocess.TimeoutExpired:
            self._holder.kill()
            self._holder.wait()


@contextmanager
def hosts(*links: str) -> Iterator[tuple[Host, Host]]:
    """Two hosts joined by one veth pair for each name, which the interface has on both."""
    if os.geteuid() != 0:
        raise BenchError("it makes network namespaces: run it as root")
    missing = [name for name in ("unshare", "nsenter", "setpriv", "taskset") if shutil.which(name) is None]
    if missing:
        raise BenchError(f"missing: {', '.join(missing)} (apt-get install util-linux)")
    with ExitStack() as stack:
        near, far = Host(), None
        stack.callback(near.close)
        far = Host()
        stack.callback(far.close)
        with near.routes() as here, far.routes() as there:
            for name in links:
                here.link("add", ifname=name, kind="veth", peer={"ifname": name, "net_ns_pid": far.pid})
                for end in (here, there):
                    end.link("set", index=end.link_lookup(ifname=name)[0], state="up")
        yield near, far
