"""The netfilter engine's rules, put in and taken out by python-iptables (legacy x_tables).

    raw     PREROUTING -> glb-agent-<interface> -> CT --notrack
    mangle  PREROUTING -> glb-agent-<interface> -> NFQUEUE --queue-num <n>
    each for: -i <interface> -p udp --dport <port> -m addrtype --dst-type LOCAL

Use this module in one network namespace per process (see xtables.py).
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

from proxy_agent import xtables

TABLES = ("raw", "mangle")
HOOK = "PREROUTING"
INSTEAD = "A kernel with nf_tables alone needs the xdp engine"


def chain_name(interface: str) -> str:
    """Name of our chain in both tables."""
    return f"glb-agent-{interface}"


def install(interface: str, port: int, queue_num: int) -> bool:
    """Put the rules in, replacing any that are there. Whether there were any (left by a process that was killed)."""
    iptc = xtables.load()
    with xtables.locked():
        # conntrack first: once packets are queued, none of them may have been tracked
        in_raw = _replace(iptc, "raw", interface, _raw_rule(iptc, interface, port))
        # Packets are queued after this call.
        in_mangle = _replace(iptc, "mangle", interface, _mangle_rule(iptc, interface, port, queue_num))
    return in_raw or in_mangle


def remove(interface: str) -> bool:
    """Take the rules out, all of them, however often they are there. Whether there were any."""
    iptc = xtables.load()
    with xtables.locked():
        # The mangle table first: what is queued must not be tracked.
        found = [
            xtables.remove_chain(iptc, _table(iptc, name), HOOK, chain_name(interface)) for name in reversed(TABLES)
        ]
    return any(found)


def remove_left(interface: str) -> bool:
    """Like `remove`, on a host that may have no iptables at all. Asking loads no kernel module."""
    return xtables.present(TABLES) and remove(interface)


def installed(interface: str) -> list[str]:
    """The tables in which our chain is."""
    iptc = xtables.load()
    with xtables.locked():
        return [name for name in TABLES if _table(iptc, name).is_chain(chain_name(interface))]


def _table(iptc: ModuleType, name: str) -> Any:
    return xtables.open_table(iptc, name, instead=INSTEAD)


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


def _replace(iptc: ModuleType, table_name: str, interface: str, rule: Any) -> bool:
    return xtables.replace_chain(iptc, _table(iptc, table_name), HOOK, chain_name(interface), [rule], iptc.Rule())
