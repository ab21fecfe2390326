"""The netfilter engine: rules queue packets, the loop of _verdict.pyx judges them; a supervisor cleans up after it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
from collections.abc import Callable

from glb.errors import DeviceError
from proxy_agent import netfilter, syncookie, tun
from proxy_agent._verdict import Engine as Loop
from proxy_agent._verdict import Settings
from proxy_agent.changes import ENGINE, Changes
from proxy_agent.config import AgentConfig
from proxy_agent.engine import ENGINE_SYSCTLS, Guard
from proxy_agent.metrics import queue_state
from proxy_agent.warden import Warden

log = logging.getLogger("glb-proxy-agent")

WARDEN_RESTART_S = 1.0
SETTINGS_WITHIN_S = 5.0  # a batch takes less than a millisecond


class NetfilterEngine:
    """`finish` is called, in the event loop, with the error that ended the verdict loop, or None."""

    name = "netfilter"
    mode = None

    def __init__(
        self,
        config: AgentConfig,
        ifindex: int,
        changes: Changes,
        warden: Warden,
        finish: Callable[[Exception | None], None],
    ) -> None:
        self._config = config
        self._ifindex = ifindex
        self._changes = changes
        self._warden = warden
        self._finish = finish
        self._loop: Loop | None = None
        self.cookie_judge = "memory"
        self._judging = False

    async def prepare(self, stack: contextlib.AsyncExitStack) -> None:
        queue_num = self._config.queue_num
        tun_fd = await asyncio.to_thread(tun.create, tun.device_name(queue_num))
        stack.callback(os.close, tun_fd)
        cookie_program = await asyncio.to_thread(self._find_cookie_judge, stack)
        loop = Loop(queue_num, self._ifindex, Settings(self._config.vips), tun_fd, cookie_program=cookie_program)
        loop.open()
        stack.callback(loop.close)
        self._loop = loop

    async def start(self, stack: contextlib.AsyncExitStack, guard: Guard) -> None:
        assert self._loop is not None
        interface = self._config.interface
        await self.adopt(guard)
        await self._start_warden(stack)
        stack.callback(self._restore_sysctls)
        for name, value in ENGINE_SYSCTLS:
            name = name.format(interface)
            if self._changes.set_sysctl(name, value, ENGINE):
                log.info("sysctl %s=%s", name.replace("/", "."), value)
        self._start_loop(stack, self._loop)
        stack.callback(self._remove_rules)
        netfilter.install(interface, self._config.gue_port, self._config.queue_num)
        log.info("iptables rules: chain %s in tables raw and mangle", netfilter.chain_name(interface))
        stack.callback(setattr, self, "_judging", False)
        self._judging = True

    async def adopt(self, guard: Guard) -> None:
        assert self._loop is not None
        # The new settings hold from the next batch on.
        in_force = self._loop.replace(Settings(guard.vips, guard.allowed_sources, guard.own_addresses))
        if self._judging:
            await asyncio.to_thread(in_force.wait, SETTINGS_WITHIN_S)

    def _find_cookie_judge(self, stack: contextlib.AsyncExitStack) -> int:
        """The program that knows SYN cookies; -1, and the reason in the log, where eBPF is not allowed."""
        try:
            program = syncookie.Program(self._ifindex)
        except DeviceError as error:
            reason = str(error).partition("\n")[0]
            log.warning("SYN cookies are judged by the SYNs that the agent remembers, not by the kernel: %s", reason)
            return -1
        stack.callback(program.close)
        self.cookie_judge = "kernel"
        return program.fd

    def settle(self) -> None:
        """Nothing of it outlives the agent."""

    @property
    def judging(self) -> bool:
        return self._judging

    def _start_loop(self, stack: contextlib.AsyncExitStack, loop: Loop) -> None:
        events = asyncio.get_running_loop()

        def judge() -> None:
            error: Exception | None = None
            try:
                loop.run()
            except Exception as caught:  # whatever it is, the agent must end: packets are queued for nobody
                error = caught
            with contextlib.suppress(RuntimeError):  # the event loop has ended
                events.call_soon_threadsafe(self._finish, error)

        thread = threading.Thread(target=judge, name="verdicts", daemon=True)
        thread.start()

        def join() -> None:
            loop.stop()
            thread.join()

        stack.callback(join)

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

    # -- telling -------------------------------------------------------------------------------------------------------

    def counters(self) -> dict[str, int]:
        assert self._loop is not None
        return self._loop.counters()

    def bounced_by_hop(self) -> dict[int, int]:
        assert self._loop is not None
        return self._loop.bounced_by_hop()

    def last_source(self, reason: str) -> str | None:
        assert self._loop is not None
        return self._loop.last_source(reason)

    def internals(self) -> dict[str, int]:
        assert self._loop is not None
        # Every bounced packet is sent by the host's stack.
        return {**self._loop.internals(), "by_host": self._loop.counters()["bounce"]}

    def queue(self) -> dict[str, int]:
        return queue_state(self._config.queue_num)
