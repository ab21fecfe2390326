"""What a killed run of the tests has left is removed, and nothing that a living one has."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.netns.topology import NETNS_DIR, Switch, sweep

pytestmark = [pytest.mark.netns, pytest.mark.bpf]

RUN = """
import sys
from pathlib import Path
from tests.netns.topology import Switch, bpf_file_system
with Switch("host") as net, bpf_file_system(Path(sys.argv[1])):
    print(net["host"].namespace, flush=True)
    sys.stdin.read()
"""


def test_what_a_killed_run_has_left_goes_and_what_a_living_one_has_stays(tmp_path: Path, pins: Path) -> None:
    folder = tmp_path / "its"
    folder.mkdir()
    command = [sys.executable, "-c", RUN, str(folder)]
    with (
        Switch("host") as own,
        subprocess.Popen(
            command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
        ) as run,
    ):
        assert run.stdout is not None
        namespace = NETNS_DIR / run.stdout.readline().strip()
        sweep()
        assert namespace.exists() and folder.is_mount()
        run.kill()
        run.wait()
        sweep()
        assert not namespace.exists() and not folder.is_mount()
        assert (NETNS_DIR / own["host"].namespace).exists() and pins.is_mount()
