"""What a director leaves in the kernel for the next one beside its program: sockets, counters, and the ledger of these.

Tables are not among it. The next one brings its own, so that program, options and tables change in one step: when its
program takes the place of the old one in the link.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import msgspec

from glb import _bpf, pin
from glb.director.ledger import Count, Ledger, Name
from glb.errors import DeviceError

LAYOUT_VERSION = 1  # GLB_LAYOUT_VERSION of bpf/glb_layout.h: of what is kept
KEPT_MAPS = ("glb_sockets", "glb_counters", "glb_backend_counts")

_LEDGER = "glb_ledger"
# 32768 entries take 1.3 MB at most, their slots once more 0.1 MB, and the names of 256 tables 66 KB in each of the
# generations that it may know.
_LEDGER_BYTES = 1 << 21
_FIRST = bytes(4)


class KernelCounters:
    """The counters of backends in the kernel. DeviceError."""

    def __init__(self, counts: int, ledger_map: int, ledger: Ledger) -> None:
        """`counts`: the map glb_backend_counts, the object's. `ledger_map` is closed with this."""
        self.in_force: Sequence[int] = ledger.in_force  # slots that the program on the interface may count into
        self.ledger_map = ledger_map
        self._counts = counts
        self._ledger = ledger

    def assign(self, names: Sequence[Name]) -> list[int]:
        """A slot for each, those that they have had if there are any. What is counted there is theirs from now on."""
        ledger = self._ledger.assigned(names, self.in_force, self._read(self._ledger))
        text = msgspec.msgpack.encode(ledger)
        if len(text) > _LEDGER_BYTES - 4:
            raise DeviceError(f"the ledger of the counters takes {len(text)} bytes, at most {_LEDGER_BYTES - 4} fit")
        # One system call, which a signal does not interrupt: the next director reads this one or the one before.
        _bpf.update_map(self.ledger_map, _FIRST, (len(text).to_bytes(4, "little") + text).ljust(_LEDGER_BYTES, b"\0"))
        self._ledger = ledger
        return ledger.slots(names)

    def read(self) -> tuple[dict[Name, Count], dict[str, Count]]:
        """(packets, bytes) by backend; and those of backends that are gone, by table ("": of tables that are gone)."""
        ledger = self._ledger
        return ledger.backends(self._read(ledger)), ledger.past

    def _read(self, ledger: Ledger) -> list[Count]:
        return _bpf.read_counts(self._counts, 0, ledger.n_used)

    def close(self) -> None:
        os.close(self.ledger_map)


def adopt(path: Path, options: bytes, folder: Path, interface: str) -> tuple[_bpf.BpfObject, KernelCounters]:
    """The program, loaded on what an earlier director has left. DeviceError: it cannot be, and why."""
    fds = pin.find_maps((*KEPT_MAPS, _LEDGER), folder, interface, LAYOUT_VERSION)
    ledger_map = fds.pop(_LEDGER)
    try:
        ledger = _read_ledger(ledger_map)
        loaded = _bpf.BpfObject(path, options, fds)
    except DeviceError:
        os.close(ledger_map)
        raise
    finally:
        for fd in fds.values():  # the object has its own
            os.close(fd)
    return loaded, KernelCounters(loaded.map("glb_backend_counts"), ledger_map, ledger)


def load(path: Path, options: bytes) -> tuple[_bpf.BpfObject, KernelCounters]:
    """The program with maps of its own. DeviceError."""
    loaded = _bpf.BpfObject(path, options)
    return loaded, KernelCounters(loaded.map("glb_backend_counts"), _bpf.create_array(_LEDGER, _LEDGER_BYTES), Ledger())


def keep(loaded: _bpf.BpfObject, counters: KernelCounters, folder: Path, interface: str) -> None:
    """Leave them for the next director. Nothing else may be pinned there for the interface."""
    maps = {name: loaded.map(name) for name in KEPT_MAPS} | {_LEDGER: counters.ledger_map}
    pin.keep_maps(maps, folder, interface, LAYOUT_VERSION)


def _read_ledger(fd: int) -> Ledger:
    value = _bpf.lookup_map(fd, _FIRST, _LEDGER_BYTES) or b""
    try:
        return msgspec.msgpack.decode(value[4 : 4 + int.from_bytes(value[:4], "little")], type=Ledger)
    except msgspec.MsgspecError as error:
        raise DeviceError(f"its ledger of counters cannot be read: {error}") from error
