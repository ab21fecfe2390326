"""The announce device: a TUN interface that is up exactly while this director forwards.

A BGP speaker on the host ties its VIP routes to it (BIRD: `route 203.0.113.10/32 via "glb0";`, see
docs/operate/announce.md). It is not persistent, so it goes with the process, however that ends, and the routes with it.
No address and no kernel route is put on it: packets for a VIP never reach it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct

from pyroute2 import AsyncIPRoute

from glb.errors import DeviceError

_TUNSETIFF = 0x400454CA
_IFF_TUN = 0x0001
_IFF_NO_PI = 0x1000


class AnnounceDevice:
    """Created down; `up` and `down` are announce and withdraw. DeviceError where the kernel refuses."""

    def __init__(self, name: str) -> None:
        self.name = name
        try:
            self._fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise DeviceError(f"announce_device: /dev/net/tun: {error.strerror}; is the tun module there?") from error
        try:
            fcntl.ioctl(self._fd, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TUN | _IFF_NO_PI))
        except OSError as error:
            os.close(self._fd)
            hint = "; is another director running?" if error.errno == 16 else ""
            raise DeviceError(f"announce_device {name}: {error.strerror}{hint}") from error
        # The kernel's own chatter (router solicitations) would only fill its queue.
        with contextlib.suppress(FileNotFoundError), open(f"/proc/sys/net/ipv6/conf/{name}/addr_gen_mode", "w") as file:
            file.write("1")

    async def up(self) -> None:
        await self._set("up")

    async def down(self) -> None:
        await self._set("down")

    def close(self) -> None:
        os.close(self._fd)

    async def _set(self, state: str) -> None:
        async with AsyncIPRoute() as ipr:
            await ipr.link("set", index=(await ipr.link_lookup(ifname=self.name))[0], state=state)
