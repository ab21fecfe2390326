"""The tunnel protocol's numbers are written in one C header; Python's copy of them is the same."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from glb.wire import gue

HEADER = Path(__file__).parents[2] / "bpf" / "glb_protocol.h"
DEFINED = dict(re.findall(r"^#define GLB_(\w+) (\w+)", HEADER.read_text(), re.MULTILINE))


def test_header_defines_what_python_names() -> None:
    named = {name for name, value in vars(gue).items() if name.isupper() and isinstance(value, int)}
    assert named - {"IPV4_BYTES", "UDP_BYTES"} == set(DEFINED)


@pytest.mark.parametrize("name", DEFINED)
def test_value_is_the_same(name: str) -> None:
    assert getattr(gue, name) == int(DEFINED[name], 0)
