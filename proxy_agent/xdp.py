"""The xdp engine: bpf/second_chance.bpf.c on the interface, its maps kept in step with the configuration and the host.

The program is attached by a link that is pinned in a BPF file system. It and its maps outlive this process; the next
agent puts its own program, with maps already filled, in its place: no packet passes without one of the two.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import struct
import time
from collections.abc import Iterable, Sequence
from importlib.resources import files
from ipaddress import IPv4Address, ip_address, ip_network
from pathlib import Path

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from glb import _bpf, hook, pin
from glb.errors import DeviceError
from proxy_agent.changes import ENGINE, Changes
from proxy_agent.config import MAX_NAMESPACES, AgentConfig, Network, namespace_path
from proxy_agent.decide import BY_NAME, REASONS
from proxy_agent.engine import ENGINE_SYSCTLS, Guard

log = logging.getLogger("glb-proxy-agent")

PROGRAM = "glb_second_chance"

# Of bpf/glb_verdicts.h; tests/unit/test_agent_xdp_layout.py compares.
COUNT_RECALLED = len(REASONS)
COUNT_BY_HOST = COUNT_RECALLED + 1
COUNT_COOKIES_JUDGED = COUNT_RECALLED + 2
COUNT_HOPS = COUNT_RECALLED + 3
MAX_GUE_HOPS = 30
SHORT_LIST = 4

ASKED = ("established", "syn_cookie", "icmp_error", "last_resort", "bounce", "ttl")  # decided by a look-up
ANY_SOURCE = (ip_network("0.0.0.0/0"),)
NAMESPACES_EVERY_S = 2.0
UNKNOWN_NSID = 0xFFFFFFFF
COOKIES_FOR_S = 10.0  # cookies count as in use this long after the last one was seen to be sent
NETSTAT = Path("/proc/net/netstat")
_PRESENT = b"\1"


def object_path() -> Path:
    return Path(str(files("glb"))) / "bpf_objects" / "second_chance.bpf.o"


def options(gue_port: int, ifindex: int, *, by_redirect: bool) -> bytes:
    """struct glb_agent_options. `ifindex` 0: the host's stack sends all bounced packets."""
    return struct.pack(">H2x", gue_port) + struct.pack("=II", ifindex, by_redirect)


def settings(guard: Guard, namespaces: Sequence[int] = ()) -> bytes:
    """struct glb_agent_settings. Most packets are expected to be sent to the first of the host's addresses."""
    own = [ip_address(address).packed for address in guard.own_addresses]
    own_filter = 0
    for address in own:
        own_filter |= 1 << (int.from_bytes(address, "little") * 0x9E3779B1 % 2**32 >> 24)
    return b"".join(
        (
            own_filter.to_bytes(32, "little"),
            _short_list(guard.vips, 6),
            _short_list(guard.vips, 4),
            _short_list(ANY_SOURCE if guard.allowed_sources is None else guard.allowed_sources, 4),
            own[0] if own else bytes(4),
            struct.pack(
                f"=I{MAX_NAMESPACES}i", len(namespaces), *namespaces, *[0] * (MAX_NAMESPACES - len(namespaces))
            ),
        )
    )


def _short_list(prefixes: Iterable[Network], version: int) -> bytes:
    """The first prefixes as struct glb_masked4 or glb_masked6."""
    width = 4 if version == 4 else 16
    chosen = [prefix for prefix in prefixes if prefix.version == version][:SHORT_LIST]
    found = [prefix.network_address.packed + prefix.netmask.packed for prefix in chosen]
    nothing = b"\xff" * width + bytes(width)
    return b"".join(found) + nothing * (SHORT_LIST - len(found))


def prefix_key(prefix: Network) -> bytes:
    """struct glb_prefix4 or glb_prefix6."""
    return struct.pack("=I", prefix.prefixlen) + prefix.network_address.packed


class Program:
    """The program, loaded, and its maps. DeviceError if the kernel refuses it."""

    def __init__(self, constants: bytes) -> None:
        self._object = _bpf.BpfObject(object_path(), constants)
        self.fd = self._object.program(PROGRAM)
        self._in_maps: dict[str, set[bytes]] = {}  # keys by map, as written and removed one by one
        self._current = 0

    def adopt(self, guard: Guard, namespaces: Sequence[int] = ()) -> None:
        """Judge by this: what is new enters before what is old leaves, so no packet finds neither. DeviceError: by
        what it was before.

        Before the first call no address is this host's, and no packet ours.
        """
        sources = ANY_SOURCE if guard.allowed_sources is None else guard.allowed_sources
        wanted: dict[str, set[bytes]] = {
            "glb_sources": {prefix_key(source) for source in sources if source.version == 4},
            "glb_vips4": {prefix_key(vip) for vip in guard.vips if vip.version == 4},
            "glb_vips6": {prefix_key(vip) for vip in guard.vips if vip.version == 6},
            "glb_own_addresses": {ip_address(address).packed for address in guard.own_addresses},
        }
        before = {name: set(keys) for name, keys in self._in_maps.items()}
        try:
            self._enter(wanted)
            # The entry that is not in force: the last packet that read it was judged long ago.
            other = 1 - self._current
            current = other.to_bytes(4, "little")
            _bpf.update_map(self._object.map("glb_agent_settings"), current, settings(guard, namespaces))
            _bpf.update_map(self._object.map("glb_agent_current"), bytes(4), current)
        except Exception:
            self._leave(before)
            raise
        self._current = other
        self._leave(wanted)

    def _enter(self, wanted: dict[str, set[bytes]]) -> None:
        for name, keys in wanted.items():
            present = self._in_maps.setdefault(name, set())
            for key in keys - present:
                _bpf.update_map(self._object.map(name), key, _PRESENT)
                present.add(key)

    def _leave(self, wanted: dict[str, set[bytes]]) -> None:
        """Remove what is not wanted."""
        for name, present in self._in_maps.items():
            for key in present - wanted.get(name, set()):
                _bpf.delete_from_map(self._object.map(name), key)
                present.remove(key)

    def count(self, index: int) -> int:
        return _bpf.sum_per_cpu(self._object.map("glb_counters"), index)

    def counters(self) -> dict[str, int]:
        return {reason.name: self.count(i) for i, reason in enumerate(REASONS)}

    def bounced_by_hop(self) -> dict[int, int]:
        counts = {hop: self.count(COUNT_HOPS + hop) for hop in range(MAX_GUE_HOPS)}
        return {hop: count for hop, count in counts.items() if count}

    def last_source(self, reason: str) -> str | None:
        index = REASONS.index(BY_NAME[reason])
        address = _bpf.lookup_map(self._object.map("glb_last_sources"), index.to_bytes(4, "little"), 4)
        return str(IPv4Address(address)) if address and any(address) else None

    def close(self) -> None:
        self._object.close()


class XdpEngine:
    """One interface's program. What happens to it when the agent ends is decided by `pin_dir`."""

    name = "xdp"
    cookie_judge = "kernel"

    def __init__(self, config: AgentConfig, ifindex: int, changes: Changes) -> None:
        self._config = config
        self._ifindex = ifindex
        self._changes = changes
        self._pin_dir: Path | None = None
        self._program: Program | None = None
        self._link: int | None = None
        self._inherited = False  # the link is an earlier agent's, and pinned
        self._pinned = False
        self._judging = False
        self._guard: Guard | None = None
        self._namespaces: dict[str, int] = {}  # those that are there, with their ids
        self._adopting = asyncio.Lock()
        self._cookies_sent = cookies_sent()  # what was sent before we came says nothing
        self._cookies_until = 0.0

    async def prepare(self, stack: contextlib.AsyncExitStack) -> None:
        """Load the program and attach it; it takes no packet before it knows an address of this host."""
        config = self._config
        is_veth = await asyncio.to_thread(_kind, self._ifindex) == "veth"
        # What a program sends over a veth arrives only if the other end has GRO on, which cannot be seen from here.
        # Who has chosen the engine knows that from the documentation; who has not gets what works everywhere.
        by_host = is_veth and config.engine == "auto"
        if by_host:
            log.info('%s is a veth: bounced packets go by the host\'s stack; see engine = "xdp"', config.interface)
        constants = options(config.gue_port, 0 if by_host else self._ifindex, by_redirect=is_veth)
        self._program = await asyncio.to_thread(Program, constants)
        stack.callback(self._program.close)
        self._pin_dir = config.pin_dir if config.pin_dir and pin.usable(config.pin_dir) else None
        if self._pin_dir is None:
            log.warning("the XDP program will not outlive this process")
        else:
            self._link = pin.find(self._pin_dir, config.interface, self._ifindex)
        self._inherited = self._pinned = self._link is not None
        stack.callback(self._let_go)
        if self._link is None:
            self._link = hook.attach(self._program.fd, config.interface, self._ifindex)

    async def start(self, stack: contextlib.AsyncExitStack, guard: Guard) -> None:
        assert self._program is not None and self._link is not None
        for name, value in ENGINE_SYSCTLS:
            name = name.format(self._config.interface)
            if self._changes.set_sysctl(name, value, ENGINE):
                log.info("sysctl %s=%s", name.replace("/", "."), value)
        # Without a link to inherit, packets are judged after this call.
        await self.adopt(guard)
        if self._inherited:
            # From the next packet on it is our program that judges.
            _bpf.replace_program(self._link, self._program.fd)
            log.info("took over the program of an earlier agent on %s", self._config.interface)
        stack.callback(asyncio.create_task(self._follow_namespaces()).cancel)
        stack.callback(setattr, self, "_judging", False)
        self._judging = True
        log.info("XDP program attached to %s, %s mode", self._config.interface, self.mode)

    async def adopt(self, guard: Guard) -> None:
        assert self._program is not None
        async with self._adopting:
            namespaces = await asyncio.to_thread(namespace_ids, guard.socket_namespaces)
            for name in guard.socket_namespaces:
                if name not in namespaces and (self._guard is None or name in self._namespaces):
                    log.warning("socket_namespaces: there is no %s (yet)", name)
            await asyncio.to_thread(self._program.adopt, guard, list(namespaces.values()))
            self._guard, self._namespaces = guard, namespaces

    async def _follow_namespaces(self) -> None:
        """They come and go with containers, and a new one of the same name has another id."""
        refusal = ""
        while True:
            await asyncio.sleep(NAMESPACES_EVERY_S)
            guard = self._guard
            if guard is None or not guard.socket_namespaces:
                continue
            try:
                if await asyncio.to_thread(namespace_ids, guard.socket_namespaces) == self._namespaces:
                    continue
                await self.adopt(guard)
            except (DeviceError, OSError, NetlinkError) as error:
                if str(error) != refusal:
                    log.error("socket_namespaces: not looked at, to be tried again until it works: %s", error)
                refusal = str(error)
            else:
                refusal = ""
                log.info("socket_namespaces: %s", ", ".join(self._namespaces) or "none is there")

    def settle(self) -> None:
        """Pin a link of our own."""
        assert self._link is not None
        if self._pin_dir and not self._pinned:
            self._pinned = pin.keep(self._link, self._pin_dir, self._config.interface)

    @property
    def judging(self) -> bool:
        return self._judging

    @property
    def mode(self) -> str:
        """native, generic or offload."""
        return str(_bpf.attached_xdp(self._ifindex)[1])

    def _let_go(self) -> None:
        """Pinned, the program goes on, and needs its sysctls; else it goes when the link is closed."""
        if self._link is not None:
            os.close(self._link)
            self._link = None
        if self._pinned:
            log.info("the XDP program goes on without the agent until `glb-proxy-agent detach`")
            return
        for name in self._changes.restore_sysctls(ENGINE):
            log.info("sysctl %s restored", name.replace("/", "."))

    # -- telling -------------------------------------------------------------------------------------------------------

    def counters(self) -> dict[str, int]:
        assert self._program is not None
        return self._program.counters()

    def bounced_by_hop(self) -> dict[int, int]:
        assert self._program is not None
        return self._program.bounced_by_hop()

    def last_source(self, reason: str) -> str | None:
        assert self._program is not None
        return self._program.last_source(reason)

    def internals(self) -> dict[str, int]:
        assert self._program is not None
        return {
            "look_ups": sum(self._program.counters()[name] for name in ASKED),
            "recalled": self._program.count(COUNT_RECALLED),
            "by_host": self._program.count(COUNT_BY_HOST),
            "cookies_judged": self._program.count(COUNT_COOKIES_JUDGED),
            "verdict_errors": 0,
            "syn_cookies_in_use": self._cookies_in_use(),
        }

    def _cookies_in_use(self) -> bool:
        """Whether the kernel has sent some in the last 10 s, as far as the moments tell at which somebody asked."""
        sent, now = cookies_sent(), time.monotonic()
        if sent != self._cookies_sent:
            self._cookies_sent = sent
            self._cookies_until = now + COOKIES_FOR_S
        return now < self._cookies_until

    def queue(self) -> dict[str, int]:
        return {}


def detach(config: AgentConfig) -> bool:
    """Take the program off that agents with this configuration left. Whether there was one."""
    if config.pin_dir is None or not config.pin_dir.exists() or not _bpf.is_bpffs(config.pin_dir):
        return False
    return pin.remove(config.pin_dir, config.interface)


def cookies_sent() -> int:
    """SYN cookies that this network namespace has sent (SyncookiesSent); 0 where the kernel does not tell."""
    try:
        return cookies_in(NETSTAT.read_text())
    except (OSError, ValueError, IndexError):
        return 0


def cookies_in(netstat: str) -> int:
    """SyncookiesSent of the text of /proc/net/netstat; ValueError or IndexError where it has none."""
    names, numbers = (line.split() for line in netstat.splitlines()[:2])
    return int(numbers[names.index("SyncookiesSent")])


def namespace_ids(names: Iterable[str]) -> dict[str, int]:
    """Ids by which this network namespace knows others, given by name or path; one that is not there is left out."""
    found: dict[str, int] = {}
    names = list(names)
    if not names:
        return found
    with IPRoute() as ipr:
        for name in names:
            try:
                fd = os.open(namespace_path(name), os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                continue
            try:
                nsid = ipr.get_netnsid(fd=fd)["nsid"]
                if nsid == UNKNOWN_NSID:
                    ipr.set_netnsid(fd=fd)  # any free one
                    nsid = ipr.get_netnsid(fd=fd)["nsid"]
                found[name] = nsid
            except (NetlinkError, OSError) as error:
                log.warning("socket_namespaces: %s: %s", name, error)
            finally:
                os.close(fd)
    return found


def _kind(ifindex: int) -> str | None:
    """veth, bond, vlan..; None for a card."""
    with IPRoute() as ipr:
        (link,) = ipr.get_links(ifindex)
        information = link.get_attr("IFLA_LINKINFO")
        return str(information.get_attr("IFLA_INFO_KIND")) if information else None
