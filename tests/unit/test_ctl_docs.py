"""The examples of docs/operate/glbctl.md, run one after the other; their output is what the page shows."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from glb.ctl.cli import main
from glb.table.config import parse_tables

_DOCS = Path(__file__).parents[2] / "docs"


def _documented_table() -> str:
    match = re.search(r"```json\n(.*?)```", (_DOCS / "protocol" / "table.md").read_text(), re.DOTALL)
    assert match is not None
    return match[1]


def documented_files(folder: Path) -> None:
    """tables.json as on the page, shrunk.json without its last backend, and grown.json with one more."""
    tables = json.loads(_documented_table())
    (folder / "tables.json").write_text(_documented_table())
    backends = tables["tables"][0]["backends"]
    for name, changed in (
        ("shrunk.json", backends[:-1]),
        ("grown.json", [*backends, {"ip": "10.0.0.4", "state": "active", "healthy": True}]),
    ):
        tables["tables"][0]["backends"] = changed
        (folder / name).write_text(json.dumps(tables))


def test_the_documented_table_is_good() -> None:
    assert parse_tables(_documented_table(), source="table.md").warnings == ()


def test_every_example_prints_what_the_page_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    documented_files(tmp_path)
    blocks = re.findall(r"```console\n(.*?)```", (_DOCS / "operate" / "glbctl.md").read_text(), re.DOTALL)
    examples = [example for block in blocks for example in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]]
    assert len(examples) >= 13
    for example in examples:
        command, _, expected = example.partition("\n")
        program, *arguments = shlex.split(command)
        assert program == "glbctl"
        assert CliRunner().invoke(main, arguments, catch_exceptions=False).output == expected, command


def test_every_shell_example_parses() -> None:
    """Commands that need a fleet are not run; their options must exist."""
    blocks = re.findall(r"```sh\n(.*?)```", (_DOCS / "operate" / "glbctl.md").read_text(), re.DOTALL)
    commands = [line for block in blocks for line in block.splitlines() if line.startswith("glbctl ")]
    assert len(commands) >= 3
    for line in commands:
        _, name, *arguments = shlex.split(line)
        command = main.get_command(main.make_context("glbctl", [], resilient_parsing=True), name)
        assert command is not None
        command.make_context(name, arguments)
