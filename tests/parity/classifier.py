"""The eBPF director on single frames, by BPF_PROG_TEST_RUN, with the memory of a Forwarding."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

import corpus

import glb
from glb import _bpf
from glb._capture import Wanted
from glb._fastpath import Forwarding

_XDP_DROP = 1  # handed over, and there is no socket in a test run
_XDP_PASS = 2
_SENT = (3, 4)  # XDP_TX, XDP_REDIRECT
MINIMUM_BYTES = 14  # the kernel runs nothing shorter
SOURCE_MAC = bytes.fromhex("020000000001")


def shared_forwarding(
    env: str,
    row_rule: str = "glb2",
    hops: int | None = None,
    mtu_bytes: int = 0xFFFF,
    egress: tuple[int, bytes, bool] | None = None,
) -> Forwarding:
    """An environment whose memory the kernel reads too."""
    return corpus.forwarding(env, row_rule, _bpf.SharedArrays, SOURCE_MAC, hops, mtu_bytes, egress)


class Program:
    """`run(frame)` is what the program does: host, over (to the Cython path), or the frame it sends.

    `capture`: it is the capturing program, and this is wanted.
    """

    def __init__(
        self, forwarding: Forwarding, *, accelerate: bool, ifindex: int = 1, capture: Wanted | None = None
    ) -> None:
        options = forwarding.options(accelerate=accelerate, ifindex=ifindex)
        path = Path(glb.__file__).parent / "bpf_objects" / f"{'capture' if capture else 'director'}.bpf.o"
        self._object = _bpf.BpfObject(path, options, {"glb_capture": capture.memory.fds[0]} if capture else {})
        for slot, fd in enumerate(forwarding.rows_memory.fds):
            _bpf.update_map(self._object.map("glb_chunks"), slot.to_bytes(4, "little"), fd.to_bytes(4, "little"))
        (fd,) = forwarding.generation_memory.fds
        _bpf.update_map(self._object.map("glb_generations"), bytes(4), fd.to_bytes(4, "little"))
        self.actions: set[int] = set()
        self.number = self._object.program("glb_capturing" if capture else "glb_director")  # a file descriptor

    def map(self, name: str) -> int:
        return self._object.map(name)

    def run(self, frame: bytes) -> str | bytes:
        action, out, _ = _bpf.test_run(self.number, frame)
        self.actions.add(action)
        if action in _SENT:
            return out
        assert action in (_XDP_DROP, _XDP_PASS), action
        assert out == frame, "what is not sent is not changed"
        return "host" if action == _XDP_PASS else "over"

    def __enter__(self) -> Program:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._object.close()
