"""The supervisor: a small process that outlives the agent, even a killed one, and takes its rules out.

Without a reader the queue drops every tunnel packet, so the rules must not outlive the agent. The agent holds the other
end of a pipe: a byte means "I have cleaned up", an end without one means that it died. The process also inherits the
agent's lock, so that a restart waits until it is done.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from pathlib import Path

GOODBYE = b"q"


def undo_engine(state_dir: Path, interface: str) -> list[str]:
    """Remove rules and restore the sysctls that only a running engine needs. What was done, one phrase each."""
    from proxy_agent import netfilter
    from proxy_agent.changes import ENGINE, Changes

    done = ["iptables rules removed"] if netfilter.remove_left(interface) else []
    restored = Changes(state_dir, interface).restore_sysctls(ENGINE)
    return done + [f"sysctl {name.replace('/', '.')} restored" for name in restored]


def own_environment() -> dict[str, str]:
    """The environment in which `python -m proxy_agent...` finds the package that this process runs."""
    package_root = str(Path(__file__).resolve().parent.parent)
    search = os.pathsep.join(filter(None, [package_root, os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": search}


class Warden:
    """The agent's side: starts the process and says goodbye to it."""

    def __init__(self, state_dir: Path, interface: str, lock_fd: int) -> None:
        self._arguments = [str(state_dir), interface]
        self._lock_fd = lock_fd
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",  # no module of the directory that the agent was started in
            "-m",
            "proxy_agent.warden",
            *self._arguments,
            stdin=asyncio.subprocess.PIPE,
            env=own_environment(),
            pass_fds=[self._lock_fd],
            start_new_session=True,  # a signal to the agent's terminal or session does not reach it
        )

    async def wait(self) -> int:
        """Until the process ends, which it should not while the agent runs; its exit code."""
        assert self._process is not None
        return await self._process.wait()

    async def goodbye(self) -> None:
        """The agent has cleaned up: end the process without it doing anything."""
        if self._process is None or self._process.stdin is None:
            return
        with contextlib.suppress(ConnectionError):
            self._process.stdin.write(GOODBYE)
            await self._process.stdin.drain()
        self._process.stdin.close()
        await self._process.wait()


def main(arguments: list[str]) -> int:
    """Wait for the agent's end; clean up unless it said goodbye."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # systemd signals the whole control group; the agent may still need us
    with contextlib.suppress(OSError):
        Path("/proc/self/comm").write_text("glb-agent-warden"[:15])
    if os.read(0, 1) == GOODBYE:
        return 0
    state_dir, interface = Path(arguments[0]), arguments[1]
    done = undo_engine(state_dir, interface)
    print(
        f"glb-proxy-agent for {interface} was killed: {', '.join(done) or 'nothing to clean up'}",
        file=sys.stderr,
        flush=True,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
