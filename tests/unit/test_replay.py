"""`glb-director replay`, as an operator calls it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import corpus
import dpkt
import pytest


def replay(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "glb.director.cli", "replay", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    """director.conf, tables.json and in.pcap of the environment `plain`."""
    directors = json.loads((corpus.REFERENCE / "directors.json").read_text())
    (tmp_path / "director.conf").write_text(json.dumps(directors["plain"]))
    (tmp_path / "tables.json").write_text(json.dumps(corpus.tables()["packets-main"]["config"]))
    with (tmp_path / "in.pcap").open("wb") as file:
        writer = dpkt.pcap.Writer(file)
        for i, record in enumerate(r for r in corpus.packets() if r["env"] == "plain"):
            writer.writepkt(bytes.fromhex(record["frame"]), 1000 + i / 8)
    return tmp_path


def test_frames_sent_are_the_packet_paths_in_order_with_their_times(scene: Path) -> None:
    done = replay(
        "--config", scene / "director.conf", "--table", scene / "tables.json", scene / "in.pcap", scene / "out.pcap"
    )
    assert done.returncode == 0, done.stderr
    assert "flow_paths" in done.stderr
    frames = [bytes.fromhex(r["frame"]) for r in corpus.packets() if r["env"] == "plain"]
    expected = [(1000 + i / 8, sent) for i, (_, sent) in enumerate(corpus.run("plain", frames)) if sent is not None]
    with (scene / "out.pcap").open("rb") as file:
        assert [(time, bytes(frame)) for time, frame in dpkt.pcap.Reader(file)] == expected
    counts = json.loads(done.stdout)
    assert counts["received"] == len(frames) and counts["sent"] == len(expected)
    assert counts["received"] == counts["sent"] + counts["host"] + sum(counts["dropped"].values())


def test_with_an_mtu_answers_to_packets_that_are_too_big_are_written_too(scene: Path) -> None:
    frames = [bytes.fromhex(r["frame"]) for r in corpus.packets() if r["env"] == "plain"]
    arguments = ("--config", scene / "director.conf", "--table", scene / "tables.json")
    without = json.loads(replay(*arguments, scene / "in.pcap", scene / "out.pcap").stdout)
    done = replay(*arguments, "--mtu", 600, scene / "in.pcap", scene / "out.pcap")
    counts = json.loads(done.stdout)
    assert without["answered"] == 0 and counts["answered"] > 0
    assert without["sent"] - counts["sent"] == counts["dropped"]["too_big"] - without["dropped"].get("too_big", 0)
    assert counts["answered"] <= counts["dropped"]["too_big"]
    with (scene / "out.pcap").open("rb") as file:
        sent = [bytes(frame) for _, frame in dpkt.pcap.Reader(file)]
    assert len(sent) == counts["sent"] + counts["answered"]
    answers = [f for f in sent if (f[23], f[34:36]) == (1, b"\x03\x04") or (f[20], f[54:56]) == (58, b"\x02\x00")]
    assert len(answers) == counts["answered"]
    received = {frame[:12] for frame in frames}
    assert all(frame[6:12] + frame[:6] in received for frame in answers)


def test_outbound_src_mac_is_the_source_of_frames_sent(scene: Path) -> None:
    config = json.loads((scene / "director.conf").read_text()) | {"outbound_src_mac": "02:00:00:00:00:99"}
    (scene / "director.conf").write_text(json.dumps(config))
    replay("--config", scene / "director.conf", "--table", scene / "tables.json", scene / "in.pcap", scene / "out.pcap")
    with (scene / "out.pcap").open("rb") as file:
        assert {bytes(frame)[6:12] for _, frame in dpkt.pcap.Reader(file)} == {bytes.fromhex("020000000099")}


def test_a_broken_capture_is_refused_and_the_old_output_stays(scene: Path) -> None:
    (scene / "out.pcap").write_bytes(b"old")
    whole = (scene / "in.pcap").read_bytes()
    for content, message in ((b"no capture at all", "neither pcap nor pcapng"), (b"", "neither pcap nor pcapng")):
        (scene / "in.pcap").write_bytes(content)
        done = replay(
            "--config", scene / "director.conf", "--table", scene / "tables.json", scene / "in.pcap", scene / "out.pcap"
        )
        assert done.returncode == 1 and message in done.stderr and "Traceback" not in done.stderr
        assert (scene / "out.pcap").read_bytes() == b"old"
    (scene / "in.pcap").write_bytes(whole[:-7])
    done = replay(
        "--config", scene / "director.conf", "--table", scene / "tables.json", scene / "in.pcap", scene / "out.pcap"
    )
    assert done.returncode == 1 and "broken after packet" in done.stderr
    assert sorted(p.name for p in scene.iterdir()) == ["director.conf", "in.pcap", "out.pcap", "tables.json"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--config", "nowhere.toml", "a", "b"), 1, "nowhere.toml"),
        (("--config", "director.conf", "a", "b"), 2, "no forwarding table"),
        (("--config", "director.conf", "--table", "tables.json", "nowhere.pcap", "b"), 1, "nowhere.pcap"),
    ],
)
def test_faults_are_named(scene: Path, arguments: tuple[str, ...], code: int, message: str) -> None:
    done = replay(*[scene / a if (scene / a).exists() else a for a in arguments])
    assert done.returncode == code and message in done.stderr and "Traceback" not in done.stderr


def test_a_configuration_that_cannot_replay_says_what_is_missing(scene: Path) -> None:
    (scene / "director.toml").write_text('interface = "eth0"\n')
    done = replay(
        "--config", scene / "director.toml", "--table", scene / "tables.json", scene / "in.pcap", scene / "out.pcap"
    )
    assert done.returncode == 3
    assert "$.outbound_src_ip" in done.stderr and "$.outbound_gateway_mac" in done.stderr
