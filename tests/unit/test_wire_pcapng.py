"""Capture files as scapy and tshark read them, and as glbctl reads a director's stream."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import dpkt
import pytest
from scapy.utils import RawPcapNgReader

from glb.wire import pcapng

AT_NS = 1_800_000_000_123_456_789
FRAME = bytes(range(61))
HEAD = pcapng.section("glb-director 1") + pcapng.interface("eth0 received", 64) + pcapng.interface("eth0 sent", 100)
FILE = (
    HEAD
    + pcapng.packet(0, AT_NS, FRAME, whole_bytes=1400, direction="received", comment="forward engine=xdp")
    + pcapng.packet(1, AT_NS + 1, FRAME + b"x", whole_bytes=62, direction="sent")
    + pcapng.statistics(0, AT_NS, received=10, dropped=3)
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "file.pcapng"
    path.write_bytes(FILE)
    return path


def test_scapy_reads_what_was_written(path: Path) -> None:
    with RawPcapNgReader(str(path)) as reader:
        (first, first_is), (second, second_is) = list(reader)
    assert (first, second) == (FRAME, FRAME + b"x")
    assert [(first_is.tshigh << 32) + first_is.tslow, (second_is.tshigh << 32) + second_is.tslow] == [AT_NS, AT_NS + 1]
    assert first_is.tsresol == 1_000_000_000 and first_is.linktype == 1
    assert (first_is.wirelen, second_is.wirelen) == (1400, 62)
    assert (first_is.comments, second_is.comments) == ([b"forward engine=xdp"], None)
    assert (first_is.ifname, second_is.ifname) == (b"eth0 received", b"eth0 sent")
    assert (first_is.direction, second_is.direction) == (1, 2)


def test_dpkt_which_replay_uses_reads_it(path: Path) -> None:
    with path.open("rb") as file:
        assert [bytes(frame) for _, frame in dpkt.pcap.UniversalReader(file)] == [FRAME, FRAME + b"x"]


def test_tshark_reads_it(path: Path) -> None:
    if shutil.which("tshark") is None:
        (pytest.fail if os.environ.get("GLB_REQUIRE") else pytest.skip)("tshark is not installed")
    fields = ["frame.time_epoch", "frame.comment", "frame.interface_name", "frame.len", "frame.cap_len"]
    command = ["tshark", "-r", str(path), "-T", "fields", *(word for field in fields for word in ("-e", field))]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "1800000000.123456789\tforward engine=xdp\teth0 received\t1400\t61",
        "1800000000.123456790\t\teth0 sent\t62\t62",
    ]


def test_blocks_come_apart_wherever_the_stream_was_cut() -> None:
    whole, rest = pcapng.split(FILE)
    assert rest == b"" and b"".join(whole) == FILE
    kinds = [pcapng.kind_of(block) for block in whole]
    assert kinds == [
        pcapng.SECTION,
        pcapng.INTERFACE,
        pcapng.INTERFACE,
        pcapng.PACKET,
        pcapng.PACKET,
        pcapng.STATISTICS,
    ]
    for cut in range(len(FILE)):
        first, rest = pcapng.split(FILE[:cut])
        second, nothing = pcapng.split(rest + FILE[cut:])
        assert first + second == whole and nothing == b""


def test_a_file_that_ends_after_any_block_is_good(tmp_path: Path) -> None:
    whole, _ = pcapng.split(FILE)
    for n in range(3, len(whole)):
        path = tmp_path / f"{n}.pcapng"
        path.write_bytes(b"".join(whole[:n]))
        with RawPcapNgReader(str(path)) as reader:
            assert len(list(reader)) == min(n - 3, 2)


def test_numbers_and_counts_are_read_back() -> None:
    block = pcapng.renumbered(pcapng.statistics(0, AT_NS, received=2**40, dropped=3), 7)
    assert pcapng.number_of(block) == 7
    assert pcapng.counts_of(block) == (2**40, 3)


@pytest.mark.parametrize("length", [0, 8, 14, 1 << 24])
def test_what_is_no_block_is_refused(length: int) -> None:
    with pytest.raises(ValueError, match=f"block of {length} bytes"):
        pcapng.split(b"\x06\0\0\0" + length.to_bytes(4, "little") + bytes(40))
