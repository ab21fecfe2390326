"""The MSS of SYN+ACKs from the VIPs: which value is in force, put in and taken out by a process per address family.

The rules stay when the agent ends, whatever its engine: the xdp engine's program goes on judging, and new connections
with it; and a restart of an agent of either engine should let no client hear of segments that do not fit.
`glb-proxy-agent detach` takes them out. Where they cannot be had (a kernel with nf_tables alone) the agent works on,
and says so.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import socket
import struct
import subprocess
import sys
from collections.abc import Iterable

from glb.errors import DeviceError
from proxy_agent import tcpmss, vips
from proxy_agent.changes import Changes
from proxy_agent.config import AgentConfig, Network
from proxy_agent.mss import FAMILIES
from proxy_agent.warden import own_environment

log = logging.getLogger("glb-proxy-agent")

SIOCGIFMTU = 0x8921  # <linux/sockios.h>
WITHIN_S = 30.0  # another program may hold the lock of the iptables tools for a while
TOO_LATE = f"not done within {WITHIN_S:g} s"
RETRY_S, RETRY_AT_MOST_S = 30.0, 960.0  # what was refused; doubled each time, since a try takes half a second of a CPU

Wanted = tuple[int, tuple[str, ...]]  # MSS, VIPs; nothing to clamp: (0, ())


class Clamp:
    """What is clamped for the agent of one interface."""

    def __init__(self) -> None:
        self.in_force: dict[int, int] = dict.fromkeys(FAMILIES, 0)  # MSS by address family; 0: not clamped
        self._wanted: dict[int, Wanted | None] = dict.fromkeys(FAMILIES)  # of the last `apply`; None: none yet
        self._problems: dict[int, str] = {}
        self._applying = asyncio.Lock()

    @property
    def problem(self) -> str | None:
        """Why something is not clamped that should be."""
        return "; ".join(f"{FAMILIES[family]}: {text}" for family, text in self._problems.items()) or None

    async def apply(self, config: AgentConfig, changes: Changes, *, again: bool = False) -> None:
        """Clamp what the configuration says and nothing else; with `again`, also what should be so already.

        (Somebody may have flushed the table, or made room for it.) What the host refuses goes into `problem` and, when
        it is new, into the log.
        """
        async with self._applying:
            try:
                wanted = _wanted(config)
            except DeviceError:  # the interface is gone: so are the packets
                return
            due = [
                family
                for family in FAMILIES
                if (again or wanted[family] != self._wanted[family])
                and (wanted[family][0] or family in changes.clamped)  # else there is nothing to take out
            ]
            if due:
                await self._change(config.interface, due, wanted, changes)

    async def _change(self, interface: str, due: list[int], wanted: dict[int, Wanted], changes: Changes) -> None:
        before = self.problem
        errors = await asyncio.gather(*(_try(interface, family, wanted[family], changes) for family in due))
        for family, error in zip(due, errors, strict=True):
            self._problems.pop(family, None)
            if error:
                # The rules are replaced whole or not at all: what was in force still is. The next `apply` tries again.
                self._problems[family] = error
                self._wanted[family] = None
            else:
                self._wanted[family] = wanted[family]
                self.in_force[family] = wanted[family][0]
        clamped = [f"{value} ({FAMILIES[family]})" for family, value in self.in_force.items() if value]
        text = f"at most {', '.join(clamped)}" if clamped else "not clamped"
        if not all(errors):
            log.info("MSS of SYN+ACKs from the VIPs: %s", text)
        if self.problem and self.problem != before:
            log.warning("the MSS of SYN+ACKs is NOT clamped as it should be (now %s): %s", text, self.problem)


def remove(interface: str, changes: Changes) -> list[str]:
    """Take out the rules that agents of this interface left. What was done, one phrase each; DeviceError, after both
    families were tried."""
    done, problems = [], []
    for family in changes.clamped:
        command = _command(interface, family, 0, ())
        try:
            ended = subprocess.run(command, env=own_environment(), capture_output=True, timeout=WITHIN_S, check=False)
            error = _error(ended.returncode, ended.stderr)
        except subprocess.TimeoutExpired:
            error = TOO_LATE
        except OSError as refusal:
            error = _no_process(refusal)
        if error:
            problems.append(f"{FAMILIES[family]}: {error}")
            continue
        changes.forget_clamp(family)
        done.append(f"MSS clamp of {FAMILIES[family]} removed")
    if problems:
        chain = tcpmss.chain_name(interface)
        raise DeviceError(f"the MSS rules stay, chain {chain} of table mangle: {'; '.join(problems)}")
    return done


def interface_mtu(interface: str) -> int:
    """MTU of an interface in bytes; DeviceError if it is gone."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            answer = fcntl.ioctl(probe, SIOCGIFMTU, struct.pack("16si12x", interface.encode(), 0))
        except OSError as error:
            raise DeviceError(f"no MTU of interface {interface}: {error.strerror}") from None
    return int(struct.unpack("16si12x", answer)[1])


def _wanted(config: AgentConfig) -> dict[int, Wanted]:
    values = config.mss.values(interface_mtu(config.interface), config.hops)
    texts = {family: _texts(config.vips, family) for family in FAMILIES}
    return {
        family: (values[family], texts[family]) if values[family] and texts[family] else (0, ()) for family in FAMILIES
    }


def _texts(networks: Iterable[Network], family: int) -> tuple[str, ...]:
    return tuple(vips.text(network) for network in networks if network.version == family)


async def _try(interface: str, family: int, wanted: Wanted, changes: Changes) -> str | None:
    """Change the rules and the record of them. Why it did not work, or None."""
    mss, texts = wanted
    try:
        changes.note_clamp(family)
        error = await _run(interface, family, mss, texts)
        if not error and not mss:
            changes.forget_clamp(family)
    except DeviceError as refusal:
        return str(refusal)
    return error


async def _run(interface: str, family: int, mss: int, texts: tuple[str, ...]) -> str | None:
    """Why it did not work, or None."""
    try:
        process = await asyncio.create_subprocess_exec(
            *_command(interface, family, mss, texts), env=own_environment(), stderr=asyncio.subprocess.PIPE
        )
    except OSError as refusal:
        return _no_process(refusal)
    try:
        _, said = await asyncio.wait_for(process.communicate(), WITHIN_S)
    except TimeoutError:
        process.kill()
        await process.wait()
        return TOO_LATE
    assert process.returncode is not None
    return _error(process.returncode, said)


def _error(code: int, said: bytes) -> str | None:
    last_line = said.decode(errors="replace").strip().rpartition("\n")[2]
    return (last_line or f"exit code {code}") if code else None


def _no_process(refusal: OSError) -> str:
    return f"no process for it: {refusal.strerror}"


def _command(interface: str, family: int, mss: int, texts: tuple[str, ...]) -> list[str]:
    return [sys.executable, "-P", "-m", tcpmss.__name__, interface, str(family), str(mss), *texts]
