"""What the lab shows: its picture follows the plan, its report follows the counts. No namespaces needed."""

from __future__ import annotations

import io
from collections import Counter
from dataclasses import replace

import pytest
from rich.console import Console

from lab import picture, plan, report
from lab.client import Counts
from lab.scenarios import changes
from lab.scenarios.changes import Outcome
from lab.scenarios.spread import Spread
from lab.screen import Screen

SPREAD = Spread(30, 30, 0, Counter(proxy1=20, proxy2=10), {"proxy1": 0.5, "proxy2": 0.5}, 1.0)


def good_outcome() -> Outcome:
    outcome = Outcome(glb=Counts(asked=20, done=20), ecmp=Counts(asked=20, done=7, broken=13))
    outcome.new = Counts(asked=40, done=40)
    outcome.per_change = [("drain", 0, 6), ("kill", 0, None), ("add", 0, 7)]
    outcome.new_while_drained = Counter(proxy1=9)
    return outcome


def test_picture_names_every_host_with_its_addresses_and_mtu() -> None:
    drawn = picture.draw()
    for host in plan.HOSTS:
        assert all(str(word) in drawn for word in (host.name, host.v4, host.v6, f"MTU {host.mtu_bytes}"))
    assert all(str(address) in drawn for vip in (plan.GLB_VIP, plan.ECMP_VIP) for address in vip.addresses)


def test_picture_is_a_rectangle_that_fits_a_terminal_of_112_columns() -> None:
    lines = picture.draw().splitlines()
    widths = {len(line) for line in lines if not line.startswith(" ")}
    assert len(widths) == 1
    assert max(map(len, lines)) <= 112


def test_verdict_counts_what_broke_on_either_side() -> None:
    assert report.verdict(SPREAD, good_outcome(), 45.2) == (
        "PASSED in 45 s: in 3 changes GLB broke 0 of 20 downloads and 0 of 70 short requests; plain ECMP broke 13 of 20"
        " downloads."
    )


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param({"glb": Counts(asked=20, done=19, broken=1)}, id="broken-download"),
        pytest.param({"glb": Counts(asked=20, done=19, corrupt=1)}, id="corrupt-download"),
        pytest.param({"glb": Counts(asked=20, done=19)}, id="download-not-finished"),
        pytest.param({"glb": Counts()}, id="no-downloads-at-all"),
        pytest.param({"new": Counts(asked=40, done=39, broken=1)}, id="broken-request"),
        pytest.param(
            {"new_while_drained": Counter({changes.DRAINED.name: 1})}, id="new-flow-on-drained-proxy-by-client"
        ),
        pytest.param({"syns_on_drained": 1}, id="new-flow-on-drained-proxy-by-agent"),
    ],
)
def test_one_fault_over_glb_fails_the_demo(fault: dict[str, object]) -> None:
    assert report.is_good(SPREAD, good_outcome())
    outcome = replace(good_outcome(), **fault)
    assert not report.is_good(SPREAD, outcome)
    assert report.verdict(SPREAD, outcome, 1.0).startswith("FAILED")


def test_request_lost_before_the_changes_fails_the_demo_too() -> None:
    assert not report.is_good(replace(SPREAD, done=29, broken=1), good_outcome())


def test_lines_in_a_pipe_carry_no_colour_and_bars_stand_beside_the_expected_share() -> None:
    out = io.StringIO()
    screen = Screen(Console(file=out, width=100))
    with screen.following(lambda: "live"):
        screen.bars(SPREAD.shares, SPREAD.expected)
    screen.table(report.per_change(good_outcome()))
    said = out.getvalue()
    assert "\x1b" not in said
    assert "live" not in said
    assert "66.67%   expected 50.00%" in said
    assert "no director" in said
