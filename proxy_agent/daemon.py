"""The agent's life: set up, judge, reload, clean up. The only module that holds all the pieces at once.

Order of setting up: whatever a packet needs comes before the rules that send packets; taking down is the reverse.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path

from glb import admin, systemd
from glb.errors import ConfigError, DeviceError, GlbError, Problem
from proxy_agent import config as config_file
from proxy_agent import netfilter, tun, vips
from proxy_agent._verdict import Engine, Settings
from proxy_agent.changes import ENGINE, Changes, sole_agent
from proxy_agent.config import AgentConfig
from proxy_agent.decide import REASONS, Action
from proxy_agent.flows import flows_by_vip
from proxy_agent.metrics import Reading, queue_state
from proxy_agent.warden import Warden, undo_engine

log = logging.getLogger("glb-proxy-agent")

RELOADABLE = ("vips", "allowed_sources")
DROP_CHECK_S = 5.0
DROP_LOG_INTERVAL_S = 60.0  # one line per reason
WARDEN_RESTART_S = 1.0
SETTINGS_WITHIN_S = 5.0  # a batch takes less than a millisecond
RTMGRP_IPV4_IFADDR = 0x10  # <linux/rtnetlink.h>

# What the kernel needs to send a bounced packet on: its source is our own address, and it leaves where it came in.
ENGINE_SYSCTLS = (
    ("net/ipv4/conf/{}/forwarding", "1"),
    ("net/ipv4/conf/{}/accept_local", "1"),
    ("net/ipv4/conf/{}/send_redirects", "0"),
    ("net/ipv4/conf/all/send_redirects", "0"),  # redirects are sent if either says so
)


def run(path: Path) -> None:
    """Run an agent in the foreground until SIGTERM or SIGINT. Raises GlbError if it cannot start or go on."""
    config = config_file.load(path)
    with sole_agent(config.state_dir, config.interface) as lock_fd:
        asyncio.run(Agent(path, config, lock_fd).run())


def detach(config: AgentConfig) -> list[str]:
    """Undo everything that agents with this configuration did to the host. What was done, one phrase each."""
    with sole_agent(config.state_dir, config.interface):
        return undo_engine(config.state_dir, config.interface) + vips.remove(
            Changes(config.state_dir, config.interface)
        )


class Agent:
    """One running agent."""

    def __init__(self, path: Path, config: AgentConfig, lock_fd: int) -> None:
        self._path = path
        self._config = config
        self._changes = Changes(config.state_dir, config.interface)
        self._settings = self._make_settings(config)
        self._warden = Warden(config.state_dir, config.interface, lock_fd)
        self._engine: Engine | None = None
        self._judging = False
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
            systemd.notify("READY=1")
            log.info(
                "ready: %s packets on %s port %d", self._config.engine, self._config.interface, self._config.gue_port
            )
            try:
                await self._stop
            finally:
                systemd.notify("STOPPING=1")
                log.info("stopping")
        log.info("stopped; VIPs stay on lo until `glb-proxy-agent detach`")

    def _announce(self) -> None:
        for warning in self._config.warnings():
            log.warning("%s", warning)
        if self._config.engine_chosen:
            log.info("engine = auto: netfilter, the only engine of this version")

    async def _set_up(self, stack: contextlib.AsyncExitStack) -> None:
        """Each step registers how it is undone; the stack undoes them last first, also when a later step fails."""
        config = self._config
        try:
            ifindex = socket.if_nametoindex(config.interface)
        except OSError:
            raise DeviceError(f"there is no interface {config.interface!r} here") from None
        for phrase in await asyncio.to_thread(undo_engine, config.state_dir, config.interface):
            log.warning("left by an agent that was killed: %s", phrase)
        self._changes = Changes(config.state_dir, config.interface)

        tun_fd = await asyncio.to_thread(tun.create, tun.device_name(config.queue_num))
        stack.callback(os.close, tun_fd)
        engine = Engine(config.queue_num, ifindex, self._settings, tun_fd)
        engine.open()
        stack.callback(engine.close)
        self._engine = engine

        await self._apply_vips(config.vips)
        self._watch_addresses(stack)
        await self._adopt_addresses()

        await self._start_warden(stack)
        stack.callback(self._restore_sysctls)
        for name, value in ENGINE_SYSCTLS:
            name = name.format(config.interface)
            if self._changes.set_sysctl(name, value, ENGINE):
                log.info("sysctl %s=%s", name.replace("/", "."), value)

        self._start_engine(stack, engine)
        stack.callback(self._remove_rules)
        netfilter.install(config.interface, config.gue_port, config.queue_num)
        log.info("iptables rules: chain %s in tables raw and mangle", netfilter.chain_name(config.interface))
        stack.callback(setattr, self, "_judging", False)
        self._judging = True

        pages: dict[str, tuple[str, admin.Answer]] = {
            "/metrics": ("counters for Prometheus", lambda: self._read().prometheus()),
            "/healthz": ("the process is alive", lambda: b"ok\n"),
            "/readyz": ("the engine judges packets", self._ready),
            "/status": ("engine, VIPs, flows and counters as JSON", lambda: self._read().status()),
        }
        server = await admin.serve(admin.make_app("glb-proxy-agent", pages), str(config.admin))
        stack.push_async_callback(server.cleanup)
        log.info("admin on %s", config.admin)

        watcher = asyncio.create_task(self._log_drops())
        stack.callback(watcher.cancel)

    # -- engine --------------------------------------------------------------------------------------------------------

    def _start_engine(self, stack: contextlib.AsyncExitStack, engine: Engine) -> None:
        loop = asyncio.get_running_loop()

        def judge() -> None:
            error: Exception | None = None
            try:
                engine.run()
            except Exception as caught:  # whatever it is, the agent must end: packets are queued for nobody
                error = caught
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(self._finish, error)

        thread = threading.Thread(target=judge, name="verdicts", daemon=True)
        thread.start()

        def join() -> None:
            engine.stop()
            thread.join()

        stack.callback(join)

    def _finish(self, error: Exception | None) -> None:
        if self._stop.done():
            return
        if error is None:
            self._stop.set_result(None)
        else:
            self._stop.set_exception(error)

    def _remove_rules(self) -> None:
        netfilter.remove(self._config.interface)
        log.info("iptables rules removed")

    def _restore_sysctls(self) -> None:
        for name in self._changes.restore_sysctls(ENGINE):
            log.info("sysctl %s restored", name.replace("/", "."))

    async def _start_warden(self, stack: contextlib.AsyncExitStack) -> None:
        await self._warden.start()

        async def keep() -> None:
            while True:
                code = await self._warden.wait()
                log.warning("the supervisor process ended (code %d): starting another", code)
                await asyncio.sleep(WARDEN_RESTART_S)
                await self._warden.start()

        task = asyncio.create_task(keep())

        async def dismiss() -> None:
            task.cancel()
            await self._warden.goodbye()

        stack.push_async_callback(dismiss)

    # -- settings ------------------------------------------------------------------------------------------------------

    def _make_settings(self, config: AgentConfig) -> Settings:
        return Settings(config.vips, config.allowed_sources, vips.own_ipv4_addresses())

    async def _apply_vips(self, wanted: Iterable[config_file.Network]) -> None:
        for phrase in await asyncio.to_thread(vips.apply, wanted, self._changes):
            log.info("%s", phrase)

    async def _adopt_addresses(self) -> None:
        """Judge by the configuration in force and the addresses that the host has now."""
        self._settings = await asyncio.to_thread(self._make_settings, self._config)
        if self._engine is not None:
            # The new settings hold from the next batch on.
            in_force = self._engine.replace(self._settings)
            if self._judging:
                await asyncio.to_thread(in_force.wait, SETTINGS_WITHIN_S)

    def _watch_addresses(self, stack: contextlib.AsyncExitStack) -> None:
        """An address of this host is no hop to bounce to, so notice when they change."""
        loop = asyncio.get_running_loop()
        events = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE)
        events.bind((0, RTMGRP_IPV4_IFADDR))
        stack.callback(events.close)
        changed = asyncio.Event()

        def drain() -> None:
            with contextlib.suppress(OSError):  # nothing left; or events were lost (ENOBUFS), which is a change too
                while True:
                    events.recv(65536)
            changed.set()

        async def follow() -> None:
            while True:
                await changed.wait()
                changed.clear()
                async with self._reloading:
                    await self._adopt_addresses()

        loop.add_reader(events.fileno(), drain)
        stack.callback(loop.remove_reader, events.fileno())
        task = asyncio.create_task(follow())
        stack.callback(task.cancel)

    async def _reload(self) -> None:
        """Read the file again: new VIPs and sources from now on, or the old ones and an error in the log."""
        async with self._reloading:
            systemd.notify_reloading()
            try:
                new = await asyncio.to_thread(config_file.load, self._path)
                self._refuse_other_changes(new)
                # A VIP comes to lo before it is accepted, and is no longer accepted when it leaves.
                await self._apply_vips({*self._config.vips, *new.vips})
                self._config = new
                await self._adopt_addresses()
                await self._apply_vips(new.vips)
            except GlbError as error:
                self._reload_failures += 1
                log.error("reload refused, the old configuration stays in force: %s", error)
            else:
                self._loaded_at = time.time()
                log.info("reloaded: %d VIPs", len(new.vips))
                for warning in new.warnings():
                    log.warning("%s", warning)
            systemd.notify("READY=1")

    def _refuse_other_changes(self, new: AgentConfig) -> None:
        names = [f.name for f in fields(AgentConfig) if f.name not in (*RELOADABLE, "engine_chosen")]
        changed = [name for name in names if getattr(new, name) != getattr(self._config, name)]
        if changed:
            raise ConfigError(
                str(self._path),
                [
                    Problem(f"$.{name}", "cannot change at a reload (only vips and allowed_sources can): restart")
                    for name in changed
                ],
            )

    # -- telling -------------------------------------------------------------------------------------------------------

    def _read(self) -> Reading:
        assert self._engine is not None
        return Reading(
            engine=self._config.engine,
            counters=self._engine.counters(),
            bounced_by_hop=self._engine.bounced_by_hop(),
            internals=self._engine.internals(),
            flows=flows_by_vip(self._settings),
            queue=queue_state(self._config.queue_num),
            reload_failures=self._reload_failures,
            loaded_at=self._loaded_at,
        )

    def _ready(self) -> bytes:
        if not self._judging:
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
