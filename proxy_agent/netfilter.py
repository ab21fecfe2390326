"""The netfilter engine's rules, put in and taken out by python-iptables (legacy x_tables).

    raw     PREROUTING -> glb-agent-<interface> -> CT --notrack
    mangle  PREROUTING -> glb-agent-<interface> -> NFQUEUE --queue-num <n>
    each for: -i <interface> -p udp --dport <port> -m addrtype --dst-type LOCAL

The chain's name is the mark by which a later process finds what an earlier one left: nothing else has to be
remembered, and a second installation replaces the first. python-iptables keeps table handles for the life of a process,
in the network namespace they were opened in: use this module in one namespace per process.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from glb.errors import DeviceError

TABLES = ("raw", "mangle")
PRESENT_TABLES = Path("/proc/net/ip_tables_names")  # legacy tables that this network namespace has
LOCK_FILE = "/run/xtables.lock"  # the one that iptables itself takes
LOCK_TIMEOUT_S = 10.0


def chain_name(interface: str) -> str:
    """Name of our chain in both tables."""
    return f"glb-agent-{interface}"


def install(interface: str, port: int, queue_num: int) -> bool:
    """Put the rules in, replacing any that are there. Whether there were any (left by a process that was killed)."""
    iptc = _load()
    with _locked():
        found = _remove(iptc, interface)
        # conntrack first: once packets are queued, none of them may have been tracked
        _add_chain(iptc, "raw", interface, _raw_rule(iptc, interface, port))
        # Packets are queued after this call.
        _add_chain(iptc, "mangle", interface, _mangle_rule(iptc, interface, port, queue_num))
    return found


def remove(interface: str) -> bool:
    """Take the rules out, all of them, however often they are there. Whether there were any."""
    iptc = _load()
    with _locked():
        return _remove(iptc, interface)


def remove_left(interface: str) -> bool:
    """Like `remove`, on a host that may have no iptables at all. Asking loads no kernel module."""
    try:
        tables = PRESENT_TABLES.read_text().split()
    except OSError:  # no legacy iptables in this kernel, or not yet
        return False
    return any(table in tables for table in TABLES) and remove(interface)


def installed(interface: str) -> list[str]:
    """The tables in which our chain is."""
    iptc = _load()
    with _locked():
        return [name for name in TABLES if _table(iptc, name).is_chain(chain_name(interface))]


def _load() -> ModuleType:
    try:
        import iptc  # type: ignore[import-untyped,unused-ignore]  # opens libiptc on import, so only where it is used
    except Exception as error:  # whatever its ctypes loader meets
        raise DeviceError(f"python-iptables does not load ({error}): apt-get install iptables") from error
    module: ModuleType = iptc
    return module


def _table(iptc: ModuleType, name: str) -> Any:
    """A fresh snapshot of the table, changed by one commit."""
    try:
        table = iptc.Table(name, autocommit=False)
        table.refresh()
    except iptc.IPTCError as error:
        raise DeviceError(
            f"no legacy iptables table {name!r} here ({error}): run as root, on a kernel with IP_NF_IPTABLES_LEGACY "
            f"and IP_NF_{name.upper()}. A kernel with nf_tables alone needs the xdp engine"
        ) from None
    return table


def _match(iptc: ModuleType, interface: str, port: int) -> Any:
    rule = iptc.Rule()
    rule.in_interface = interface
    rule.protocol = "udp"
    rule.create_match("udp").dport = str(port)
    rule.create_match("addrtype").dst_type = "LOCAL"
    return rule


def _raw_rule(iptc: ModuleType, interface: str, port: int) -> Any:
    rule = _match(iptc, interface, port)
    rule.create_target("CT").notrack = ""
    return rule


def _mangle_rule(iptc: ModuleType, interface: str, port: int, queue_num: int) -> Any:
    # No --queue-bypass: without a reader the host would answer the director with "port unreachable".
    rule = _match(iptc, interface, port)
    rule.create_target("NFQUEUE").set_parameter("queue-num", str(queue_num))
    return rule


def _add_chain(iptc: ModuleType, table_name: str, interface: str, rule: Any) -> None:
    table = _table(iptc, table_name)
    try:
        chain = table.create_chain(chain_name(interface))
        chain.append_rule(rule)
        jump = iptc.Rule()
        jump.create_target(chain.name)
        # First in PREROUTING: a rule before ours could accept, mark or drop what only we understand.
        iptc.Chain(table, "PREROUTING").insert_rule(jump, position=0)
        table.commit()
    except iptc.IPTCError as error:
        raise DeviceError(f"iptables refuses our rule in table {table_name}: {error}") from None
    finally:
        table.refresh()


def _remove(iptc: ModuleType, interface: str) -> bool:
    found = False
    name = chain_name(interface)
    for table_name in reversed(TABLES):
        table = _table(iptc, table_name)
        try:
            hook = iptc.Chain(table, "PREROUTING")
            jumps = [rule for rule in hook.rules if rule.target is not None and rule.target.name == name]
            for rule in jumps:
                hook.delete_rule(rule)
            if table.is_chain(name):
                found = True
                table.flush_entries(name)
                table.delete_chain(name)
            if found or jumps:
                table.commit()
        except iptc.IPTCError as error:
            raise DeviceError(f"cannot remove chain {name} from table {table_name}: {error}") from None
        finally:
            table.refresh()
    return found


@contextmanager
def _locked() -> Iterator[None]:
    """The lock of the iptables tools: libiptc replaces a table as a whole, so two writers would lose rules."""
    path = os.environ.get("XTABLES_LOCKFILE", LOCK_FILE)
    try:
        fd = os.open(path, os.O_CREAT | os.O_RDONLY | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise DeviceError(f"cannot open {path}: {error.strerror}; the netfilter engine runs as root") from None
    try:
        deadline = time.monotonic() + LOCK_TIMEOUT_S
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise DeviceError(f"another program has held {path} for {LOCK_TIMEOUT_S:g} s") from None
                time.sleep(0.02)
        yield
    finally:
        os.close(fd)
