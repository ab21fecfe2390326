"""The interface that a director works on, as the kernel describes it."""

from __future__ import annotations

import ctypes
import fcntl
import socket
import struct
from dataclasses import dataclass
from ipaddress import IPv4Address

from pyroute2 import AsyncIPRoute

from glb.errors import DeviceError

_AF_INET = 2
_ETHERNET = 1  # ARPHRD_ETHER
_SIOCETHTOOL = 0x8946
_ETHTOOL_GCHANNELS = 0x3C


@dataclass(frozen=True, slots=True)
class Interface:
    """The interface that a director works on."""

    name: str
    index: int
    mac: bytes  # 6 bytes
    mtu_bytes: int
    rx_queues: int
    kind: str | None  # of virtual ones: veth, bond, vlan..
    address: IPv4Address | None  # its first


async def read_interface(name: str) -> Interface:
    """DeviceError if there is no such interface, or it is no Ethernet one."""
    async with AsyncIPRoute() as ipr:
        found = await ipr.link_lookup(ifname=name)
        if not found:
            names = [link.get_attr("IFLA_IFNAME") async for link in await ipr.get_links()]
            raise DeviceError(f"interface {name} is not there; there are: {', '.join(names)}")
        [link] = [link async for link in await ipr.get_links(index=found[0])]
        mac = link.get_attr("IFLA_ADDRESS")
        if link["ifi_type"] != _ETHERNET or not mac:
            raise DeviceError(f"interface {name} is no Ethernet interface")
        addresses = [a async for a in await ipr.get_addr(index=found[0], family=_AF_INET)]
        information = link.get_attr("IFLA_LINKINFO")
        kind = information.get_attr("IFLA_INFO_KIND") if information else None
        address = IPv4Address(addresses[0].get_attr("IFA_LOCAL")) if addresses else None
        return Interface(
            name,
            found[0],
            bytes.fromhex(mac.replace(":", "")),
            link.get_attr("IFLA_MTU"),
            rx_queues(name) or link.get_attr("IFLA_NUM_RX_QUEUES") or 1,
            kind,
            address,
        )


def rx_queues(interface: str) -> int | None:
    """Receive queues in use, as `ethtool -l` tells; None where the driver does not say."""
    # struct ethtool_channels: command, then maxima and counts of rx, tx, other, combined.
    channels = bytearray(struct.pack("9I", _ETHTOOL_GCHANNELS, *[0] * 8))
    buffer = (ctypes.c_char * len(channels)).from_buffer(channels)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
        try:
            fcntl.ioctl(asker, _SIOCETHTOOL, struct.pack("16sP16x", interface.encode(), ctypes.addressof(buffer)))
        except OSError:
            return None
    _, _, _, _, _, rx, _, _, combined = struct.unpack("9I", channels)
    return int(rx + combined)
