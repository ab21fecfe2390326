"""Builds the Cython extension modules and, with clang, the eBPF objects that the package ships.

GLB_CYTHON_DEBUG=1 builds the extensions with Cython's bounds checks, AddressSanitizer and
UndefinedBehaviorSanitizer (docs/develop/testing.md says how to run the tests on such a build).
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
DEBUG = os.environ.get("GLB_CYTHON_DEBUG", "0") not in ("", "0")

# -Og and -g1: compiled in a third of the time of -O1 and -g, with as much to check and lines to name.
SANITIZE = ["-Og", "-g1", "-fsanitize=address,undefined", "-fno-omit-frame-pointer", "-fno-sanitize-recover=undefined"]
COMPILE_ARGS = SANITIZE if DEBUG else ["-O3", "-g1"]
LINK_ARGS = ["-fsanitize=address,undefined"] if DEBUG else []
# In the packet path `inline` is meant: a call per stage and packet would cost a tenth of its time.
INLINE = {} if DEBUG else {"glb._fastpath": ["-DCYTHON_INLINE=inline __attribute__((always_inline))"]}
HEADERS = ["bpf/*.h", "*/*.pxd", "glb/*.h"]

# module -> libraries it is linked with
MODULES = {
    "glb._rendezvous": [],
    "glb._fastpath": [],
    "glb._bpf": ["bpf"],
    "glb._capture": ["bpf"],
    "glb._xsk": ["xdp", "bpf"],
    "proxy_agent._verdict": [],
    "proxy_agent._flows": ["bpf"],
}
BPF_PROGRAMS = ["director", "capture", "second_chance", "syncookie", "flows"]


def source_of(module: str) -> str:
    return module.replace(".", "/") + ".pyx"


def extensions() -> list[Extension]:
    return [
        Extension(
            module,
            [source_of(module)],
            include_dirs=["bpf", "glb"],
            libraries=libraries,
            depends=[str(p.relative_to(ROOT)) for pattern in HEADERS for p in ROOT.glob(pattern)],
            extra_compile_args=["-Wall", "-Wno-unused-function", *COMPILE_ARGS, *INLINE.get(module, [])],
            extra_link_args=LINK_ARGS,
        )
        for module, libraries in MODULES.items()
        if (ROOT / source_of(module)).exists()
    ]


class BuildExtensionsAndBpf(build_ext):
    """`build_ext`, and before it one clang run per eBPF program."""

    def run(self) -> None:
        package = ROOT / "glb" if self.inplace or self.editable_mode else Path(self.build_lib) / "glb"
        objects = package / "bpf_objects"
        objects.mkdir(parents=True, exist_ok=True)
        for name in BPF_PROGRAMS:
            compile_bpf(ROOT / "bpf" / f"{name}.bpf.c", objects / f"{name}.bpf.o")
        super().run()


def compile_bpf(source: Path, target: Path) -> None:
    """Compile one eBPF program unless its object is newer than every source in bpf/."""
    newest = max(p.stat().st_mtime for p in source.parent.iterdir())
    if target.exists() and target.stat().st_mtime > newest:
        return
    clang = os.environ.get("CLANG") or shutil.which("clang")
    if clang is None:
        raise SystemExit("clang is needed to compile the eBPF programs: apt-get install clang (or set CLANG)")
    # Debian keeps <asm/types.h> in a multiarch folder that the bpf target does not look into.
    multiarch = Path("/usr/include") / f"{os.uname().machine}-linux-gnu"
    include = ["-I", str(multiarch)] if multiarch.is_dir() else []
    command = [clang, "-O2", "-g", "-target", "bpf", "-mcpu=v3", "-Wall", "-Werror", *include]
    subprocess.run([*command, "-c", str(source), "-o", str(target)], check=True)
    strip = shutil.which("llvm-strip")
    if strip is not None:  # DWARF goes, BTF stays
        subprocess.run([strip, "-g", str(target)], check=True)


setup(
    ext_modules=cythonize(
        extensions(),
        compiler_directives={
            "language_level": 3,
            "boundscheck": DEBUG,
            "wraparound": False,
            "initializedcheck": DEBUG,
            "cdivision": True,
            "embedsignature": True,
        },
        include_path=["glb"],
    ),
    cmdclass={"build_ext": BuildExtensionsAndBpf},
)
