"""Pinned links and maps of XDP programs: names in a BPF file system, and what becomes of those that are left over.

The director and the agent use it, each with a folder of its own. Maps are pinned only where a link is, and are those of
the program in that link.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from glb import _bpf
from glb.errors import DeviceError

log = logging.getLogger(__name__)

_BPFFS = Path("/sys/fs/bpf")  # where systemd mounts it, and where it is mounted here if nobody has
_MAPS = "maps_"  # and the link's name, which begins with a digit: a folder


def usable(folder: Path) -> bool:
    """Whether links can be pinned below `folder`; makes it, and mounts the BPF file system at its usual place."""
    if folder.is_relative_to(_BPFFS) and not _bpf.is_bpffs(_BPFFS):
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.mount(b"bpf", bytes(_BPFFS), b"bpf", 0, None) != 0:
            log.warning("no BPF file system at %s (%s)", _BPFFS, os.strerror(ctypes.get_errno()))
            return False
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        log.warning("pin_dir %s: %s", folder, error.strerror)
        return False
    if not _bpf.is_bpffs(folder):
        log.warning("pin_dir %s is not in a BPF file system (mount -t bpf)", folder)
        return False
    return True


def path_of(folder: Path, interface: str) -> Path:
    """One name per network namespace and interface: programs in namespaces of one machine share the file system."""
    namespace = os.stat("/proc/thread-self/ns/net").st_ino
    return folder / f"{namespace}_{interface.replace('.', '_')}"


def find(folder: Path, interface: str, ifindex: int) -> int | None:
    """The link (its file descriptor) that an earlier process has left on the interface, or None."""
    sweep(folder)
    path = path_of(folder, interface)
    link = _bpf.open_pinned(path)
    if link is None:
        return None
    if _bpf.link_ifindex(link) != ifindex:  # the interface was made anew under the same name
        os.close(link)
        remove(folder, interface)
        return None
    return link


def keep(link: int, folder: Path, interface: str) -> bool:
    """Let the link outlive this process. False, with a warning: it cannot."""
    try:
        _bpf.pin(link, path_of(folder, interface))
    except DeviceError as error:
        log.warning("the XDP program cannot be pinned, its work ends with this process: %s", error)
        return False
    return True


def remove(folder: Path, interface: str) -> bool:
    """Detach what is pinned for the interface; whether there was anything."""
    forget_maps(folder, interface)
    path = path_of(folder, interface)
    if not path.exists():
        return False
    path.unlink()
    return True


def sweep(folder: Path) -> None:
    """Forget links whose interface is gone, and maps without a link."""
    for path in folder.iterdir():
        if path.name.startswith(_MAPS):
            continue
        link = None
        with contextlib.suppress(DeviceError, OSError):
            link = _bpf.open_pinned(path)
            if link is not None and _bpf.link_ifindex(link) == 0:
                path.unlink()
        if link is not None:
            os.close(link)
    for path in folder.glob(f"{_MAPS}*"):
        if not path.with_name(path.name.removeprefix(_MAPS)).exists():
            shutil.rmtree(path, ignore_errors=True)


def keep_maps(maps: Mapping[str, int], folder: Path, interface: str, version: int) -> None:
    """Let maps (file descriptors by name) be found by the next process. With a warning: they cannot be, and none is."""
    place = _maps_folder(folder, interface) / str(version)
    try:
        place.mkdir(parents=True)
        for name, fd in maps.items():
            _bpf.pin(fd, place / name)
    except (DeviceError, OSError) as error:
        log.warning("the maps cannot be pinned, the next one begins with its own: %s", error)
        forget_maps(folder, interface)


def find_maps(names: Iterable[str], folder: Path, interface: str, version: int) -> dict[str, int]:
    """Maps that an earlier process has left, which the caller closes. DeviceError: they are not all there."""
    everything = _maps_folder(folder, interface)
    found: dict[str, int] = {}
    try:
        for name in names:
            fd = _bpf.open_pinned(everything / str(version) / name)
            if fd is None:
                there = ", ".join(sorted(path.name for path in everything.glob("*"))) or "none"
                raise DeviceError(f"no {name} of layout version {version} is pinned; versions that are: {there}")
            found[name] = fd
    except DeviceError:
        for fd in found.values():
            os.close(fd)
        raise
    return found


def forget_maps(folder: Path, interface: str) -> None:
    """Those of every version; a program that uses them goes on with them."""
    shutil.rmtree(_maps_folder(folder, interface), ignore_errors=True)


def _maps_folder(folder: Path, interface: str) -> Path:
    """A folder for each version is in it. (A BPF file system allows no dots.)"""
    link = path_of(folder, interface)
    return link.with_name(_MAPS + link.name)
