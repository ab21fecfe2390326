"""A small edition of the demo: real flows through directors and agents while the fleet changes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import dpkt
import pytest
from rich.console import Console

from glb.wire.gue import parse_tunnel
from lab import picture, plan
from lab.fleet import Fleet
from lab.load import Load
from lab.program import until
from lab.scenarios import changes, spread
from lab.screen import Screen
from lab.site import Lab

REPOSITORY = Path(__file__).parents[2]

pytestmark = [pytest.mark.netns, pytest.mark.bpf]


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with Lab() as lab:
        standing = Fleet(lab)
        standing.start()
        yield standing
        for program in (*standing.directors.values(), *standing.agents.values()):
            program.check()


@pytest.fixture
def load(fleet: Fleet) -> Iterator[Load]:
    with Load(fleet.lab) as running:
        yield running


@pytest.fixture
def screen() -> Screen:
    return Screen(Console())  # pytest shows what it said if the test fails


def test_requests_spread_as_the_rows_say_and_none_breaks(fleet: Fleet, load: Load, screen: Screen) -> None:
    found = spread.run(fleet, load, screen, 600)
    assert (found.done, found.broken) == (600, 0), load.failures[:3]
    # The standard deviation of a third of 600 is 1.9 %; which rows these addresses hit is the same in every run.
    assert found.farthest < 0.06
    assert set(found.per_proxy) == {proxy.name for proxy in plan.FIRST_PROXIES}


def test_tunnel_packets_on_the_wire_name_the_proxy_and_its_two_hops(fleet: Fleet) -> None:
    """As tcpdump sees them on the router's link to a proxy: from a director, with the other two proxies as hops."""
    proxy, others = plan.FIRST_PROXIES[0], plan.FIRST_PROXIES[1:]
    capture = fleet.lab.directory(proxy.name) / "tunnel.pcap"
    filter_words = ["udp", "dst", "port", str(plan.GUE_PORT)]
    dump = fleet.lab.program(
        plan.ROUTER,
        "tcpdump",
        ["tcpdump", "-Z", "root", "-ni", proxy.router_end, "-Q", "out", "-c", "20", "-w", str(capture), *filter_words],
    ).start()
    until(lambda: "listening" in dump.log.read_text(), "tcpdump to listen", 10, needs=[dump])
    with Load(fleet.lab) as load:
        vips = [str(address) for address in plan.GLB_VIP.addresses]
        load.send("requests", group="dumped", vips=vips, count=60, at_once=4)
        until(lambda: not dump.running, "20 tunnel packets", 10)
    dump.stop()
    with capture.open("rb") as file:
        frames = [frame for _, frame in dpkt.pcap.Reader(file)]
    assert len(frames) == 20
    for frame in frames:
        tunnel = parse_tunnel(frame[14:])
        assert tunnel.source in {director.v4 for director in plan.DIRECTORS}
        assert tunnel.destination == proxy.v4
        assert set(tunnel.gue.hops) == {other.v4 for other in others}
        assert tunnel.gue.next_hop == 0


def test_every_command_that_make_lab_proposes_works(fleet: Fleet) -> None:
    lines = picture.invitation(fleet.lab.prefix).splitlines()
    commands = [line.partition("exec ")[2].partition("     (")[0].split() for line in lines if "exec " in line]
    quiet = {"tcpdump"}  # waits for packets; the test above has it
    commands = [command for command in commands if command[1] not in quiet]
    assert len(commands) >= 5
    for command in commands:
        argv = [sys.executable, "-m", "lab", "exec", "--lab", fleet.lab.prefix, *command]
        done = subprocess.run(argv, cwd=REPOSITORY, capture_output=True, text=True, timeout=20)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        assert done.stdout.strip(), command
    for verb in ("fill", "activate"):  # one of them drained a proxy
        fleet.change(verb, changes.DRAINED)


def test_nothing_breaks_through_drain_kill_fill_and_add(fleet: Fleet, load: Load, screen: Screen) -> None:
    story = changes.Story(fleet, load, screen, downloads=20, late=40, new_per_s=20, dwell_s=1.5)
    outcome = story.run()
    assert outcome.failures == []
    assert (outcome.glb.done, outcome.glb.broken, outcome.glb.corrupt) == (60, 0, 0)
    assert outcome.flawless
    # The test tests something: there were flows to lose, new ones to misplace, and they took the second chance.
    assert outcome.downloads_on_drained > 0
    assert sum(outcome.new_while_drained.values()) > 20
    assert outcome.new_on_drained == 0
    assert outcome.bounced > 0
    assert outcome.new_on_added > 0
