"""Legacy x_tables by python-iptables: a table as a snapshot, one chain of ours hooked first into a built-in one.

A chain's name is the mark by which a later process finds what an earlier one left: nothing else has to be remembered,
and a second installation replaces the first. python-iptables keeps table handles for the life of a process, in the
network namespace they were opened in: one namespace per process.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from glb.errors import DeviceError
from glb.lock import lock_within

LOCK_FILE = "/run/xtables.lock"  # the one that iptables itself takes
LOCK_TIMEOUT_S = 10.0
# Legacy tables that this network namespace has, by address family. Reading them loads no kernel module.
_PRESENT = {4: Path("/proc/net/ip_tables_names"), 6: Path("/proc/net/ip6_tables_names")}


def load() -> ModuleType:
    """python-iptables; DeviceError where it does not load."""
    try:
        import iptc  # type: ignore[import-untyped,unused-ignore]  # opens libiptc on import, so only where it is used
    except Exception as error:  # whatever its ctypes loader meets
        raise DeviceError(f"python-iptables does not load ({error}): apt-get install iptables") from error
    module: ModuleType = iptc
    return module


def present(names: Sequence[str], family: int = 4) -> bool:
    """Whether this network namespace has one of these legacy tables."""
    try:
        tables = _PRESENT[family].read_text().split()
    except OSError:  # no legacy iptables in this kernel, or not yet
        return False
    return any(name in tables for name in names)


def open_table(iptc: ModuleType, name: str, family: int = 4, *, instead: str) -> Any:
    """A fresh snapshot of a table, changed by one commit. DeviceError says what to do `instead` of it."""
    kind, option = ("iptables", "IP_NF") if family == 4 else ("ip6tables", "IP6_NF")
    try:
        table = (iptc.Table if family == 4 else iptc.Table6)(name, autocommit=False)
        table.refresh()
    except iptc.IPTCError as error:
        raise DeviceError(
            f"no legacy {kind} table {name!r} here ({error}): run as root, on a kernel with {option}_IPTABLES_LEGACY "
            f"and {option}_{name.upper()}. {instead}"
        ) from None
    return table


def replace_chain(iptc: ModuleType, table: Any, hook: str, name: str, rules: Sequence[Any], jump: Any) -> bool:
    """Have a chain with `rules` in an opened table, and `jump` (a rule without a target) to it first in `hook`.

    One that is there is replaced between two packets. Whether there was one.
    """
    try:
        found = _take_out(iptc, table, hook, name)
        chain = table.create_chain(name)
        for rule in rules:
            chain.append_rule(rule)
        jump.create_target(name)
        # First: a rule before ours could accept, mark or drop what only we understand.
        iptc.Chain(table, hook).insert_rule(jump, position=0)
        table.commit()
    except iptc.IPTCError as error:
        raise DeviceError(f"iptables refuses our rules in table {table.name}: {error}") from None
    finally:
        table.refresh()
    return found


def remove_chain(iptc: ModuleType, table: Any, hook: str, name: str) -> bool:
    """Take a chain and every jump to it out of an opened table. Whether there was any of it."""
    try:
        found = _take_out(iptc, table, hook, name)
        if found:
            table.commit()
    except iptc.IPTCError as error:
        raise DeviceError(f"cannot remove chain {name} from table {table.name}: {error}") from None
    finally:
        table.refresh()
    return found


def _take_out(iptc: ModuleType, table: Any, hook: str, name: str) -> bool:
    built_in = iptc.Chain(table, hook)
    jumps = [rule for rule in built_in.rules if rule.target is not None and rule.target.name == name]
    for rule in jumps:
        built_in.delete_rule(rule)
    if table.is_chain(name):
        table.flush_entries(name)
        table.delete_chain(name)
        return True
    return bool(jumps)


@contextmanager
def locked() -> Iterator[None]:
    """The lock of the iptables tools: libiptc replaces a table as a whole, so two writers would lose rules."""
    path = os.environ.get("XTABLES_LOCKFILE", LOCK_FILE)
    try:
        fd = os.open(path, os.O_CREAT | os.O_RDONLY | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise DeviceError(f"cannot open {path}: {error.strerror}; rules are changed as root") from None
    try:
        if not lock_within(fd, LOCK_TIMEOUT_S):
            raise DeviceError(f"another program has held {path} for {LOCK_TIMEOUT_S:g} s")
        yield
    finally:
        os.close(fd)
