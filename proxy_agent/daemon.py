"""The agent's life: set up, judge, reload, clean up. The only module that holds all the pieces at once.

Order of setting up: whatever a packet needs comes before the rules that send packets; taking down is the reverse.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import time
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path

from pyroute2.netlink.exceptions import NetlinkError

from glb import admin, systemd
from glb.errors import ConfigError, DeviceError, GlbError, Problem
from proxy_agent import clamp, netfilter, vips, xdp
from proxy_agent import config as config_file
from proxy_agent.changes import Changes, sole_agent
from proxy_agent.clamp import Clamp
from proxy_agent.config import AgentConfig
from proxy_agent.decide import REASONS, Action
from proxy_agent.engine import Engine, Guard
from proxy_agent.flows import FlowCounter
from proxy_agent.metrics import Reading
from proxy_agent.mss import FAMILIES
from proxy_agent.nfqueue import NetfilterEngine
from proxy_agent.warden import Warden, undo_engine
from proxy_agent.xdp import XdpEngine

log = logging.getLogger("glb-proxy-agent")

RELOADABLE = ("vips", "allowed_sources", "socket_namespaces", "mss", "hops")
DROP_CHECK_S = 5.0
DROP_LOG_INTERVAL_S = 60.0  # one line per reason
RTMGRP_LINK, RTMGRP_IPV4_IFADDR = 0x1, 0x10  # <linux/rtnetlink.h>
FOLLOW_AGAIN_S = 10.0  # after the host's state could not be taken over
REFUSALS = (GlbError, OSError, NetlinkError)  # what the host, or a file, may have against a change


def run(path: Path) -> None:
    """Run an agent in the foreground until SIGTERM or SIGINT. Raises GlbError if it cannot start or go on."""
    config = config_file.load(path)
    with sole_agent(config.state_dir, config.interface) as lock_fd:
        asyncio.run(Agent(path, config, lock_fd).run())


def detach(config: AgentConfig) -> list[str]:
    """Undo everything that agents with this configuration did to the host. What was done, one phrase each."""
    with sole_agent(config.state_dir, config.interface):
        done = [f"XDP program taken off {config.interface}"] if xdp.detach(config) else []
        done += undo_engine(config.state_dir, config.interface)
        changes = Changes(config.state_dir, config.interface)
        return done + vips.remove(changes) + clamp.remove(config.interface, changes)


class Agent:
    """One running agent."""

    def __init__(self, path: Path, config: AgentConfig, lock_fd: int) -> None:
        self._path = path
        self._config = config
        self._changes = Changes(config.state_dir, config.interface)
        self._warden = Warden(config.state_dir, config.interface, lock_fd)
        self._clamp = Clamp()
        self._engine: Engine | None = None
        self._guard: Guard | None = None  # that the engine judges by
        self._flows: FlowCounter | None = None
        self._reload_failures = 0
        self._loaded_at = time.time()
        self._reloading = asyncio.Lock()
        self._logged: dict[str, tuple[float, int]] = {}  # drop reason -> (when last logged, count then)
        self._stop: asyncio.Future[None]

    async def run(self) -> None:
        """Set up, work until a signal or a failure, clean up."""
        loop = asyncio.get_running_loop()
        self._stop = loop.create_future()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._finish, None)
        reloads: set[asyncio.Task[None]] = set()

        def reload_soon() -> None:
            task = asyncio.create_task(self._reload())
            reloads.add(task)
            task.add_done_callback(reloads.discard)

        loop.add_signal_handler(signal.SIGHUP, reload_soon)
        self._announce()
        async with contextlib.AsyncExitStack() as stack:
            await self._set_up(stack)
            assert self._engine is not None
            self._engine.settle()
            systemd.notify("READY=1")
            log.info(
                "ready: %s judges packets on %s port %d",
                self._engine.name,
                self._config.interface,
                self._config.gue_port,
            )
            try:
                await self._stop
            finally:
                systemd.notify("STOPPING=1")
                log.info("stopping")
        log.info("stopped; VIPs and the MSS clamp stay until `glb-proxy-agent detach`")

    def _announce(self) -> None:
        for warning in self._config.warnings():
            log.warning("%s", warning)

    async def _set_up(self, stack: contextlib.AsyncExitStack) -> None:
        """Each step registers how it is undone; the stack undoes them last first, also when a later step fails."""
        config = self._config
        try:
            ifindex = socket.if_nametoindex(config.interface)
        except OSError:
            raise DeviceError(f"there is no interface {config.interface!r} here") from None
        engine = await self._choose_engine(stack, ifindex)
        self._engine = engine
        await self._apply_vips(config.vips)
        self._watch_host(stack)
        clamping = asyncio.create_task(self._clamp.apply(config, self._changes))  # half a second for two processes
        try:
            guard = await self._guard_of(config)
            await engine.start(stack, guard)
            self._guard = guard
        finally:
            await clamping
        await self._adopt_addresses()  # those that came while it started
        if engine.name == "netfilter" and xdp.detach(config):
            log.warning("taken off %s: the XDP program of an agent with another engine", config.interface)

        self._flows = await asyncio.to_thread(FlowCounter)
        stack.callback(self._flows.close)
        if self._flows.refusal:
            log.info("flows are counted by inet_diag, 2 us for each socket of the host: %s", self._flows.refusal)
        pages: dict[str, tuple[str, admin.Answer]] = {
            "/metrics": ("counters for Prometheus", self._metrics),
            "/healthz": ("the process is alive", lambda: b"ok\n"),
            "/readyz": ("the engine judges packets", self._ready),
            "/status": ("engine, VIPs, flows and counters as JSON", self._status),
        }
        server = await admin.serve(admin.make_app("glb-proxy-agent", pages), str(config.admin))
        stack.push_async_callback(server.cleanup)
        log.info("admin on %s", config.admin)

        for work in (self._log_drops(), self._retry_clamp()):
            stack.callback(asyncio.create_task(work).cancel)

    # -- engine --------------------------------------------------------------------------------------------------------

    async def _choose_engine(self, stack: contextlib.AsyncExitStack, ifindex: int) -> Engine:
        """The engine that the configuration names, prepared; "auto" is xdp where it loads."""
        config = self._config
        if config.engine != "netfilter":
            try:
                async with contextlib.AsyncExitStack() as attempt:
                    xdp_engine = XdpEngine(config, ifindex, self._changes)
                    await xdp_engine.prepare(attempt)
                    stack.push_async_callback(attempt.pop_all().aclose)
            except DeviceError as error:
                if config.engine == "xdp":
                    raise
                log.warning("engine = auto: netfilter, since xdp does not work here: %s", error)
                if config.socket_namespaces:
                    log.warning("socket_namespaces: NOT looked into; flows of sockets there will be bounced away")
            else:
                if await asyncio.to_thread(netfilter.remove_left, config.interface):
                    log.warning("left by an agent that was killed: iptables rules removed")
                return xdp_engine
        for phrase in await asyncio.to_thread(undo_engine, config.state_dir, config.interface):
            log.warning("left by an agent that was killed: %s", phrase)
        self._changes = Changes(config.state_dir, config.interface)
        engine = NetfilterEngine(config, ifindex, self._changes, self._warden, self._finish)
        await engine.prepare(stack)
        return engine

    def _finish(self, error: Exception | None) -> None:
        if self._stop.done():
            return
        if error is None:
            self._stop.set_result(None)
        else:
            self._stop.set_exception(error)

    # -- settings ------------------------------------------------------------------------------------------------------

    async def _guard_of(self, config: AgentConfig) -> Guard:
        """By a configuration and the addresses that the host has now."""
        own = await asyncio.to_thread(vips.own_ipv4_addresses)
        return Guard(config.vips, config.allowed_sources, tuple(own), config.socket_namespaces)

    async def _adopt(self, guard: Guard) -> None:
        if self._engine is not None and self._engine.judging:
            await self._engine.adopt(guard)
            self._guard = guard

    async def _apply_vips(self, wanted: Iterable[config_file.Network]) -> None:
        if not self._config.vips_on_lo:
            wanted = ()
        for phrase in await asyncio.to_thread(vips.apply, wanted, self._changes):
            log.info("%s", phrase)

    async def _adopt_addresses(self) -> None:
        """A link or an address of the host has changed, most often not of those that packets are checked against."""
        guard = await self._guard_of(self._config)
        if guard != self._guard:
            await self._adopt(guard)

    def _watch_host(self, stack: contextlib.AsyncExitStack) -> None:
        """An address of this host is no hop to bounce to, and the MSS follows from a link's MTU: notice changes."""
        loop = asyncio.get_running_loop()
        events = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE)
        events.bind((0, RTMGRP_LINK | RTMGRP_IPV4_IFADDR))
        stack.callback(events.close)
        changed = asyncio.Event()

        def drain() -> None:
            with contextlib.suppress(OSError):  # nothing left; or events were lost (ENOBUFS), which is a change too
                while True:
                    events.recv(65536)
            changed.set()

        loop.add_reader(events.fileno(), drain)
        stack.callback(loop.remove_reader, events.fileno())
        task = asyncio.create_task(self._follow_host(changed))
        stack.callback(task.cancel)

    async def _follow_host(self, changed: asyncio.Event) -> None:
        while True:
            await changed.wait()
            changed.clear()
            try:
                async with self._reloading:
                    await self._adopt_addresses()
                    await self._clamp.apply(self._config, self._changes)
            except Exception as error:  # whatever it is: this has to go on for as long as packets are judged
                log.error("the host's addresses may have changed, to be read again soon: %s", error)
                await asyncio.sleep(FOLLOW_AGAIN_S)
                changed.set()

    async def _retry_clamp(self) -> None:
        """What the host refused: somebody may have let go of the lock, or loaded a module."""
        wait_s = clamp.RETRY_S
        while True:
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, clamp.RETRY_AT_MOST_S) if self._clamp.problem else clamp.RETRY_S
            if self._clamp.problem:
                async with self._reloading:
                    await self._clamp.apply(self._config, self._changes)

    async def _reload(self) -> None:
        """Read the file again: new VIPs and sources from now on, or the old ones and an error in the log."""
        async with self._reloading:
            systemd.notify_reloading()
            try:
                new = await asyncio.to_thread(config_file.load, self._path)
                self._refuse_other_changes(new)
                await self._put_in_force(new)
            except REFUSALS as error:
                self._reload_failures += 1
                log.error("reload refused, the old configuration stays in force: %s", error)
            else:
                self._loaded_at = time.time()
                log.info("reloaded: %d VIPs", len(new.vips))
                for warning in new.warnings():
                    log.warning("%s", warning)
                # Last: it may wait for a lock that another program holds.
                await self._clamp.apply(new, self._changes, again=True)
            finally:
                systemd.notify("READY=1")

    async def _put_in_force(self, new: AgentConfig) -> None:
        """All of it, or nothing: one of REFUSALS. A VIP is on lo before it is accepted, and for as long as it is."""
        old = self._config
        try:
            await self._apply_vips({*old.vips, *new.vips})
            await self._adopt(await self._guard_of(new))
            await self._apply_vips(new.vips)
        except REFUSALS:
            try:
                await self._adopt(await self._guard_of(old))  # whatever the engine has taken over of the new one
                await self._apply_vips(old.vips)
            except REFUSALS as error:
                log.error("the old configuration could not be restored whole: reload again, or restart: %s", error)
            raise
        self._config = new

    def _refuse_other_changes(self, new: AgentConfig) -> None:
        names = [f.name for f in fields(AgentConfig) if f.name not in RELOADABLE]
        changed = [name for name in names if getattr(new, name) != getattr(self._config, name)]
        if changed:
            raise ConfigError(
                str(self._path),
                [
                    Problem(f"$.{name}", f"cannot change at a reload (only {', '.join(RELOADABLE)} can): restart")
                    for name in changed
                ],
            )

    # -- telling -------------------------------------------------------------------------------------------------------

    async def _metrics(self) -> bytes:
        return (await self._read()).prometheus()

    async def _status(self) -> dict[str, object]:
        return (await self._read()).status()

    async def _read(self) -> Reading:
        assert self._engine is not None and self._flows is not None
        # In a thread: a host may have very many sockets.
        flows = await asyncio.to_thread(self._flows.count, self._config.vips, self._config.socket_namespaces)
        return Reading(
            engine=self._engine.name,
            mode=self._engine.mode,
            counters=self._engine.counters(),
            bounced_by_hop=self._engine.bounced_by_hop(),
            internals=self._engine.internals(),
            cookie_judge=self._engine.cookie_judge,
            flows=flows.by_vip,
            binds=flows.binds,
            flows_counted_by=flows.counted_by,
            flows_problems=flows.problems,
            queue=self._engine.queue(),
            mss={FAMILIES[family]: value for family, value in self._clamp.in_force.items()},
            mss_problem=self._clamp.problem,
            reload_failures=self._reload_failures,
            loaded_at=self._loaded_at,
        )

    def _ready(self) -> bytes:
        if self._engine is None or not self._engine.judging:
            raise admin.NotReady("the engine is not running")
        return b"ready\n"

    async def _log_drops(self) -> None:
        """Say what is dropped, why, and who sent the last such packet: at most one line per reason and minute."""
        assert self._engine is not None
        while True:
            await asyncio.sleep(DROP_CHECK_S)
            counters = self._engine.counters()
            now = time.monotonic()
            for reason in REASONS:
                if reason.action is not Action.DROP:
                    continue
                when, before = self._logged.get(reason.name, (-DROP_LOG_INTERVAL_S, 0))
                count = counters[reason.name]
                if count > before and now - when >= DROP_LOG_INTERVAL_S:
                    self._logged[reason.name] = (now, count)
                    source = self._engine.last_source(reason.name)
                    log.warning(
                        "dropped %d packets, %s, last from %s: %s", count - before, reason.name, source, reason.meaning
                    )
