"""The shape of the tree (docs/develop/layout.md): what imports what, what stays pure, how long a module may get."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import glb

ROOT = Path(__file__).parent.parent.parent
OURS = ("glb", "proxy_agent", "lab", "tests", "bench", "fuzz")
PURE = ("glb.wire", "glb.table", "proxy_agent.decide", "proxy_agent.mss")

# Devices, clocks, files, and what pulls them in.
IMPURE = frozenset(
    (
        *(
            "aiohttp",
            "asyncinotify",
            "asyncio",
            "concurrent",
            "ctypes",
            "dpkt",
            "fcntl",
            "http",
            "iptc",
            "logging",
            "mmap",
        ),
        *(
            "multiprocessing",
            "os",
            "pathlib",
            "prometheus_client",
            "pyroute2",
            "random",
            "secrets",
            "select",
            "selectors",
        ),
        *("shutil", "signal", "socket", "subprocess", "tempfile", "threading", "time", "urllib"),
    )
)
IMPURE_CALLS = frozenset(("open", "input", "print", "exec", "eval"))

# package -> what of ours it may import; a name stands for the module and everything below it.
MAY_IMPORT = {
    "glb.wire": ("glb.wire", "glb.errors"),
    "glb.table": ("glb.table", "glb.wire", "glb.errors", "glb._rendezvous", "glb._siphash", "glb._wire"),
    "glb": ("glb",),
    "proxy_agent": (
        "proxy_agent",
        "glb.wire",
        "glb._bpf",
        "glb._fastpath",
        "glb._libbpf",
        "glb._siphash",
        "glb._wire",
        "glb.errors",
        "glb.hook",
        "glb.lock",
        "glb.pin",
        "glb.version",
        "glb.admin",
        "glb.systemd",
        "glb.config",
        "glb.table.document",
        "glb.table.fields",
    ),
}

MAX_LINES = 450
LONGER: dict[str, str] = {}  # path -> the reason


def sources(*suffixes: str) -> list[Path]:
    folders = [ROOT / name for name in OURS if (ROOT / name).is_dir()]
    return sorted(
        p for folder in folders for p in folder.rglob("*") if p.suffix in suffixes and "__pycache__" not in p.parts
    )


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def below(module: str, *packages: str) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def imports_of(path: Path) -> Iterator[str]:
    """Every module that a source file imports, wherever in it; of Cython sources those of ours."""
    text = path.read_text()
    if path.suffix != ".py":
        for line in re.finditer(
            r"^\s*(?:from\s+([\w.]+)\s+c?import\s+([\w, *]+)|c?import\s+([\w.]+))", text, re.MULTILINE
        ):
            yield from names_of(line[1] or line[3], [name.strip() for name in (line[2] or "").split(",")])
        return
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            yield from names_of(node.module or "", [alias.name for alias in node.names])


def names_of(module: str, names: list[str]) -> Iterator[str]:
    """`from glb import admin` names the module glb.admin; `from glb.admin import serve` the module glb.admin."""
    if module in OURS and any(is_module(f"{module}.{name}") for name in names):
        yield from (f"{module}.{name}" for name in names)
    else:
        yield module


def is_module(name: str) -> bool:
    path = ROOT / name.replace(".", "/")
    return path.is_dir() or any(path.with_suffix(suffix).exists() for suffix in (".py", ".pyx", ".pxd"))


def pure_modules() -> list[str]:
    return [module for module in map(module_of, sources(".py")) if below(module, *PURE)]


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_dependencies_point_one_way(package: str) -> None:
    allowed = MAY_IMPORT[package]
    wrong = [
        f"{path.relative_to(ROOT)} imports {imported}"
        for path in sources(".py", ".pyx", ".pxd")
        if below(module_of(path), package)
        for imported in imports_of(path)
        if below(imported, *OURS) and not below(imported, *allowed)
    ]
    assert not wrong


def test_nothing_that_is_installed_imports_the_lab_or_the_tests() -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {imported}"
        for path in sources(".py", ".pyx", ".pxd")
        if below(module_of(path), "glb", "proxy_agent")
        for imported in imports_of(path)
        if below(imported, "lab", "tests", "bench", "fuzz", "scapy", "pytest", "hypothesis")
    ]
    assert not wrong


@pytest.mark.parametrize("module", pure_modules())
def test_pure_modules_touch_no_device_clock_or_file(module: str) -> None:
    path = ROOT / module.replace(".", "/")
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    wrong = [imported for imported in imports_of(path) if imported.split(".")[0] in IMPURE]
    wrong += [
        node.func.id
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in IMPURE_CALLS
    ]
    assert not wrong


def test_pure_modules_load_without_network_or_event_loop() -> None:
    """What they import imports none either: a table is checked in a process that has no socket module."""
    forbidden = ("socket", "select", "asyncio", "ssl", "subprocess", "aiohttp", "pyroute2", "iptc", "prometheus_client")
    program = f"import sys, {', '.join(pure_modules())}\nprint(*[name for name in {forbidden} if name in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True)
    assert loaded.stdout.split() == []


def test_modules_are_short() -> None:
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text().splitlines())
        for path in sources(".py", ".pyx", ".pxd")
        if below(module_of(path), "glb", "proxy_agent", "lab", "bench", "fuzz")
    }
    assert sorted(name for name, lines in lengths.items() if lines > MAX_LINES) == sorted(LONGER)


def test_module_map_names_modules_that_exist() -> None:
    doc = glb.__doc__ or ""
    named = set(re.findall(r"\b(?:glb|proxy_agent)(?:\.\w+)+", doc))
    assert len(named) > 15
    assert sorted(name for name in named if not is_module(name)) == []
    assert [path for path in re.findall(r"\b(?:bpf|tests)/[\w./]+\w", doc) if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("name", ["utils", "helpers", "common", "manager", "handler", "data", "info", "misc"])
def test_modules_are_named_for_their_job(name: str) -> None:
    assert [
        p
        for p in sources(".py", ".pyx", ".pxd")
        if p.stem.strip("_") == name and below(module_of(p), "glb", "proxy_agent", "lab")
    ] == []
