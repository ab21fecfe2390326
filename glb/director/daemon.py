"""The running director: start, follow the tables, stop. One asyncio loop; packets are other threads' work."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import time
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

from pyroute2.netlink.exceptions import NetlinkError

from glb import admin, pin, systemd
from glb.director.announce import AnnounceDevice
from glb.director.capture import Captures
from glb.director.config import Config
from glb.director.counts import ACCELERATED, CYTHON, ENGINES, Counts
from glb.director.datapath import Datapath
from glb.director.forwarding import Published, compile_forwarding
from glb.director.interface import Interface, read_interface
from glb.director.links import Link
from glb.director.metrics import exposition
from glb.director.nexthops import NextHop, NextHops
from glb.director.status import BackendStatus, ReloadStatus, Status, TableStatus
from glb.director.watch import Identity, file_changes, identity
from glb.errors import ConfigError, GlbError, Problem, TableError
from glb.store import open_store
from glb.store.file import FileStore
from glb.table.rows import RowBuilder
from glb.version import __version__

log = logging.getLogger(__name__)

# Withdrawn routes are still used while BGP spreads the news; forwarding goes on for so long.
_WITHDRAW_S = 1.0


@dataclass(slots=True)
class Reload:
    """How the last attempts to load the tables ended."""

    ok: bool = True
    error: str | None = None
    at: float = 0.0  # seconds since the epoch
    good_at: float = 0.0
    failures: int = 0
    took_s: float = 0.0


class Director:
    """`run` is the whole life. Raises GlbError where it cannot start; once it forwards, nothing in a table stops it."""

    def __init__(self, config: Config, source: str) -> None:
        missing = [key for key in ("interface", "store") if getattr(config, key) is None]
        if missing:
            names = {"interface": "$.interface", "store": "$.table"}
            raise ConfigError(source, [Problem(names[key], "is missing; it is needed to run") for key in missing])
        assert config.store is not None
        self._config = config
        store = open_store(config.store)
        assert isinstance(store, FileStore)  # the only kind in this version
        self._store = store
        self._builder = RowBuilder()
        self._reload_lock = asyncio.Lock()
        self.last_reload = Reload()
        self.interface: Interface
        self._datapath: Datapath
        self._published: Published
        self._prepared: Published | None = None  # to be published; follows next hops already
        self._digests: list[str]
        self._next_hops: NextHops
        self._egresses: dict[int, bool] = {}  # other interfaces that packets leave by: whether XDP redirects there
        self._captures: Captures

    # -- life

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        stop = asyncio.Event()
        reload = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        loop.add_signal_handler(signal.SIGHUP, reload.set)
        assert self._config.interface is not None
        self.interface = await read_interface(self._config.interface)
        self._datapath = self._make_datapath()
        seen = identity(self._store.path)  # before it is read: it may change while we start
        self._published = self._load()
        self._digests = self._published.digests()
        self._next_hops = NextHops(self.interface, self._config.outbound_gateway_mac, self._set_next_hop)
        await self._next_hops.set_backends(self._published.backends())
        async with contextlib.AsyncExitStack() as stack:
            announce = None
            if self._config.announce_device is not None:
                announce = AnnounceDevice(self._config.announce_device)
                stack.callback(announce.close)
            stack.callback(self._datapath.close)
            self._captures = Captures(
                self._datapath,
                self.interface.name,
                names=lambda: [table.name for table in self._published.tables.tables],
                changing=self._reload_lock,
                remote=self._config.remote_capture,
            )
            posts = {"/capture": ("packets as pcapng, by a filter in JSON (glbctl capture)", self._captures.post)}
            app = admin.make_app("glb-director", self._pages(), posts)
            runner = await admin.serve(app, self._config.admin)
            stack.push_async_callback(runner.cleanup)
            stack.push_async_callback(self._captures.stop)
            self._datapath.start(self._published.forwarding)
            self._next_hops.report()  # what a driver need not take depends on the mode of XDP
            tasks = [
                asyncio.create_task(self._next_hops.follow()),
                asyncio.create_task(self._watch(reload, seen)),
                asyncio.create_task(self._reload_when(reload)),
            ]
            for task in tasks:
                stack.push_async_callback(_cancelled, task)
            if announce is not None:
                await announce.up()
            log.info(
                "forwarding on %s (%s, %s XDP, %s, %d queue(s)); admin at %s",
                self.interface.name,
                self.engine,
                self.xdp_mode,
                "zero-copy" if self._datapath.zero_copy else "copy mode",
                self.interface.rx_queues,
                self._config.admin,
            )
            systemd.notify("READY=1")
            stopped = asyncio.create_task(stop.wait())
            await asyncio.wait([stopped, *tasks], return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                if task.done():
                    task.result()
            systemd.notify("STOPPING=1")
            if announce is not None:
                log.info("withdrawing")
                await announce.down()
                await asyncio.sleep(_WITHDRAW_S)
        log.info("stopped")

    def _make_datapath(self) -> Datapath:
        accelerate = self._config.datapath == "xdp"
        if self._config.datapath == "auto":
            # A veth delivers what XDP sends only if its other end has GRO on or an XDP program: out of our sight.
            accelerate = self.interface.kind != "veth"
            if not accelerate:
                log.info('%s is a veth: not accelerated; see datapath = "xdp"', self.interface.name)
        pin_dir = Path(self._config.pin_dir) if self._config.pin_dir else None
        if pin_dir is not None and not pin.usable(pin_dir):
            log.warning("the XDP program will not outlive this process")
            pin_dir = None
        return Datapath(
            self.interface,
            accelerate=accelerate,
            pin_dir=pin_dir,
            cores=self._config.worker_cores,
            busy_poll=self._config.busy_poll,
        )

    # -- tables

    def _load(self) -> Published:
        """Read, build and compile the store's tables. Raises ConfigError, StoreError, TableError."""
        began = time.monotonic()
        snapshot = self._store.load()
        tables = snapshot.tables
        rows = self._builder.build_all(tables)
        source_ip = self._config.outbound_src_ip or self.interface.address
        if source_ip is None:
            raise GlbError(f"interface {self.interface.name} has no IPv4 address; set outbound_src_ip")
        source_mac = self._config.outbound_src_mac or self.interface.mac
        published = compile_forwarding(
            tables,
            rows,
            self._config,
            version=snapshot.version,
            source_ip=source_ip,
            source_mac=source_mac,
            answers_per_s=self._config.too_big_answers_per_s,
            memory=self._datapath.memory,
            bank=self._datapath.next_bank,
        )
        now = time.time()
        self.last_reload = Reload(True, None, now, now, self.last_reload.failures, time.monotonic() - began)
        return published

    async def reload(self) -> None:
        """Publish the store's tables as they are now; if they are refused, say why and go on by the old ones."""
        async with self._reload_lock:
            systemd.notify_reloading()
            try:
                published = await asyncio.to_thread(self._load)
                self._prepared = published
                await self._next_hops.set_backends(published.backends())
                await asyncio.to_thread(self._datapath.publish, published.forwarding)
            except (GlbError, OSError, NetlinkError) as error:
                if self._prepared is not None:
                    self._prepared = None
                    with contextlib.suppress(OSError, NetlinkError):  # `follow` asks the kernel again anyway
                        await self._next_hops.set_backends(self._published.backends())
                failures = self.last_reload.failures + 1
                good_at, took_s = self.last_reload.good_at, self.last_reload.took_s
                self.last_reload = Reload(False, str(error), time.time(), good_at, failures, took_s)
                log.error("the new tables are refused, the old ones stay in force:\n%s", error)
                systemd.notify("READY=1", "STATUS=the last table file was refused")
                return
            digests = await asyncio.to_thread(published.digests)
            self._published, self._digests, self._prepared = published, digests, None
            names = [table.name for table in published.tables.tables]
            log.info("published: %s", ", ".join(f"{n} {d[:12]}" for n, d in zip(names, self._digests, strict=True)))
            systemd.notify("READY=1", "STATUS=forwarding")

    async def _reload_when(self, asked: asyncio.Event) -> None:
        while True:
            await asked.wait()
            asked.clear()
            await self.reload()

    async def _watch(self, changed: asyncio.Event, seen: Identity | None) -> None:
        async for _ in file_changes(self._store.path, seen):
            changed.set()

    def _set_next_hop(self, address: IPv4Address, hop: NextHop) -> None:
        for published in (self._published, self._prepared):
            if published is None:
                continue
            try:
                published.forwarding.set_next_hop(address.packed, hop.mac, hop.mtu_bytes, self._egress(hop.link))
            except TableError as error:
                log.error("backend %s cannot be reached: %s", address, error)
                published.forwarding.set_next_hop(address.packed, None)

    def _egress(self, link: Link | None) -> tuple[int, bytes, bool] | None:
        """An interface as Forwarding.set_next_hop takes it."""
        if link is None or link.mac is None or link.index == self.interface.index:
            return None
        # Where the kernel does not tell (before 6.3) the operator's word counts. In generic mode every driver will do.
        takes = self._config.datapath == "xdp" if link.takes_xdp is None else link.takes_xdp
        redirects = takes or self._datapath.mode == "generic"
        if self._egresses.get(link.index) != redirects:
            self._egresses[link.index] = redirects
            how = (
                "are redirected there by XDP" if redirects and self._datapath.accelerate else "are sent from user space"
            )
            log.info("packets that leave by %s %s", link.name, how)
        return link.index, self._config.outbound_src_mac or link.mac, redirects

    # -- answers

    @property
    def engine(self) -> str:
        """Which of the two encapsulates the common packets."""
        return ACCELERATED if self._datapath.accelerate else CYTHON

    @property
    def xdp_mode(self) -> str:
        return self._datapath.mode

    def counts(self) -> Counts:
        return self._datapath.counts()

    def status(self) -> Status:
        """What /status shows."""
        counts = self._datapath.counts()
        tables = []
        for table, digest in zip(self._published.tables.tables, self._digests, strict=True):
            backends = []
            for backend in table.backends:
                hop = self._next_hops.known.get(IPv4Address(int(backend.address)))
                backends.append(
                    BackendStatus(
                        address=str(backend.address),
                        state=backend.state.value,
                        healthy=backend.healthy,
                        packets=sum(counts.backends[table.name, str(backend.address), engine] for engine in ENGINES),
                        interface=hop.link.name if hop is not None and hop.link is not None else None,
                        fault=hop.fault if hop is not None else "not resolved yet",
                    )
                )
            tables.append(TableStatus(table.name, digest, backends))
        reload = self.last_reload
        return Status(
            version=__version__,
            pid=os.getpid(),
            interface=self.interface.name,
            engine=self.engine,
            accelerated_packets=counts.accelerated,
            xdp_mode=self.xdp_mode,
            zero_copy=self._datapath.zero_copy,
            queues=self._datapath.queues(),
            capture=self._captures.running,
            table_source=str(self._store.path),
            table_version=self._published.version,
            tables=tables,
            last_reload=ReloadStatus(reload.ok, reload.error, reload.at),
        )

    def _ready(self) -> bytes:
        if not self._datapath.alive():
            raise admin.NotReady("a worker has ended")
        unreachable = [str(a) for a, hop in self._next_hops.known.items() if hop.mac is None]
        if unreachable and len(unreachable) == len(self._next_hops.known):
            raise admin.NotReady("no backend can be reached")
        return b"ready\n"

    def _pages(self) -> dict[str, tuple[str, admin.Answer]]:
        return {
            "/healthz": ("alive", lambda: b"ok\n"),
            "/readyz": ("forwarding, and at least one backend can be reached", self._ready),
            "/metrics": ("Prometheus metrics", exposition(self)),
            "/status": ("tables, digests, backends and the last reload, in JSON", self.status),
        }


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError, Exception):
        await task
