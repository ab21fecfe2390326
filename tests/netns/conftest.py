"""Fixtures of the network tests, and the clean-up of what killed earlier runs left behind.

What a missing capability leads to is decided in tests/conftest.py; the netfilter tests need more than namespaces.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))  # `pytest` alone does not look for packages where it is started

from tests.netns import topology
from tests.netns.directors import VIP, VIP6, Director, passing_program

if TYPE_CHECKING:
    from tests.netns.test_agent_second_chance import Site

LAB = "test_lab_"  # modules that have a lab


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A module runs in one of several processes, so that its standing site is made once; the lab's modules do together.

    One of their tests kills a lab, whose name another process would take at once.
    """
    from xdist.scheduler import LoadFileScheduling

    class Modules(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            path = super()._split_scope(nodeid)
            return LAB if Path(path).name.startswith(LAB) else path

    return Modules(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The lab takes the longest, so it comes first."""
    items.sort(key=lambda item: not item.path.name.startswith(LAB))


@pytest.fixture(scope="session", autouse=True)
def swept() -> None:
    """Namespaces and BPF file systems of test processes that were killed are gone."""
    if os.geteuid() == 0:
        topology.sweep()


@pytest.fixture(scope="session", autouse=True)
def xtables_lock(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A lock of iptables that is this process's own: other processes' tests have rules in other namespaces."""
    os.environ["XTABLES_LOCKFILE"] = str(tmp_path_factory.mktemp("xtables") / "lock")


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> None:
    """What is started takes SIGINT, and so do these processes themselves, though a shell ran them in the background."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def bpffs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A BPF file system of the tests' own. (`ip netns exec` hides the machine's from what it runs.)"""
    with topology.bpf_file_system(tmp_path_factory.mktemp("bpf")) as folder:
        yield folder


@pytest.fixture(params=["cython", "xdp"])
def director(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Director]:
    """Not started yet, with a table of proxy1 alone; in either datapath."""
    with topology.Switch("client", "director", "proxy1", "proxy2") as net, passing_program(net, "director"):
        client = net["client"]
        client.run("ip", "route", "add", f"{VIP}/32", "via", net["director"].ipv4)
        client.run("ip", "-6", "route", "add", f"{VIP6}/128", "via", net["director"].ipv6)
        director = Director(net, tmp_path, request.param)
        director.write_table("proxy1")
        yield director
        director.end()


@pytest.fixture
def pins(tmp_path: Path) -> Iterator[Path]:
    """A BPF file system of the test's own."""
    folder = tmp_path / "bpf"
    folder.mkdir()
    with topology.bpf_file_system(folder):
        yield folder


@pytest.fixture
def site(standing_site: Site) -> Iterator[Site]:
    """The module's standing site, as new for each test."""
    standing_site.begin()
    with standing_site.cleanup:
        yield standing_site


@pytest.fixture(scope="session")
def netfilter() -> None:
    """Legacy iptables, NFQUEUE and TUN work here; else a skip, or a failure where GLB_REQUIRE names netns."""
    reason = _netfilter_reason()
    if reason is None:
        return
    if "netns" in os.environ.get("GLB_REQUIRE", "").split(","):
        pytest.fail(f"GLB_REQUIRE names netns, but: {reason}", pytrace=False)
    pytest.skip(f"netfilter engine: {reason}")


def _netfilter_reason() -> str | None:
    if not Path("/dev/net/tun").exists():
        return "there is no /dev/net/tun"
    with topology.Switch("probe") as net:
        program = (
            "from proxy_agent import netfilter; from proxy_agent._verdict import Engine, Settings; "
            "netfilter.install('eth0', 19523, 1); Engine(1, 1, Settings(['192.0.2.1'])).open()"
        )
        done = subprocess.run(
            ["ip", "netns", "exec", net["probe"].namespace, sys.executable, "-c", program],
            capture_output=True,
            text=True,
            cwd=Path(__file__).parents[2],
        )
    return None if done.returncode == 0 else done.stderr.strip().rpartition("\n")[2]
