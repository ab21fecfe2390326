"""Interfaces that tunnel packets leave by, as the kernel describes them at one moment."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pyroute2 import AsyncIPRoute
from pyroute2.netlink import NLM_F_REQUEST, genlmsg
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.generic import AsyncGenericNetlinkSocket

_ETHERNET = 1  # ARPHRD_ETHER
_IFF_UP = 1
_DEV_GET = 1  # NETDEV_CMD_DEV_GET
_NDO_XMIT = 4  # NETDEV_XDP_ACT_NDO_XMIT


@dataclass(frozen=True, slots=True)
class Link:
    """One interface. `takes_xdp`: whether it sends what XDP programs redirect to it; None: the kernel does not tell."""

    index: int
    name: str
    mac: bytes | None  # None: no Ethernet interface
    mtu_bytes: int
    up: bool
    takes_xdp: bool | None


class _Device(genlmsg):  # type: ignore[misc]  # pyroute2 has no types
    prefix = "NETDEV_A_DEV_"
    nla_map = (
        ("NETDEV_A_DEV_UNSPEC", "none"),
        ("NETDEV_A_DEV_IFINDEX", "uint32"),
        ("NETDEV_A_DEV_PAD", "none"),
        ("NETDEV_A_DEV_XDP_FEATURES", "uint64"),
    )


class _Devices(AsyncGenericNetlinkSocket):  # type: ignore[misc]
    module_err_level = "debug"  # kernels before 6.3 do not have it


async def read_links(ipr: AsyncIPRoute, indexes: Iterable[int], *, ask_xdp_of: Iterable[int]) -> dict[int, Link]:
    """By index; those that are not there are left out. Of the others than `ask_xdp_of`, takes_xdp is None."""
    features = await _xdp_features(ask_xdp_of)
    found = {}
    for index in set(indexes):
        try:
            (link,) = [link async for link in await ipr.get_links(index=index)]
        except (NetlinkError, ValueError):
            continue
        mac = link.get_attr("IFLA_ADDRESS") if link["ifi_type"] == _ETHERNET else None
        offered = features.get(index)
        found[index] = Link(
            index,
            link.get_attr("IFLA_IFNAME"),
            bytes.fromhex(mac.replace(":", "")) if mac else None,
            link.get_attr("IFLA_MTU"),
            bool(link["flags"] & _IFF_UP),
            None if offered is None else bool(offered & _NDO_XMIT),
        )
    return found


async def _xdp_features(indexes: Iterable[int]) -> dict[int, int]:
    """enum netdev_xdp_act of each interface; none where the kernel does not tell."""
    indexes = set(indexes)
    features: dict[int, int] = {}
    if not indexes:
        return features
    async with _Devices() as devices:
        try:
            await devices.bind("netdev", _Device)
        except NetlinkError:
            return features
        for index in indexes:
            message = _Device()
            message["cmd"], message["version"] = _DEV_GET, 1
            message["attrs"] = [("NETDEV_A_DEV_IFINDEX", index)]
            try:
                answers = await devices.nlm_request(message, msg_type=devices.prid, msg_flags=NLM_F_REQUEST)
                async for answer in answers:
                    features[index] = answer.get_attr("NETDEV_A_DEV_XDP_FEATURES")
            except NetlinkError:
                continue
    return features
