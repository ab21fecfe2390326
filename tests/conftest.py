"""What tests may need of the machine, and what happens where it is missing.

GLB_REQUIRE (a comma list of netns, bpf) turns "skipped: not root" into a failure; `make test` as root and CI set it.
"""

from __future__ import annotations

import ctypes
import os

import pytest


def _missing(capability: str) -> str | None:
    """Why the machine cannot do it; None if it can."""
    if os.geteuid() != 0:
        return "not root"
    if capability == "netns":
        libc = ctypes.CDLL(None, use_errno=True)
        pid = os.fork()
        if pid == 0:
            os._exit(0 if libc.unshare(0x40000000) == 0 else 1)  # CLONE_NEWNET
        return None if os.waitpid(pid, 0)[1] == 0 else "network namespaces are not permitted here"
    from glb import _bpf
    from glb.errors import DeviceError

    try:
        os.close(_bpf.create_array("probe", 8))
    except DeviceError as error:
        return str(error)
    return None


_REASONS: dict[str, str | None] = {}


def pytest_runtest_setup(item: pytest.Item) -> None:
    required = [word for word in os.environ.get("GLB_REQUIRE", "").split(",") if word]
    for capability in ("netns", "bpf"):
        if item.get_closest_marker(capability) is None:
            continue
        if capability not in _REASONS:
            _REASONS[capability] = _missing(capability)
        reason = _REASONS[capability]
        if reason is None:
            continue
        if capability in required:
            pytest.fail(f"GLB_REQUIRE names {capability}, but: {reason}", pytrace=False)
        pytest.skip(f"{capability}: {reason}")
