"""VIPs on `lo`: this host takes packets for them, and answers ARP for none of them.

A VIP that is one address becomes an address of `lo`; a prefix becomes a local route, so that each address in it is ours
(a server then binds with IP_FREEBIND or to any address). Only what was not there before is added, and only that is
removed again.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
from collections.abc import Iterable
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from glb.errors import DeviceError
from proxy_agent.changes import VIPS, Changes

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

TABLE_LOCAL = 255
SCOPE_HOST = 254
FOREVER = 0xFFFFFFFF

# Linux answers ARP for any of its addresses on any interface; for a VIP that would draw packets past the directors.
# The greater of conf/all and conf/<interface> counts.
ARP_SYSCTLS = {
    "net/ipv4/conf/all/arp_ignore": 1,  # answer only for addresses of the interface asked on
    "net/ipv4/conf/all/arp_announce": 2,  # never name a VIP as the sender when asking
}


def is_address(vip: Network) -> bool:
    return vip.prefixlen == vip.max_prefixlen


def text(vip: Network) -> str:
    """As an operator writes it: an address without its /32 or /128."""
    return str(vip.network_address) if is_address(vip) else str(vip)


def apply(vips: Iterable[Network], changes: Changes) -> list[str]:
    """Make `vips`, and no others of ours, local to this host. What was done, one phrase each."""
    done = []
    vips = list(vips)
    if any(vip.version == 4 for vip in vips):
        for name, least in ARP_SYSCTLS.items():
            if _sysctl(name) < least and changes.set_sysctl(name, str(least), VIPS):
                done.append(f"sysctl {name.replace('/', '.')}={least}")
    wanted = {text(vip) for vip in vips}
    with IPRoute() as ipr:
        for old in (*changes.addresses, *changes.routes):
            if old not in wanted:
                _change(ipr, "del", ipaddress.ip_network(old))
                changes.forget_vip(old)
                done.append(f"VIP {old} removed from lo")
        present = _present(ipr)
        for vip in vips:
            if vip in present:
                continue
            changes.note_vip(text(vip), is_address=is_address(vip))
            _change(ipr, "add", vip)
            done.append(f"VIP {text(vip)} added to lo")
        _raise_loopback(ipr)
    return done


def remove(changes: Changes) -> list[str]:
    """Remove the VIPs that we added, then put the ARP sysctls back. What was done, one phrase each."""
    done = []
    with IPRoute() as ipr:
        for vip in (*changes.addresses, *changes.routes):
            _change(ipr, "del", ipaddress.ip_network(vip))
            changes.forget_vip(vip)
            done.append(f"VIP {vip} removed from lo")
    done += [f"sysctl {name.replace('/', '.')} restored" for name in changes.restore_sysctls(VIPS)]
    return done


def own_ipv4_addresses() -> list[str]:
    """Every IPv4 address of this host: hops that a packet is never bounced to."""
    with IPRoute() as ipr:
        return [str(a.get_attr("IFA_LOCAL") or a.get_attr("IFA_ADDRESS")) for a in ipr.get_addr(family=socket.AF_INET)]


def _sysctl(name: str) -> int:
    with open(f"/proc/sys/{name}") as file:
        return int(file.read())


def _present(ipr: Any) -> set[Network]:
    """Addresses on lo, and local routes that somebody wrote (the kernel adds one for each address itself)."""
    lo = ipr.link_lookup(ifname="lo")[0]
    found = {ipaddress.ip_network(a.get_attr("IFA_ADDRESS")) for a in ipr.get_addr(index=lo)}
    for family in (socket.AF_INET, socket.AF_INET6):
        for route in ipr.get_routes(family=family, table=TABLE_LOCAL):
            destination = route.get_attr("RTA_DST")
            if destination is not None and route["type"] == 2 and route.get_attr("RTA_OIF") == lo:
                found.add(ipaddress.ip_network(f"{destination}/{route['dst_len']}"))
    return found


def _change(ipr: Any, verb: str, vip: Network) -> None:
    """Add or delete one VIP; already so is fine."""
    lo = ipr.link_lookup(ifname="lo")[0]
    try:
        if is_address(vip):
            extra: dict[str, Any] = {}
            if verb == "add":
                # Never chosen as the source of this host's own connections: by its scope, in IPv6 by being deprecated.
                extra = {"scope": SCOPE_HOST} if vip.version == 4 else {"preferred_lft": 0, "valid_lft": FOREVER}
            ipr.addr(verb, index=lo, address=str(vip.network_address), prefixlen=vip.prefixlen, **extra)
        else:
            ipr.route(
                verb,
                dst=str(vip),
                oif=lo,
                type="local",
                table=TABLE_LOCAL,
                **({"scope": SCOPE_HOST} if vip.version == 4 else {}),
            )
    except NetlinkError as error:
        fine = (errno.EEXIST,) if verb == "add" else (errno.EADDRNOTAVAIL, errno.ESRCH, errno.ENOENT, errno.ENODEV)
        if error.code not in fine:
            hint = "; is IPv6 disabled (net.ipv6.conf.lo.disable_ipv6)?" if vip.version == 6 else ""
            raise DeviceError(f"cannot {verb} VIP {text(vip)} on lo: {error}{hint}") from None


def _raise_loopback(ipr: Any) -> None:
    """An address on a loopback device that is down receives nothing (fresh network namespaces start so)."""
    ipr.link("set", index=ipr.link_lookup(ifname="lo")[0], state="up")
