"""The eBPF classifier on single frames, by BPF_PROG_TEST_RUN, with the binds of a Forwarding."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType

import glb
from glb import _bpf
from glb._fastpath import Forwarding

_XDP_DROP = 1  # ours, and there is no socket in a test run
_XDP_PASS = 2
MINIMUM_BYTES = 14  # the kernel runs nothing shorter


class Classifier:
    """`host(frame)`: whether the program leaves the frame to the host's stack."""

    def __init__(self, forwarding: Forwarding) -> None:
        self._object = _bpf.BpfObject(Path(glb.__file__).parent / "bpf_objects" / "director.bpf.o")
        block = forwarding.binds_block
        generation = _bpf.create_array("glb_binds", len(block))
        _bpf.update_map(generation, bytes(4), block)
        _bpf.update_map(self._object.map("glb_generation"), bytes(4), generation.to_bytes(4, "little"))
        os.close(generation)
        self._program = self._object.program("glb_director")

    def host(self, frame: bytes) -> bool:
        action, out, _ = _bpf.test_run(self._program, frame)
        assert action in (_XDP_DROP, _XDP_PASS), action
        assert out == frame, "the classifier changes nothing"
        return action == _XDP_PASS

    def __enter__(self) -> Classifier:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._object.close()
