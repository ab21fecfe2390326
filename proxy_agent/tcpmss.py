"""The rules that clamp the MSS of SYN+ACKs from the VIPs, of one address family, by python-iptables (legacy x_tables).

    mangle  POSTROUTING -> glb-mss-<interface>    -p tcp --tcp-flags SYN,ACK SYN,ACK
            glb-mss-<interface>                   the same, -s <VIP> -j TCPMSS --set-mss <value>

POSTROUTING sees what servers of this host send, and what containers send through it. TCPMSS only ever lowers a value.
python-iptables loads TCPMSS for one address family per process, so this is a program of its own:

    python -m proxy_agent.tcpmss INTERFACE 4|6 MSS [VIP]...        MSS 0, or no VIP: take the rules out
"""

from __future__ import annotations

import ipaddress
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from glb.errors import DeviceError
from proxy_agent import xtables

TABLE = "mangle"
HOOK = "POSTROUTING"
TARGET = "TCPMSS"
INSTEAD = "Without it the MSS is not clamped: give the routes of the replies `advmss`, or the core a larger MTU"


def chain_name(interface: str) -> str:
    """Name of our chain, which fits x_tables' 28 bytes."""
    return f"glb-mss-{interface}"


def change(interface: str, family: int, mss: int, vips: Sequence[str]) -> None:
    """Clamp SYN+ACKs from `vips` (addresses or prefixes of `family`) to `mss`, and no others; DeviceError."""
    if not (mss and vips) and not xtables.present([TABLE], family):
        return
    iptc = xtables.load()
    with xtables.locked():
        table = xtables.open_table(iptc, TABLE, family, instead=INSTEAD)
        if not (mss and vips):
            xtables.remove_chain(iptc, table, HOOK, chain_name(interface))
            return
        rules, jump = _rules(iptc, family, mss, vips)
        # SYN+ACKs are clamped after this call.
        xtables.replace_chain(iptc, table, HOOK, chain_name(interface), rules, jump)


def _syn_ack_rule(iptc: ModuleType, family: int) -> Any:
    rule = (iptc.Rule if family == 4 else iptc.Rule6)()
    rule.protocol = "tcp"
    rule.create_match("tcp").tcp_flags = ["SYN,ACK", "SYN,ACK"]
    return rule


def _rules(iptc: ModuleType, family: int, mss: int, vips: Sequence[str]) -> tuple[list[Any], Any]:
    """The rules of our chain, and the jump to it."""
    try:
        rules = []
        for vip in vips:
            rule = _syn_ack_rule(iptc, family)
            rule.src = str(ipaddress.ip_network(vip))
            rule.create_target(TARGET).set_mss = str(mss)
            rules.append(rule)
        return rules, _syn_ack_rule(iptc, family)
    except Exception as error:  # python-iptables raises several kinds that have no base in common
        raise DeviceError(
            f"iptables has no match tcp and target {TARGET} here ({error}): install iptables. {INSTEAD}"
        ) from error


def main(arguments: list[str]) -> int:
    """Do what the arguments say; one line on stderr and 1 if the host refuses."""
    interface, family, mss, *vips = arguments
    try:
        change(interface, int(family), int(mss), vips)
    except DeviceError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
