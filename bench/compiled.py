"""The C and eBPF sources of the benchmarks, compiled into a temporary directory that goes with the process."""

from __future__ import annotations

import ctypes
import functools
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from bench.errors import BenchError

_PREFIX = "glb-bench-"
SOURCES = Path(__file__).parent
_HEADERS = SOURCES.parent / "bpf"  # glb_protocol.h: the tunnel's port
# As setup.py compiles the extension modules: what not every x86-64 has is used only after asking at run time.
_C_FLAGS = ["-O3", "-Wall", "-Werror"]
_BPF_FLAGS = ["-O2", "-g", "-target", "bpf", "-mcpu=v3", "-Wall", "-Werror"]


@functools.cache
def _directory() -> tempfile.TemporaryDirectory[str]:
    for left_over in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        pid = left_over.name.removeprefix(_PREFIX).partition("-")[0]
        if pid.isdecimal() and not Path(f"/proc/{pid}").exists():  # of a run that was killed
            shutil.rmtree(left_over, ignore_errors=True)
    return tempfile.TemporaryDirectory(prefix=f"{_PREFIX}{os.getpid()}-")


def directory() -> Path:
    """Where the products are; also a place for sockets and logs."""
    return Path(_directory().name)


@functools.cache
def library(source: str) -> ctypes.CDLL:
    """A C source as a shared library."""
    target = directory() / f"{Path(source).stem}.so"
    _run("gcc", [*_C_FLAGS, "-shared", "-fPIC", str(SOURCES / source), "-o", str(target)])
    return ctypes.CDLL(str(target))


@functools.cache
def program(source: str, *libraries: str) -> Path:
    """A C source as a program."""
    target = directory() / Path(source).stem
    _run("gcc", [*_C_FLAGS, str(SOURCES / source), "-o", str(target), *(f"-l{name}" for name in libraries)])
    return target


@functools.cache
def bpf_object(source: str) -> Path:
    """An eBPF source as an object file."""
    target = directory() / f"{source.removesuffix('.c')}.o"
    # Debian keeps <asm/types.h> in a multiarch folder that the bpf target does not look into.
    multiarch = Path("/usr/include") / f"{os.uname().machine}-linux-gnu"
    include = ["-I", str(_HEADERS), *(["-I", str(multiarch)] if multiarch.is_dir() else [])]
    _run("clang", [*_BPF_FLAGS, *include, "-c", str(SOURCES / source), "-o", str(target)])
    return target


def _run(compiler: str, arguments: list[str]) -> None:
    if shutil.which(compiler) is None:
        raise BenchError(f"{compiler} is needed to compile the baselines: apt-get install {compiler}")
    done = subprocess.run([compiler, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchError(f"{compiler} {' '.join(arguments)} failed:\n{done.stderr}")
