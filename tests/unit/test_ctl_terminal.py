"""What glbctl prints on a terminal: bars and colours; none of the latter with NO_COLOR."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from .table_samples import text


def _on_a_terminal(*arguments: str, **environment: str) -> str:
    primary, secondary = pty.openpty()
    try:
        command = [sys.executable, "-m", "glb.ctl.cli", *arguments]
        clean = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "COLUMNS")}
        root = str(Path(__file__).parents[2])
        with subprocess.Popen(
            command,
            stdout=secondary,
            stderr=subprocess.DEVNULL,
            cwd=root,
            env=clean | {"TERM": "xterm-256color", "COLUMNS": "120"} | environment,
        ) as process:
            os.close(secondary)
            secondary = -1
            output = b""
            while chunk := _read(primary):
                output += chunk
            assert process.wait() == 0
        return output.decode()
    finally:
        os.close(primary)
        if secondary >= 0:
            os.close(secondary)


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65536)
    except OSError:  # EIO: the other side has closed
        return b""


@pytest.fixture
def source(tmp_path: Path) -> str:
    path = tmp_path / "tables.json"
    path.write_text(text(4))
    return str(path)


def test_shares_have_bars_and_colours(source: str) -> None:
    output = _on_a_terminal("table", "show", source)
    assert "██████" in output
    assert "\x1b[32m" in output


def test_a_diff_has_bars_before_and_after(source: str, tmp_path: Path) -> None:
    new = tmp_path / "new.json"
    new.write_text(text(3))
    output = _on_a_terminal("table", "diff", source, str(new))
    (line,) = [line for line in output.splitlines() if line.strip().startswith("10.0.0.1")]
    assert line.count("█" * 6) >= 2
    assert "flows at risk" in output


def test_no_color_has_bars_and_no_colours(source: str) -> None:
    output = _on_a_terminal("table", "show", source, NO_COLOR="1")
    assert "██████" in output
    assert "\x1b[32m" not in output


def test_json_is_plain(source: str) -> None:
    assert "\x1b" not in _on_a_terminal("table", "show", source, "--rows", "0", "-o", "json")
