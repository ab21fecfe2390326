"""The packet-parsing modules built with bounds checks, AddressSanitizer and UBSan read nothing beyond a packet."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# What is copied and built a second time; the working tree keeps its fast build.
PARTS = ("bpf", "fuzz", "glb", "proxy_agent", "tests", "docs", "setup.py", "pyproject.toml")
CHECKS = (
    "tests/unit/test_fastpath.py",
    "tests/unit/test_flow_hash.py",
    "tests/unit/test_too_big.py",
    "tests/unit/test_tags.py",
    "tests/unit/test_capture_tap.py",
    "tests/unit/test_agent_decide.py",
    "tests/unit/test_agent_memory.py",
    "tests/unit/test_agent_corpus.py",
    "tests/unit/test_agent_fuzz.py",
    "tests/unit/test_agent_properties.py",
    "tests/unit/test_table_engines.py",
    "tests/unit/test_table_zones.py",
    "tests/vectors",
)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("sanitized")
    products = shutil.ignore_patterns("*.so", "*.c", "__pycache__", "*.o")
    for part in PARTS:
        source = ROOT / part
        if source.is_dir():
            shutil.copytree(source, target / part, ignore=products)
        else:
            shutil.copy(source, target / part)
    # The eBPF objects are those of every build.
    shutil.copytree(ROOT / "glb" / "bpf_objects", target / "glb" / "bpf_objects", dirs_exist_ok=True)
    environment = os.environ | {"GLB_CYTHON_DEBUG": "1"}
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace", "--parallel", "2"]
    done = subprocess.run(command, cwd=target, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    return target


def test_parsers_read_nothing_beyond_a_packet(tree: Path) -> None:
    library = subprocess.run(
        ["gcc", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
    ).stdout.strip()
    environment = os.environ | {
        "LD_PRELOAD": library,
        # The interpreter's own allocations are not freed at exit.
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "PYTHONMALLOC": "malloc",
        "PYTHONPATH": str(tree),
    }
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *CHECKS]
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    probe = [sys.executable, "-c", "import glb._fastpath; print(glb._fastpath.__file__)"]
    where = subprocess.run(probe, cwd=tree, env=environment, capture_output=True, text=True)
    assert str(tree) in where.stdout, "the sanitized build was not the one that ran"
