"""What the agent changed on this host, kept in a file so that any later process can undo exactly that.

A change is written down before it is made: a crash between the two leaves a note of something not done, which undoing
skips. A value that somebody else has changed since is left alone. The file is replaced atomically and belongs to one
network namespace of one boot; a file of another one is not ours to undo and starts empty.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import msgspec

from glb.errors import DeviceError
from glb.lock import lock_within

SO_NETNS_COOKIE = 71  # <asm-generic/socket.h>; a number that no other namespace of this boot ever had
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
SYSCTL = Path("/proc/sys")
LOCK_TIMEOUT_S = 5.0  # the supervisor of an agent that was killed needs less than a second

ENGINE = "engine"  # undone whenever the agent ends
VIPS = "vips"  # undone by detach: a VIP without its ARP settings, or a socket without its VIP, would be worse


class Sysctl(msgspec.Struct):
    """One sysctl that we set."""

    was: str
    ours: str
    group: str  # ENGINE or VIPS


class _Record(msgspec.Struct):
    host: str  # boot and network namespace
    sysctls: dict[str, Sysctl] = {}  # by path below /proc/sys
    addresses: list[str] = []  # VIPs that we put on lo, as addresses (prefixes of full length)
    routes: list[str] = []  # VIPs that we made local by a route
    clamped: list[int] = []  # address families (4, 6) with our MSS rules


def this_host() -> str:
    """Boot and network namespace of this process, as one text."""
    with socket.socket() as probe:
        try:
            cookie = int.from_bytes(probe.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8), "little")
        except OSError:  # before Linux 5.14
            cookie = os.stat("/proc/self/ns/net").st_ino
    return f"{BOOT_ID.read_text().strip()} {cookie}"


class Changes:
    """The record of one interface's agent. Every method that changes something has written the file when it returns."""

    def __init__(self, state_dir: Path, interface: str) -> None:
        self.path = state_dir / f"{interface}.json"
        self._record = _Record(this_host())
        try:
            found = msgspec.json.decode(self.path.read_bytes(), type=_Record)
            if found.host == self._record.host:
                self._record = found
        except FileNotFoundError:
            pass
        except (OSError, msgspec.DecodeError) as error:
            raise DeviceError(
                f"cannot read {self.path}: {error}; it names what an earlier agent changed here"
            ) from None

    @property
    def addresses(self) -> tuple[str, ...]:
        return tuple(self._record.addresses)

    @property
    def routes(self) -> tuple[str, ...]:
        return tuple(self._record.routes)

    @property
    def sysctls(self) -> dict[str, Sysctl]:
        return dict(self._record.sysctls)

    def set_sysctl(self, name: str, value: str, group: str) -> bool:
        """Set `name` (path below /proc/sys) and note what it was. Whether it had to be changed."""
        path = SYSCTL / name
        try:
            was = path.read_text().strip()
            if was == value:
                return False
            known = self._record.sysctls.get(name)
            self._record.sysctls[name] = Sysctl(known.was if known else was, value, group)
            self._save()
            path.write_text(value)
        except OSError as error:
            raise DeviceError(f"cannot set sysctl {name} to {value}: {error.strerror}") from None
        return True

    def restore_sysctls(self, group: str) -> list[str]:
        """Put back each sysctl of `group` that still has our value; the names of those put back."""
        restored = []
        for name, sysctl in list(self._record.sysctls.items()):
            if sysctl.group != group:
                continue
            path = SYSCTL / name
            with contextlib.suppress(OSError):  # the interface may be gone, and its sysctls with it
                if path.read_text().strip() == sysctl.ours:
                    path.write_text(sysctl.was)
                    restored.append(name)
            del self._record.sysctls[name]
        self._save()
        return restored

    def note_vip(self, vip: str, *, is_address: bool) -> None:
        """Before a VIP is added."""
        noted = self._record.addresses if is_address else self._record.routes
        if vip not in noted:
            noted.append(vip)
            self._save()

    def forget_vip(self, vip: str) -> None:
        """After a VIP was removed."""
        for noted in (self._record.addresses, self._record.routes):
            if vip in noted:
                noted.remove(vip)
        self._save()

    @property
    def clamped(self) -> tuple[int, ...]:
        return tuple(self._record.clamped)

    def note_clamp(self, family: int) -> None:
        """Before MSS rules of an address family are put in."""
        if family not in self._record.clamped:
            self._record.clamped.append(family)
            self._save()

    def forget_clamp(self, family: int) -> None:
        """After they were taken out."""
        if family in self._record.clamped:
            self._record.clamped.remove(family)
            self._save()

    def _save(self) -> None:
        record = self._record
        if not (record.sysctls or record.addresses or record.routes or record.clamped):
            self.path.unlink(missing_ok=True)
            return
        temporary = self.path.with_suffix(".json.new")
        try:
            with temporary.open("wb") as file:
                file.write(msgspec.json.format(msgspec.json.encode(self._record)) + b"\n")
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self.path)
        except OSError as error:
            raise DeviceError(f"cannot write {self.path}: {error.strerror}") from None


@contextlib.contextmanager
def sole_agent(state_dir: Path, interface: str) -> Iterator[int]:
    """Be the only process that changes this interface's set-up. Yields the lock's descriptor, for the supervisor.

    The supervisor of a killed agent holds the lock until it has cleaned up, so a restart waits for it.
    """
    path = state_dir / f"{interface}.lock"
    try:
        state_dir.mkdir(parents=True, exist_ok=True, mode=0o755)
        fd = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise DeviceError(f"cannot open {path}: {error.strerror}; state_dir must be writable") from None
    try:
        if not lock_within(fd, LOCK_TIMEOUT_S):
            holder = os.pread(fd, 32, 0).decode(errors="replace").strip()
            raise DeviceError(
                f"an agent (process {holder or '?'}) runs for {interface} with state_dir {state_dir}: "
                "stop it first, or give each network namespace a state_dir of its own"
            )
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        yield fd
    finally:
        os.close(fd)
