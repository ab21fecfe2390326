"""bpf/syncookie.bpf.c, loaded: the kernel's judgement of SYN cookies, for the netfilter engine."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from glb import _bpf
from proxy_agent._verdict import valid_cookies

PROGRAM = "glb_syncookie"
QUESTION_BYTES = 60  # struct glb_cookie_question of bpf/glb_verdicts.h


def object_path() -> Path:
    return Path(str(files("glb"))) / "bpf_objects" / "syncookie.bpf.o"


class Program:
    """`ifindex`: the interface that packets come in by. DeviceError where eBPF is not allowed, or does not run."""

    def __init__(self, ifindex: int) -> None:
        self._object = _bpf.BpfObject(object_path())
        self._ifindex = ifindex
        self.fd = self._object.program(PROGRAM)
        # Noticed here, and not when the first cookie comes: a kernel that loads it and does not run it.
        self.is_valid(bytes(QUESTION_BYTES))

    def is_valid(self, question: bytes) -> bool:
        """Whether a segment (struct glb_cookie_question) acknowledges a SYN cookie of a listener here."""
        return valid_cookies(self.fd, self._ifindex, [question])[0]

    def close(self) -> None:
        self._object.close()
