"""Faults under real load in the lab: every agent killed, restarted and upgraded; a flood of SYNs through a drain."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
from rich.console import Console

from lab import plan
from lab.client import Counts
from lab.fleet import Fleet
from lab.load import Load
from lab.program import until
from lab.scenarios import flood
from lab.screen import Screen
from lab.site import Lab

pytestmark = [pytest.mark.netns, pytest.mark.bpf]

DRAINED = plan.PROXIES[1]
SETTLED_S = 30.0


def standing(engine: str) -> Iterator[Fleet]:
    with pytest.MonkeyPatch.context() as patch, Lab() as lab:
        patch.setenv("ENGINE", engine)
        fleet = Fleet(lab)
        fleet.start()
        yield fleet
        for program in (*fleet.directors.values(), *fleet.agents.values()):
            program.check()


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    yield from standing("xdp")


@pytest.fixture
def netfilter_fleet(netfilter: None) -> Iterator[Fleet]:
    yield from standing("netfilter")


@pytest.fixture
def load(fleet: Fleet) -> Iterator[Load]:
    with Load(fleet.lab) as running:
        yield running


@pytest.fixture
def screen() -> Screen:
    return Screen(Console())  # pytest shows what it said if the test fails


def test_nothing_breaks_while_every_agent_is_killed_restarted_and_upgraded_in_a_drain(fleet: Fleet, load: Load) -> None:
    vips = [str(address) for address in plan.GLB_VIP.addresses]
    load.send("downloads", group="long", vips=vips, count=60)
    until(lambda: load.counts("long").open == 60, "60 downloads to begin", SETTLED_S)
    assert load.proxies("long")[DRAINED.name] > 0
    fleet.change("drain", DRAINED)
    load.send("steady", group="short", vips=vips, per_second=50)

    def feel() -> None:
        """Packets of old flows bounce, and new ones begin, as the fleet is now."""
        done, received = load.counts("short").done, load.counts("long").received
        until(
            lambda: load.counts("short").done > done + 30 and load.counts("long").received > received + 60 * 2048,
            "traffic to go on",
            SETTLED_S,
        )

    feel()
    assert sum(fleet.bounced(proxy) for proxy in plan.PROXIES) > 0
    for number in (signal.SIGKILL, signal.SIGTERM):  # after the second another version could be started
        for proxy in plan.PROXIES:
            fleet.end_agent(proxy, number)
        feel()
        for proxy in plan.PROXIES:
            fleet.begin_agent(proxy)
        feel()
    for program in fleet.agents.values():
        assert program.log.read_text().count("took over the program of an earlier agent") == 2
    load.send("quiet")
    load.send("release")
    until(lambda: not load.counts("long").open, "the downloads to end", SETTLED_S)
    until(lambda: load.counts("short").done == load.counts("short").asked, "the short requests to end", SETTLED_S)
    assert load.failures == []
    whole = Counts(asked=60, done=60, received=load.counts("long").received)
    assert load.counts("long") == whole
    for verb in ("fill", "activate"):
        fleet.change(verb, DRAINED)


def check(found: flood.Flooded, downloads: int) -> None:
    assert found.failures == []
    assert found.flawless
    assert (found.downloads.done, found.new.done) == (downloads, found.new.asked)
    # The test tests something: nginx's queues were full of SYNs, new flows began, old ones took their second chance.
    assert found.cookies > 10_000
    assert found.new.asked > 50
    assert found.bounced > 0


def test_nothing_breaks_in_a_flood_of_syns_for_ten_seconds_and_a_drain(
    fleet: Fleet, load: Load, screen: Screen
) -> None:
    check(flood.run(fleet, load, screen, downloads=200, new_per_s=20, seconds=10, syns_per_s=0), 200)


def test_nothing_breaks_with_netfilter_in_a_flood_that_it_can_judge(netfilter_fleet: Fleet, screen: Screen) -> None:
    with Load(netfilter_fleet.lab) as load:
        check(flood.run(netfilter_fleet, load, screen, downloads=60, new_per_s=20, seconds=6, syns_per_s=20_000), 60)
