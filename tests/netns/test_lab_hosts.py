"""The lab without GLB: it comes up, its BGP and plain ECMP work, and it goes away, also by kill -9."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from lab import bird, plan, reaper, site
from lab.network import NETNS_DIR
from lab.program import until
from lab.site import Lab

pytestmark = pytest.mark.netns

REPOSITORY = Path(__file__).parents[2]


def url(address: object) -> str:
    return f"http://[{address}]/" if ":" in str(address) else f"http://{address}/"


def namespaces(prefix: str) -> list[str]:
    return [f"{prefix}-{host}" for host in plan.HOST_NAMES]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as standing:
        yield standing


def test_bgp_sessions_of_both_families_come_up(lab: Lab) -> None:
    for director in plan.DIRECTORS:
        lab.start_bird(director.name, bird.director_config(director))
    sessions = 2 * len(plan.DIRECTORS)
    until(lambda: bird.established(lab.birdc("router", "show protocols")) == sessions, "BGP to come up", 15)


def test_no_director_announces_while_its_device_is_missing(lab: Lab) -> None:
    for address in plan.GLB_VIP.addresses:
        assert lab.run("router", ["ip", f"-{address.version}", "route", "show", str(address)]) == ""


@pytest.mark.parametrize("address", plan.ECMP_VIP.addresses, ids=["ipv4", "ipv6"])
def test_plain_ecmp_reaches_every_proxy_in_the_route_and_no_other(lab: Lab, address: object) -> None:
    curl = ["curl", "-sSg", "-m", "5", "-H", "Connection: close", *[url(address)] * 30]
    answers = set(lab.run("client", curl).split("\n")) - {""}
    assert answers == {f"served by {proxy.name}" for proxy in plan.FIRST_PROXIES}


@pytest.mark.parametrize("source", ["198.18.200.3", "2001:db8:c::ab"])
def test_client_speaks_from_any_address_of_its_prefixes(lab: Lab, source: str) -> None:
    vip = plan.ECMP_VIP.v6 if ":" in source else plan.ECMP_VIP.v4
    answer = lab.run("client", ["curl", "-sSg", "-m", "5", "--interface", source, url(vip)])
    assert answer.startswith("served by proxy")


def test_links_have_the_mtus_of_the_plan(lab: Lab) -> None:
    for host in plan.HOSTS:
        assert f"mtu {host.mtu_bytes} " in lab.run(host.name, ["ip", "link", "show", "eth0"])


def test_second_lab_stands_beside_the_first(lab: Lab) -> None:
    with Lab() as other:
        assert other.prefix != lab.prefix
        assert other.run("client", ["curl", "-sS", "-m", "5", url(plan.ECMP_VIP.v4)]).startswith("served by")
    assert not any((NETNS_DIR / name).exists() for name in namespaces(other.prefix))
    assert lab.run("client", ["curl", "-sS", "-m", "5", url(plan.ECMP_VIP.v4)]).startswith("served by")


@pytest.mark.parametrize("also_the_reaper", [False, True], ids=["lab-killed", "lab-and-reaper-killed"])
def test_kill_9_leaves_no_namespace_process_or_link(also_the_reaper: bool) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "lab", "up", "--bare"], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    with process, process.stdout as stdout:
        said = ""
        for line in stdout:
            said = line
            if "Ctrl-C removes everything" in line:
                break
        prefix = Path(said.removeprefix("Logs and configurations: ").partition(". Ctrl-C")[0]).name
        inside = reaper.processes_in(namespaces(prefix))
        assert len(inside) >= 1 + len(plan.PROXIES)  # BIRD and every nginx
        if also_the_reaper:
            for pid in children(process.pid):
                if b"lab.reaper" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    os.kill(pid, signal.SIGKILL)
        process.kill()
    home = site.RUN_ROOT / prefix
    if also_the_reaper:
        assert (home / "namespaces").exists()
        site.remove(home)  # as `python -m lab down` does, and the next lab of that name
    until(lambda: not any((NETNS_DIR / name).exists() for name in namespaces(prefix)), "the namespaces to go", 15)
    until(lambda: not any(map(alive, inside)), "the processes to go", 5)
    until(lambda: home not in site.running(), "the record to go", 5)
    links = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True).stdout
    assert not any(f" {host.router_end}" in links for host in plan.HOSTS)


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def alive(pid: int) -> bool:
    """Whether it runs (a zombie that nobody has collected yet does not)."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False
