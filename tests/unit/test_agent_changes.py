"""What the agent does about changes while it runs, with a host and an engine that may refuse: all, or nothing."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from pyroute2.netlink.exceptions import NetlinkError

from glb import systemd
from glb.errors import DeviceError
from proxy_agent import clamp, config, daemon, vips
from proxy_agent.changes import Changes
from proxy_agent.engine import Guard

OLD, NEW = "198.51.100.1", "198.51.100.2"
WITHIN_S = 10.0


class Host:
    """An agent on a host that does nothing but note what it was told; `refusals`: what it says to a step, once each."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.steps: list[str] = []
        self.refusals: dict[str, Exception] = {}
        self.addresses = ["10.0.0.1"]
        self.judging = True
        self._path = directory / "agent.json"
        self._directory = directory
        self.write(OLD)
        self.agent: Any = daemon.Agent(self._path, config.load(self._path), -1)
        self.agent._engine = self
        self.agent._guard = Guard(self.agent._config.vips, None, ("10.0.0.1",))
        monkeypatch.setattr(vips, "apply", self._apply)
        monkeypatch.setattr(vips, "own_ipv4_addresses", self._own_addresses)
        monkeypatch.setattr(systemd, "notify", lambda text: self._step(f"notify {text}"))
        monkeypatch.setattr(systemd, "notify_reloading", lambda: None)
        monkeypatch.setattr(clamp, "interface_mtu", lambda interface: 1500)
        monkeypatch.setattr(clamp, "_run", self._clamp)

    def write(self, *addresses: str) -> None:
        keys = {"interface": "eth0", "vips": addresses, "state_dir": str(self._directory), "engine": "xdp"}
        self._path.write_text(json.dumps(keys))

    def _step(self, name: str) -> None:
        self.steps.append(name)
        if name in self.refusals:
            raise self.refusals.pop(name)

    def _apply(self, wanted: Iterable[config.Network], changes: Changes) -> list[str]:
        self._step("lo " + " ".join(sorted(map(vips.text, wanted))))
        return []

    def _own_addresses(self) -> list[str]:
        if "addresses" in self.refusals:
            raise self.refusals.pop("addresses")
        return list(self.addresses)

    async def adopt(self, guard: Guard) -> None:
        self._step("judge " + " ".join(map(vips.text, guard.vips)))

    async def _clamp(self, interface: str, family: int, mss: int, texts: tuple[str, ...]) -> str | None:
        try:
            self._step(f"clamp {mss} {' '.join(texts)}")
        except DeviceError as error:
            return str(error)
        return None

    def reload(self, *addresses: str) -> list[str]:
        """The steps of a reload."""
        self.write(*addresses)
        self.steps.clear()
        asyncio.run(self.agent._reload())
        return self.steps


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    return Host(tmp_path, monkeypatch)


def in_force(host: Host) -> list[str]:
    return [vips.text(vip) for vip in host.agent._config.vips]


def test_reload_puts_the_clamp_last_and_a_vip_on_lo_for_as_long_as_it_is_judged(host: Host) -> None:
    assert host.reload(NEW) == [
        f"lo {OLD} {NEW}",
        f"judge {NEW}",
        f"lo {NEW}",
        f"clamp 1412 {NEW}",
        "notify READY=1",
    ]
    assert in_force(host) == [NEW]


@pytest.mark.parametrize("step", [f"lo {OLD} {NEW}", f"judge {NEW}", f"lo {NEW}"])
@pytest.mark.parametrize(
    "refusal", [DeviceError("no"), OSError(28, "no"), NetlinkError(1, "no")], ids=["glb", "os", "netlink"]
)
def test_reload_that_fails_at_a_step_undoes_what_came_before(host: Host, step: str, refusal: Exception) -> None:
    host.refusals[step] = refusal
    steps = host.reload(NEW)
    assert steps[steps.index(step) + 1 :] == [f"judge {OLD}", f"lo {OLD}", "notify READY=1"]
    assert in_force(host) == [OLD]
    assert host.agent._guard.vips == host.agent._config.vips
    assert host.agent._reload_failures == 1
    assert host.reload(NEW)[-1] == "notify READY=1"
    assert in_force(host) == [NEW]


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(WITHIN_S):
        while not true():
            await asyncio.sleep(0.005)


def test_changes_of_the_host_are_followed_after_one_that_failed_and_others_leave_the_engine_alone(
    host: Host, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(daemon, "FOLLOW_AGAIN_S", 0.01)
    host.refusals["addresses"] = RuntimeError("unforeseen")

    async def follow() -> None:
        changed = asyncio.Event()
        task = asyncio.create_task(host.agent._follow_host(changed))
        changed.set()
        await until(lambda: f"clamp 1412 {OLD}" in host.steps)  # after the engine's turn
        assert f"judge {OLD}" not in host.steps
        host.addresses.append("10.0.0.2")
        changed.set()
        await until(lambda: f"judge {OLD}" in host.steps)
        task.cancel()

    asyncio.run(follow())
    assert "unforeseen" in caplog.text


def test_clamp_that_failed_is_tried_again_and_what_is_in_force_stays(
    host: Host, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(clamp, "RETRY_S", 0.01)
    agent = host.agent
    first, second = f"clamp 1412 {OLD}", f"clamp 1412 {OLD} {NEW}"

    async def live() -> None:
        host.refusals[first] = DeviceError("locked")
        await agent._clamp.apply(agent._config, agent._changes)
        assert (agent._clamp.in_force[4], agent._clamp.problem) == (0, "ipv4: locked")
        task = asyncio.create_task(agent._retry_clamp())
        await until(lambda: agent._clamp.problem is None)
        assert agent._clamp.in_force[4] == 1412
        assert host.steps.count(first) == 2
        task.cancel()
        host.refusals[second] = DeviceError("locked")
        host.write(OLD, NEW)
        await agent._reload()
        assert (agent._clamp.in_force[4], agent._clamp.problem) == (1412, "ipv4: locked")
        await agent._clamp.apply(agent._config, agent._changes)
        assert agent._clamp.problem is None
        assert host.steps.count(second) == 2
        await agent._clamp.apply(agent._config, agent._changes)
        assert host.steps.count(second) == 2

    asyncio.run(live())
    assert caplog.text.count("NOT clamped") == 2


def test_agent_works_on_where_no_process_can_be_started_for_the_clamp(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clamp, "interface_mtu", lambda interface: 1500)
    monkeypatch.setattr("sys.executable", str(tmp_path / "gone"))
    path = tmp_path / "agent.json"
    path.write_text(json.dumps({"interface": "eth0", "vips": [OLD], "state_dir": str(tmp_path)}))
    clamping, changes = clamp.Clamp(), Changes(tmp_path, "eth0")
    asyncio.run(clamping.apply(config.load(path), changes))
    assert clamping.problem == "ipv4: no process for it: No such file or directory"
    with pytest.raises(DeviceError, match=r"chain glb-mss-eth0 of table mangle: ipv4: no process for it"):
        clamp.remove("eth0", changes)
    monkeypatch.setattr("sys.executable", "/bin/sleep")
    monkeypatch.setattr(clamp, "_command", lambda *arguments: ["/bin/sleep", "60"])
    monkeypatch.setattr(clamp, "WITHIN_S", 0.05)
    with pytest.raises(DeviceError, match="not done within"):
        clamp.remove("eth0", changes)
    assert changes.clamped == (4,)


def test_no_module_of_the_directory_that_the_agent_was_started_in_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`iptc` and all that it imports are looked for where Python is installed."""
    for name in ("iptc", "signal", "asyncio", "fcntl"):
        (tmp_path / f"{name}.py").write_text("open('was-run', 'w').close()\n")
    (tmp_path / "proxy_agent").mkdir()
    (tmp_path / "proxy_agent" / "__init__.py").write_text("open('was-run', 'w').close()\n")
    monkeypatch.chdir(tmp_path)

    async def run() -> None:
        warden = daemon.Warden(tmp_path, "eth0", 0)
        await warden.start()
        await warden.goodbye()
        assert await clamp._run("eth0", 5, 0, ()) == "KeyError: 5"  # no address family: it has loaded, and does nothing

    asyncio.run(run())
    assert not (tmp_path / "was-run").exists()
