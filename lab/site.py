"""A lab that stands: its name, its lock, its run directory, its hosts and the programs on them.

Several labs can stand at once; each has a prefix of its own (``glb``, ``glb2``, ...), held by a lock for as long as
anything of it is left. The record of what was made is written before it is made, so that nothing escapes the reaper.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from lab import bird, content, network, nginx, plan, program, reaper
from lab.errors import LabError
from lab.program import Program, until

RUN_ROOT = Path("/run/glb-lab")
BIN = Path(sys.executable).parent  # where glb-director, glb-proxy-agent and glbctl are installed
_PREFIXES = ("glb", *(f"glb{n}" for n in range(2, 10)))
_REAP_DEADLINE_S = 15.0


class Lab:
    """``with Lab() as lab:`` builds the hosts, the router's BIRD and the proxies' nginx; leaving removes everything.

    After an error the logs stay in ``home`` until the next lab of that name.
    """

    def __init__(self) -> None:
        if os.geteuid() != 0:
            raise LabError("the lab makes network namespaces: run it as root")
        self.prefix, lock = _claim()
        self.home = RUN_ROOT / self.prefix
        self._reaper = _start_reaper(self.home, lock)
        self._keep_logs = False
        self.programs: list[Program] = []

    def __enter__(self) -> Lab:
        try:
            self._build()
        except BaseException as error:
            self.__exit__(type(error), error, error.__traceback__)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if error is not None and not isinstance(error, KeyboardInterrupt):
            self.keep_logs()
            error.add_note(f"The logs and configurations of every host stay in {self.home} until the next lab.")
        self.close()

    def close(self) -> None:
        """Remove all (the reaper does it; this waits until it has)."""
        pipe = self._reaper.stdin
        assert pipe is not None
        with suppress(BrokenPipeError):
            pipe.write(b"" if self._keep_logs else reaper.KEEP_NOTHING)
            pipe.close()
        try:
            self._reaper.wait(_REAP_DEADLINE_S)
        except subprocess.TimeoutExpired as error:
            raise LabError(f"the lab {self.prefix} is not gone after {_REAP_DEADLINE_S:g} s") from error
        for each in self.programs:
            each.stop()  # dead already: this only collects them

    def keep_logs(self) -> None:
        """Leave the run directory when the lab goes."""
        self._keep_logs = True

    def check(self) -> None:
        """``LabError`` with the last lines of a program that should run and does not."""
        for each in self.programs:
            each.check()

    def namespace(self, host: str) -> str:
        return f"{self.prefix}-{host}"

    def run(self, host: str, argv: Sequence[str], timeout_s: float = program.COMMAND_DEADLINE_S) -> str:
        """Run a command to its end on a host; its stdout."""
        return program.run(self.namespace(host), argv, timeout_s)

    def program(self, host: str, name: str, argv: Sequence[str]) -> Program:
        """A program for the host, to be started; its log is ``home``/host/name.log."""
        made = Program(self.namespace(host), argv, self.directory(host) / f"{name}.log")
        self.programs.append(made)
        return made

    def directory(self, host: str) -> Path:
        directory = self.home / host
        directory.mkdir(exist_ok=True)
        return directory

    def birdc(self, host: str, command: str) -> str:
        return program.run(self.namespace(host), ["birdc", "-s", str(self.bird_socket(host)), *command.split()])

    def bird_socket(self, host: str) -> Path:
        return self.directory(host) / "bird.ctl"

    def start_bird(self, host: str, config: str) -> Program:
        path = self.directory(host) / "bird.conf"
        path.write_text(config)
        birdc = self.directory(host) / "bin" / "birdc"  # for people: the right socket without an option
        birdc.parent.mkdir(exist_ok=True)
        birdc.write_text(f'#!/bin/sh\nexec /usr/sbin/birdc -s {self.bird_socket(host)} "$@"\n')
        birdc.chmod(0o755)
        argv = ["bird", "-f", "-c", str(path), "-s", str(self.bird_socket(host)), "-P", str(path.with_suffix(".pid"))]
        bird_program = self.program(host, "bird", argv).start()
        until(self.bird_socket(host).exists, f"BIRD to start on {host}", 10, needs=[bird_program])
        return bird_program

    def set_ecmp(self, proxies: Iterable[plan.Host]) -> None:
        """Serve the plain-ECMP VIP from these proxies from now on."""
        network.set_ecmp(self.namespace(plan.ROUTER), plan.ECMP_VIP, proxies)

    def _build(self) -> None:
        namespaces = [self.namespace(host) for host in plan.HOST_NAMES]
        (self.home / "namespaces").write_text("\n".join(namespaces) + "\n")
        network.create(namespaces)
        network.connect(self.namespace, self.run)
        content.write(self.home / "www")
        self.start_bird(plan.ROUTER, bird.router_config())
        for proxy in plan.PROXIES:
            network.add_loopback_vip(self.namespace(proxy.name), plan.ECMP_VIP)
            self._start_nginx(proxy)
        self.set_ecmp(plan.FIRST_PROXIES)

    def _start_nginx(self, proxy: plan.Host) -> None:
        home = self.directory(proxy.name)
        path = home / "nginx.conf"
        path.write_text(nginx.config(proxy, home, self.home / "www"))
        server = self.program(proxy.name, "nginx", ["nginx", "-p", str(home), "-e", "stderr", "-c", str(path)]).start()
        until((home / "nginx.pid").exists, f"nginx to start on {proxy.name}", 10, needs=[server])


def running() -> list[Path]:
    """The run directories of labs that stand, oldest first (also one whose process died, until the reaper is done)."""
    homes = [home for home in map(RUN_ROOT.joinpath, _PREFIXES) if (home / "namespaces").exists()]
    return sorted(homes, key=lambda home: (home / "namespaces").stat().st_mtime)


def remove(home: Path) -> None:
    """Remove a lab that stands, or what is left of one: end the process that holds it, then all it made."""
    deadline = time.monotonic() + _REAP_DEADLINE_S
    asked = False
    while (lock := _lock(home.name)) is None:
        if not asked:
            _ask_to_end(home)  # the reaper does the rest
            asked = True
        if time.monotonic() > deadline:
            raise LabError(f"the lab {home.name} does not end; its process is {(home / 'pid').read_text()}")
        time.sleep(0.05)
    reaper.sweep(home / "namespaces")
    shutil.rmtree(home, ignore_errors=True)
    os.close(lock)


def _ask_to_end(home: Path) -> None:
    with suppress(OSError, ValueError):
        pid = int((home / "pid").read_text())
        # The process may be gone, with only its reaper still at work, and its number given to somebody else.
        if b"lab" in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(pid, signal.SIGTERM)


def _claim() -> tuple[str, int]:
    """A prefix nobody uses, its lock held, its leftovers removed, its run directory fresh."""
    RUN_ROOT.mkdir(exist_ok=True)
    for prefix in _PREFIXES:
        lock = _lock(prefix)
        if lock is None:
            continue
        home = RUN_ROOT / prefix
        reaper.sweep(home / "namespaces")
        if any((network.NETNS_DIR / f"{prefix}-{host}").exists() for host in plan.HOST_NAMES):
            os.close(lock)  # namespaces of that name which no lab recorded are somebody else's
            continue
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir()
        (home / "pid").write_text(str(os.getpid()))
        return prefix, lock
    raise LabError(f"all of {', '.join(_PREFIXES)} are taken: `python -m lab down` removes the labs that stand")


def _lock(prefix: str) -> int | None:
    """An open, locked descriptor; None where another process holds the lock."""
    fd = os.open(RUN_ROOT / f"{prefix}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    return fd


def _start_reaper(home: Path, lock: int) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-m", "lab.reaper", str(home / "namespaces")],
        stdin=subprocess.PIPE,
        cwd=Path(__file__).parent.parent,
        pass_fds=[lock],
        start_new_session=True,
    )
    os.close(lock)  # the reaper's copy holds it until all is gone
    return process
