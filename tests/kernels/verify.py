"""``make kernels``: the director's eBPF program, plain and capturing, is accepted by the kernels that we support.

Debian's kernels are downloaded as packages and booted in qemu, with tests/kernels/load.c as their only program; the
running kernel is asked too. Prints a line for each kernel and set of options, with instruction counts; ends with 1 if
any refuses. Takes half a minute, without KVM.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parents[2]
OBJECTS = ROOT / "glb" / "bpf_objects"
SERIES = ("6.1", "6.12")
_BOOT_S = 300
_NEEDED = ("qemu-system-x86_64", "gcc", "apt-get", "apt-cache", "dpkg-deb")


class Unavailable(Exception):
    """What a kernel cannot be tried without, and where to get it."""


def newest_package(names: Iterable[str], series: str) -> str:
    """Debian's latest signed cloud kernel of a series (such as 6.1) among package names."""
    found = [n for n in names if re.fullmatch(rf"linux-image-{re.escape(series)}\.\d+.*-cloud-amd64", n)]
    if not found:
        raise Unavailable(f"no kernel {series} among the packages that apt knows (6.12 is in bookworm-backports)")
    return max(found, key=lambda name: [int(number) for number in re.findall(r"\d+", name)])


def download(series: str, directory: Path) -> Path:
    """The kernel image of a series."""
    listed = subprocess.run(
        ["apt-cache", "pkgnames", f"linux-image-{series}"], capture_output=True, text=True, check=True
    )
    package = newest_package(listed.stdout.split(), series)
    target = directory / series
    target.mkdir()
    subprocess.run(["apt-get", "-qq", "download", package], cwd=target, stderr=subprocess.DEVNULL, check=True)
    (archive,) = target.glob("*.deb")
    subprocess.run(["dpkg-deb", "-x", str(archive), str(target)], check=True)
    (image,) = (target / "boot").glob("vmlinuz-*")
    return image


def build_loader(directory: Path) -> Path:
    """load.c without shared libraries: nothing else is on the machine that it starts."""
    loader = directory / "load"
    source = str(Path(__file__).with_name("load.c"))
    command = ["gcc", "-O1", "-Wall", "-Werror", "-static", f"-I{ROOT / 'bpf'}", source, "-o", str(loader)]
    subprocess.run([*command, "-lbpf", "-lelf", "-lz"], check=True)
    return loader


def archive(files: dict[str, bytes]) -> bytes:
    """An initial file system: a cpio archive in the "newc" format (initramfs buffer format, kernel documentation)."""
    result = bytearray()
    for number, (name, content) in enumerate([*files.items(), ("TRAILER!!!", b"")], start=1):
        encoded = name.encode() + b"\0"
        mode = 0o40755 if name == "sys" else 0o100755
        fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(encoded), 0)
        result += b"070701" + b"".join(b"%08X" % field for field in fields) + encoded
        result += bytes(-len(result) % 4) + content
        result += bytes(-len(result) % 4)
    return bytes(result)


def boot(image: Path, initrd: Path) -> str:
    """What a machine with this kernel and file system writes on its console until it ends."""
    command = ["qemu-system-x86_64", "-accel", "tcg", "-m", "512", "-nographic", "-no-reboot", "-nodefaults"]
    command += ["-serial", "stdio", "-kernel", str(image), "-initrd", str(initrd)]
    command += ["-append", "console=ttyS0 quiet panic=-1"]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_BOOT_S, check=False
    )
    return done.stdout + done.stderr


def verdict(console: str) -> bool:
    """Prints what the loader said; whether everything was loaded."""
    # Before the first line there may be escape sequences, of the machine's firmware.
    lines = [re.sub(r"^.*?(?=LOADED |REFUSED )", "", line) for line in console.replace("\r", "").splitlines()]
    accepted = "DONE 0 refused" in lines
    print("\n".join([line for line in lines if line.startswith("LOADED")] if accepted else lines), flush=True)
    return accepted


def main() -> None:
    missing = [name for name in _NEEDED if shutil.which(name) is None]
    if missing:
        raise Unavailable(f"missing: {', '.join(missing)} (apt-get install qemu-system-x86 gcc libelf-dev zlib1g-dev)")
    with tempfile.TemporaryDirectory(prefix="glb-kernels-") as name:
        directory = Path(name)
        loader = build_loader(directory)
        accepted = [True]
        if os.geteuid() == 0:
            here = subprocess.run([str(loader), str(OBJECTS)], capture_output=True, text=True, check=False)
            accepted.append(verdict(here.stdout))
        initrd = directory / "initrd"
        objects = {f"{name}.bpf.o": (OBJECTS / f"{name}.bpf.o").read_bytes() for name in ("director", "capture")}
        initrd.write_bytes(archive({"sys": b"", "init": loader.read_bytes(), **objects}))
        accepted += [verdict(boot(download(series, directory), initrd)) for series in SERIES]
    sys.exit(0 if all(accepted) else 1)


if __name__ == "__main__":
    try:
        main()
    except (Unavailable, subprocess.CalledProcessError) as error:
        sys.exit(f"kernels: {error}")
