"""The documents are held to the code: links, keys, metrics, targets, default files, examples."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client.core import CollectorRegistry

from glb.director import config as director_config
from glb.director.counts import Counts
from glb.director.daemon import Reload
from glb.director.metrics import DirectorCollector
from glb.director.status import BackendStatus, TableStatus
from glb.errors import ConfigError, GlbError
from glb.store import open_store
from glb.table.config import parse_tables
from proxy_agent import config as agent_config
from proxy_agent.decide import REASONS
from proxy_agent.flows import BindFlows
from proxy_agent.metrics import Reading, _Families

ROOT = Path(__file__).parent.parent.parent
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md"), ROOT / "LICENSES" / "README.md"])
MODULES = {"glb-director": "glb.director.cli", "glbctl": "glb.ctl.cli", "glb-proxy-agent": "proxy_agent.cli"}
# Run by tests of their own: one page each, in an order and with files of their own.
RUN_ELSEWHERE = {"glbctl.md", "benchmarks.md"}


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


def prose(page: Path) -> str:
    """A page without its code blocks."""
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def table_rows(page: Path, first_heading: str) -> list[list[str]]:
    """The cells of every table whose first column has this heading."""
    rows: list[list[str]] = []
    wanted = False
    for line in page.read_text().splitlines():
        if not line.startswith("|"):
            wanted = False
            continue
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if cells[0] == first_heading:
            wanted = True
        elif wanted and not set(cells[0]) <= set("-: "):
            rows.append(cells)
    return rows


def in_code(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


# ---- links


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_resolve(page: Path) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        if not found.exists() or (anchor and found.suffix == ".md" and anchor not in anchors(found)):
            broken.append(target)
    assert not broken


def test_every_document_is_in_the_index() -> None:
    index = (DOCS / "README.md").read_text()
    pages = {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")} - {"README.md"}
    assert sorted(page for page in pages if f"]({page})" not in index) == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_make_targets_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    code = [*in_code(prose(page)), *re.findall(r"^(?: {4}|\$ )?(make .*)$", page.read_text(), re.MULTILINE)]
    named = {match[1] for text in code if (match := re.match(r"make ([a-z]+)\b", text))}
    assert sorted(named - targets) == []


def test_readme_names_every_door() -> None:
    targets = re.findall(r"^([a-z]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert [target for target in targets if f"`make {target}`" not in (ROOT / "README.md").read_text()] == []


def test_readme_shows_the_result_that_the_demo_page_shows() -> None:
    (shown,) = re.findall(
        r"^```\n(Downloads broken.*?)^```", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE
    )
    page = (DOCS / "demo.md").read_text()
    assert [line for line in shown.splitlines() if line not in page] == []


def refused(parse: Callable[[], object]) -> bool:
    try:
        parse()
    except GlbError as error:
        return "this version" in str(error)
    return False


# What README's table of the status says in "not there yet" -> whether the code refuses it as such.
NOT_YET = {
    "etcd as the store": lambda: refused(lambda: open_store("etcd://localhost")),
}


@pytest.mark.parametrize("feature", NOT_YET)
def test_status_in_readme_is_true(feature: str) -> None:
    """Whoever adds a feature takes it out of "not there yet" (here, too), and whoever announces it adds it."""
    missing = " ".join(row[1] for row in table_rows(ROOT / "README.md", "there"))
    assert (feature in missing) == NOT_YET[feature]()


# ---- keys and metrics


@pytest.mark.parametrize(
    ("page", "keys"),
    [("director.md", director_config._KEYS), ("agent.md", agent_config.KEYS)],
)
def test_key_tables_are_those_of_the_code(page: str, keys: tuple[str, ...]) -> None:
    documented = [name for row in table_rows(DOCS / "operate" / page, "key") for name in in_code(row[0])]
    assert sorted(documented) == sorted(keys)


def test_ignored_keys_of_glb_are_listed() -> None:
    text = (DOCS / "operate" / "director.md").read_text()
    assert [key for key in director_config._GLB_ONLY_KEYS if f"`{key}`" not in text] == []


def exposed(collector: Any) -> dict[str, tuple[str, set[str]]]:
    """Metric -> (type, labels), as Prometheus sees them."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(collector)
    return {
        sample.name: (family.type, set(sample.labels))
        for family in registry.collect()
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


def director_metrics() -> dict[str, tuple[str, set[str]]]:
    counts = Counts()
    counts.table_frames["web", "cython"] = counts.table_bytes["web", "cython"] = 1
    counts.backends["web", "10.0.0.1", "cython"] = 1
    counts.lost["no_socket"] = counts.drops["web", "too_big"] = 1
    backend = BackendStatus("10.0.0.1", "active", True, 1, "eth0", None)
    status = SimpleNamespace(tables=[TableStatus("web", "00", [backend])])
    director = SimpleNamespace(
        counts=lambda: counts,
        status=lambda: status,
        last_reload=Reload(),
        interface=SimpleNamespace(name="eth0"),
        engine="accelerated",
        xdp_mode="native",
    )
    return exposed(DirectorCollector(director))  # type: ignore[arg-type]


def agent_metrics() -> dict[str, tuple[str, set[str]]]:
    names = ("look_ups", "recalled", "cookies_judged", "by_host", "verdict_errors", "syn_cookies_in_use")
    internals = dict.fromkeys(names, 0)
    counters = {reason.name: 0 for reason in REASONS}
    binds = (BindFlows("203.0.113.10", 443, 0),)
    return exposed(_Families(Reading("netfilter", counters, {0: 1}, internals, {"203.0.113.10": 0}, binds)))


def test_metrics_are_those_of_the_code() -> None:
    documented = {
        in_code(name)[0]: (kind, set(in_code(labels)))
        for name, kind, labels, *_ in table_rows(DOCS / "operate" / "metrics.md", "metric")
    }
    assert documented == director_metrics() | agent_metrics()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_metrics_that_are_mentioned_exist(page: Path) -> None:
    """In alerts and in passing, too."""
    names = set(re.findall(r"\bglb_(?:director|agent|table|backend)_\w+", page.read_text()))
    code = set(re.findall(r"\bglb_\w+", " ".join(p.read_text() for p in ROOT.glob("bpf/*"))))
    assert sorted(names - director_metrics().keys() - agent_metrics().keys() - code) == []


def test_reasons_of_drops_are_listed() -> None:
    from glb._fastpath import DROP_REASONS

    documented = [name for row in table_rows(DOCS / "operate" / "metrics.md", "reason") for name in in_code(row[0])]
    assert [reason for reason in DROP_REASONS if reason not in documented] == []
    agent = (DOCS / "operate" / "agent.md").read_text() + (DOCS / "protocol" / "gue.md").read_text()
    assert [reason.name for reason in REASONS if f"`{reason.name}`" not in agent] == []


def test_limits_of_binds_are_those_of_the_header() -> None:
    header = (ROOT / "bpf" / "glb_layout.h").read_text()
    text = (DOCS / "protocol" / "binds.md").read_text()
    for name, unit in (
        ("GLB_MAX_PREFIXES", "different prefixes"),
        ("GLB_MAX_SEGMENTS", "port segments"),
        ("GLB_MAX_PROBES", "slots of one"),
        ("GLB_MAX_EXTENSION_HEADERS", "extension headers"),
    ):
        (value,) = re.findall(rf"#define {name}\s+(\d+)", header)
        assert f"{int(value):,} {unit}" in text


# ---- default files and examples


def test_default_configurations_are_good() -> None:
    folder = ROOT / "packaging" / "config"
    director = director_config.parse_config((folder / "director.toml").read_text(), source="director.toml")
    assert not director.warnings
    assert director.interface and director.store
    agent = agent_config.parse((folder / "agent.toml").read_bytes(), "agent.toml")
    assert not agent.warnings()
    tables = parse_tables((folder / "tables.json").read_bytes(), source="tables.json")
    assert not tables.warnings


def test_default_configurations_show_every_key() -> None:
    folder = ROOT / "packaging" / "config"
    for name, keys in (("director.toml", director_config._KEYS), ("agent.toml", agent_config.KEYS)):
        text = (folder / name).read_text()
        missing = [key for key in keys if not re.search(rf"^#?\[?{key}\b", text, re.MULTILINE)]
        assert [key for key in missing if key != "store"] == [], name  # table's other name


def test_commented_defaults_are_accepted() -> None:
    """Every key that a default file shows commented out may be switched on as it stands."""
    folder = ROOT / "packaging" / "config"
    for name in ("director.toml", "agent.toml"):
        text = re.sub(r"^#(?=\[|\w+ = )", "", (folder / name).read_text(), flags=re.MULTILINE)
        if name == "director.toml":
            director_config.parse_config(text, source=name)
        else:
            agent_config.parse(text.encode(), name)


def documents_with(language: str) -> list[tuple[Path, str]]:
    return [(page, block) for page in PAGES for block in blocks(page, language)]


@pytest.mark.parametrize(
    ("page", "block"), documents_with("json"), ids=lambda value: value.name if isinstance(value, Path) else ""
)
def test_json_examples_are_good(page: Path, block: str) -> None:
    value = json.loads(block)
    if "tables" in value and "hash_key" in block:
        parse_tables(block, source=page.name)
    if "outbound_src_ip" in value:
        director_config.parse_config(block, source=page.name, format="json")


@pytest.mark.parametrize(
    ("page", "block"), documents_with("toml"), ids=lambda value: value.name if isinstance(value, Path) else ""
)
def test_toml_examples_are_good(page: Path, block: str) -> None:
    if block.startswith("# bad"):
        with pytest.raises(ConfigError):
            director_config.parse_config(block, source=page.name)
    elif "vips" in block:
        agent_config.parse(block.encode(), page.name)
    elif "interface" in block:
        director_config.parse_config(block, source=page.name)


@pytest.mark.parametrize(
    "page", [page for page in PAGES if blocks(page, "console") and page.name not in RUN_ELSEWHERE], ids=name_of
)
def test_console_examples_print_what_the_page_says(page: Path, tmp_path: Path) -> None:
    """Commands of ours, run in the page's order in one folder that has the documented table."""
    (tmp_path / "tables.json").write_text(blocks(DOCS / "protocol" / "table.md", "json")[0])
    for block in blocks(page, "toml"):
        if named := re.match(r"# (\S+\.toml)\n", block):
            (tmp_path / named[1]).write_text(block)
    for block in blocks(page, "console"):
        for example in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, expected = example.partition("\n")
            program, *arguments = shlex.split(command)
            if program not in MODULES:
                continue
            done = subprocess.run(
                [sys.executable, "-m", MODULES[program], *arguments],
                cwd=tmp_path,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
            )
            assert done.stdout == expected, command


@pytest.mark.parametrize("unit", sorted((ROOT / "packaging" / "systemd").glob("*.service")), ids=lambda path: path.name)
def test_units_start_what_is_installed(unit: Path) -> None:
    """The program exists, and its command takes the options."""
    text = unit.read_text()
    (start,) = re.findall(r"^ExecStart=/opt/glb/bin/(.*)$", text, re.MULTILINE)
    program, command, option, _ = shlex.split(start)
    assert program in (ROOT / "pyproject.toml").read_text()
    help_text = subprocess.run(
        [sys.executable, "-m", MODULES[program], command, "--help"], capture_output=True, text=True
    )
    assert option in help_text.stdout
    assert unit.name in (DOCS / "operate" / "install.md").read_text()
