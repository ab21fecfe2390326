"""What the kernel tells of its links, neighbours and IPv4 routes: which of them have changed, and no more.

Who hears of it reads what is so now, so the messages themselves are not parsed. There may be many: a host with a full
BGP table is told of thousands of routes a second, of which none may be a backend's.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
from typing import NamedTuple

from pyroute2.netlink.rtnl import RTM_DELNEIGH, RTM_NEWNEIGH, RTMGRP_IPV4_ROUTE, RTMGRP_LINK, RTMGRP_NEIGH

_HEADER = struct.Struct("=IH")  # of netlink: length, type
_AT_ONCE = 1000  # messages taken in one go, some milliseconds; others want to run as well


class Told(NamedTuple):
    """What has changed."""

    neighbours: bool
    routes: bool  # or links


class Notifications:
    """A netlink socket that is told. OSError where there is none to be had."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        self._socket.setblocking(False)
        self._socket.bind((0, RTMGRP_LINK | RTMGRP_NEIGH | RTMGRP_IPV4_ROUTE))

    def close(self) -> None:
        self._socket.close()

    async def wait(self) -> None:
        """Until something is told."""
        loop, told = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(self._socket, told.set)
        try:
            await told.wait()
        finally:
            loop.remove_reader(self._socket)

    def take(self) -> Told:
        """What has been told since the last call, or the first of it."""
        neighbours = routes = False
        for _ in range(_AT_ONCE):
            try:
                _, kind = _HEADER.unpack(self._socket.recv(_HEADER.size))  # a message each; the rest of it is cut off
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                return Told(True, True)  # more than the socket holds: it may have been anything
            if kind in (RTM_NEWNEIGH, RTM_DELNEIGH):
                neighbours = True
            else:
                routes = True
        return Told(neighbours, routes)
