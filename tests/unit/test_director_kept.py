"""What a director adopts of one before it looks as the layout version says."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
from pathlib import Path

import msgspec

from glb.director import kept, ledger

BPF = Path(__file__).parents[2] / "bpf"
LAYOUTS = {1: "643c2ce7b3a32895"}  # version -> digest of what it stands for


def definitions() -> list[str]:
    """Of each map that is kept, of what is counted, and of the ledger; of C what the compiler reads, without spaces."""
    include = f"-I/usr/include/{os.uname().machine}-linux-gnu"
    command = ["clang", "-E", "-P", "-target", "bpf", include, str(BPF / "director.bpf.c")]
    text = "".join(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())
    maps = [rf"struct{{[^{{}}]*}}{name}(?=#pragma|__attribute)" for name in kept.KEPT_MAPS]
    found = [re.findall(pattern, text) for pattern in (*maps, r"structglb_count{.*?};", r"enumcounter{.*?};")]
    assert [len(each) for each in found] == [1] * len(found), found
    fields = [f"{at.name}: {at.type}" for each in (ledger.Ledger, ledger.Entry) for at in msgspec.structs.fields(each)]
    return [*(each[0] for each in found), *fields]


def test_the_layout_version_is_raised_when_what_is_adopted_changes() -> None:
    digest = hashlib.sha256("\n".join(definitions()).encode()).hexdigest()[:16]
    message = "a director would adopt maps of another layout: raise GLB_LAYOUT_VERSION, and note the new digest here"
    assert LAYOUTS[kept.LAYOUT_VERSION] == digest, message
    assert max(LAYOUTS) == kept.LAYOUT_VERSION


def test_constants_are_those_of_the_header() -> None:
    defined = dict(
        re.findall(r"^#define GLB_(\w+) (.*?)(?: /\*.*)?$", (BPF / "glb_layout.h").read_text(), re.MULTILINE)
    )
    assert int(defined["LAYOUT_VERSION"]) == kept.LAYOUT_VERSION
    assert defined["COUNT_SLOTS"] == "(2 * GLB_MAX_BACKENDS)"
    assert 2 * int(defined["MAX_BACKENDS"]) == ledger.N_SLOTS
