"""The TUN device: the way in for inner packets that cannot go on in the place of their tunnel packet (IPv6 ones)."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
from pathlib import Path

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from glb.errors import DeviceError

TUNSETIFF = 0x400454CA
IFF_TUN = 0x0001
SCOPE_HOST = 254
PLACEHOLDER = "127.71.76.66"  # "GLB" in the loopback prefix
IFF_NO_PI = 0x1000  # bare IP packets, no header of the driver's

# Before the device comes up: it has no addresses and asks nobody for any; replies leave by other interfaces.
# rp_filter 2: loose. The greater of conf/all and this counts, so strict filtering for all does not reach the device.
# Loose filtering drops everything on a device without any IPv4 address, so it gets one that nobody can collide with.
SYSCTLS = {
    "ipv4/conf/{}/rp_filter": "2",
    "ipv6/conf/{}/addr_gen_mode": "1",
    "ipv6/conf/{}/accept_ra": "0",
    "ipv6/conf/{}/disable_ipv6": "0",
}


def device_name(queue_num: int) -> str:
    return f"glb-gue{queue_num}"


def create(name: str) -> int:
    """Make the device, bring it up, and return its descriptor (non-blocking); the device goes when that is closed."""
    try:
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise DeviceError(
            f"cannot open /dev/net/tun: {error.strerror}; the netfilter engine needs CONFIG_TUN for IPv6"
        ) from None
    try:
        fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TUN | IFF_NO_PI))
        for path, value in SYSCTLS.items():
            with contextlib.suppress(FileNotFoundError):  # a kernel without IPv6
                Path("/proc/sys/net", path.format(name)).write_text(value)
        with IPRoute() as ipr:
            index = ipr.link_lookup(ifname=name)[0]
            ipr.addr("add", index=index, address=PLACEHOLDER, prefixlen=32, scope=SCOPE_HOST)
            ipr.link("set", index=index, state="up")
    except (OSError, NetlinkError) as error:
        os.close(fd)
        code = error.errno if isinstance(error, OSError) else error.code
        hint = "another agent uses queue_num" if code == errno.EBUSY else "the agent needs CAP_NET_ADMIN"
        raise DeviceError(f"cannot make the TUN device {name}: {error}; {hint}") from None
    return fd
