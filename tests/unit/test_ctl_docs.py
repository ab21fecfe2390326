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

from .fake_fleet import agent_status, director_status, endpoint, full_agent_status, unix_endpoint

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
    # An agent of this version, and an old one.
    first = unix_endpoint(tmp_path / "proxy1.sock", lambda: full_agent_status(1804))
    second = unix_endpoint(tmp_path / "proxy2.sock", lambda: agent_status(7, version="0.0.9"))
    with first, second:
        check_examples(examples)


def check_examples(examples: list[str]) -> None:
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


def _keys(value: object) -> set[str]:
    """All keys of a JSON value, but those that are names of tables."""
    if isinstance(value, list):
        return set().union(*map(_keys, value))
    if isinstance(value, dict):
        return {key for key in value if key not in ("web", "other")}.union(*map(_keys, value.values()))
    return set()


def test_every_json_key_is_documented(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And every documented key is printed by its command."""
    monkeypatch.chdir(tmp_path)
    documented_files(tmp_path)
    (tmp_path / "broken.json").write_text("{}")
    section = (_DOCS / "operate" / "glbctl.md").read_text().partition("## JSON")[2]
    rows = {
        name: set(re.findall(r"`(\w+)`", keys))
        for names, keys in re.findall(r"^\| (.+?) \| (.+) \|$", section, re.MULTILINE)
        for name in re.findall(r"[\w ]+", names)
        if name.strip()
    }
    for command, diff in (("table diff", "diff"), ("table apply", "table diff"), ("drain", "diff")):
        rows[command] |= rows[diff] | (rows["diff"] if command == "table apply" else set())
    flow = "--src 198.51.100.7 --dst 203.0.113.10 --sport 40000 --dport"
    store = "--store tables.json"
    director, other = (
        endpoint(lambda: director_status(tmp_path / "tables.json")),
        endpoint(lambda: full_agent_status(1)),
    )
    with director as url, other as agent:
        commands = {
            "table check": ["table check tables.json", "table check broken.json"],
            "table show": ["table show tables.json --rows 0"],
            "table digest": ["table digest tables.json"],
            "table diff": ["table diff tables.json shrunk.json"],
            "table apply": [f"table apply shrunk.json --dry-run --force {store}"],
            "flow explain": [f"flow explain tables.json {flow} {port}" for port in (80, 81)],
            "drain": [f"drain web 10.0.0.{n} --force {store}" for n in (1, 2)],
            "settle": [f"settle web --dry-run {store}"],
            "status": [f"status {store} --director {url} --director http://127.0.0.1:1"],
            "agent status": [f"agent status --agent {agent} --agent http://127.0.0.1:1"],
        }
        for name, examples in commands.items():
            printed: set[str] = set()
            for example in examples:
                printed |= _keys(json.loads(CliRunner().invoke(main, [*shlex.split(example), "-o", "json"]).stdout))
            assert printed == rows[name] - {"forward", "host"}, name  # which are values
