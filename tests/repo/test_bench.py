"""`make bench` prints what it promises. How fast anything is, is no test's business."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench import memory, samples, tables
from bench.errors import BenchError
from bench.measure import BASELINE, OURS, Cores, Session, figure
from bench.talk import Talk
from glb._rendezvous import ENGINES

ROOT = Path(__file__).parents[2]
KEYS = {
    "figure",
    "value",
    "unit",
    "better",
    "baseline",
    "ratio",
    "alternations",
    "spread",
    "frame_bytes",
    "method",
    "baseline_is",
    "not_included",
}


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bench", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )


def session() -> Session:
    core = min(os.sched_getaffinity(0))
    return Session(True, Cores(core, core), Talk())


def test_list_names_every_benchmark() -> None:
    listed = [line.split()[0] for line in bench("--list").stdout.splitlines()]
    assert listed[:3] == ["memory", "tables", "live"]


def test_unknown_benchmark_is_refused_with_the_names_there_are() -> None:
    done = bench("no-such")
    assert done.returncode == 2
    assert done.stdout == ""
    assert "memory" in done.stderr


def test_quick_run_prints_one_complete_json_line_per_figure() -> None:
    done = bench("--quick", "memory", "tables")
    assert done.returncode == 0, done.stderr
    figures = [json.loads(line) for line in done.stdout.splitlines()]
    names = [each["figure"] for each in figures]
    assert names == [
        *(
            f"memory/ipv{family}-{cache}{engine}"
            for family in (4, 6)
            for cache in ("hot", "warm", "cold")
            for engine in ("", *(f"-{name}" for name in ENGINES[1:]))
        ),
        *(f"tables/{what}-{backends}" for what in ("build", "change") for backends in (16, 100, 256)),
    ]
    for each in figures:
        assert each.keys() >= KEYS
        assert set(each["spread"]) == {"value", "baseline", "ratio"}
        assert all(side["min"] <= side["median"] <= side["max"] for side in each["spread"].values())
        assert each["ratio"] > 0
        assert each["alternations"] == 2


@pytest.mark.netns
@pytest.mark.bpf
def test_quick_run_of_the_agents_program_and_of_a_stream() -> None:
    done = bench("--quick", "agent-xdp", "stream")
    assert done.returncode == 0, done.stderr
    figures = {each["figure"]: each for each in map(json.loads, done.stdout.splitlines())}
    alone = ("established", "syn", "last-resort", "bounce", "live-bounce")
    assert figures.keys() == {
        *(f"agent-xdp/{what}-ipv{family}{flows}" for what in alone for family in (4, 6) for flows in ("", "-many")),
        *(f"agent-xdp/spread-ipv{family}" for family in (4, 6)),
        *(f"stream/{path}-{direction}" for path in ("xdp", "cython") for direction in ("upload", "download")),
    }
    for each in figures.values():
        assert each.keys() >= KEYS


def test_sides_take_turns_in_an_order_that_changes() -> None:
    order: list[str] = []

    def sample(name: str) -> float:
        order.append(name)
        return float(len(order))

    taken = session().alternate("x", {OURS: lambda: sample(OURS), BASELINE: lambda: sample(BASELINE)}, 3)
    assert order == [OURS, BASELINE, BASELINE, OURS, OURS, BASELINE]
    assert taken == {OURS: [1.0, 4.0, 5.0], BASELINE: [2.0, 3.0, 6.0]}


def test_ratio_is_the_median_of_the_alternations_ratios_not_the_ratio_of_medians() -> None:
    # The machine is three times slower from the second alternation on, for both sides.
    taken = {OURS: [10.0, 30.0, 33.0], BASELINE: [20.0, 60.0, 30.0]}
    made = figure("x/y", taken, unit="ns", better="lower", method="m", baseline="b", not_included="n", flows=3)
    assert made["ratio"] == 0.5
    assert made["spread"]["ratio"] == {"min": 0.5, "median": 0.5, "max": 1.1}
    assert (made["value"], made["baseline"], made["flows"]) == (30.0, 30.0, 3)


@pytest.mark.parametrize(("family", "frame_bytes"), [(4, 64), (6, 78)])
def test_memory_baseline_writes_the_packets_that_ours_writes(family: int, frame_bytes: int) -> None:
    memory.check_same_work(family, samples.flows(family, frame_bytes, 300))


def test_memory_baseline_that_differs_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory.Baseline, "encapsulate", lambda self, frame: frame)
    with pytest.raises(BenchError, match="another packet"):
        memory.check_same_work(4, samples.flows(4, 64, 1))


@pytest.mark.parametrize("n_backends", [2, 16])
def test_tables_baseline_builds_the_rows_that_ours_builds(n_backends: int) -> None:
    tables.check_same_work(samples.table(n_backends))


@pytest.mark.netns
@pytest.mark.bpf
def test_reload_sees_the_new_rows_and_counts_what_was_lost() -> None:
    done = bench("--quick", "reload")
    assert done.returncode == 0, done.stderr
    (each,) = (json.loads(line) for line in done.stdout.splitlines())
    assert each["figure"] == "reload/xdp-state" and each.keys() >= KEYS
    assert each["value"] > 0 and each["baseline"] > 0
    assert each["paced"]["ms"]["min"] > 0 and each["paced"]["frames"] > each["paced"]["frames_lost"]
