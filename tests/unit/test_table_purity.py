"""glb/table is pure: importing all of it brings in no socket, clock, netlink or file API of its own."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

_TABLE = Path(__file__).parents[2] / "glb" / "table"
_DEVICES = {"socket", "select", "asyncio", "time", "datetime", "pyroute2", "os", "pathlib", "io", "fcntl", "subprocess"}


@pytest.mark.parametrize("path", sorted(_TABLE.glob("*.py")), ids=lambda path: path.name)
def test_module_imports_no_device(path: Path) -> None:
    tree = ast.parse(path.read_text())
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not {name.partition(".")[0] for name in imported} & _DEVICES
    assert not {name for name in imported if name.startswith(("glb.store", "glb.ctl", "glb.director"))}
    calls = {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    assert not calls & {"open", "print", "input"}
