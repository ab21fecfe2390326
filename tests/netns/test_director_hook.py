"""An interface that has an XDP program already: it is left alone, and named."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from glb import _bpf
from tests.netns.directors import Director
from tests.netns.topology import Host, Switch

pytestmark = [pytest.mark.netns, pytest.mark.bpf]

SOURCE = """
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
SEC("xdp") int NAME(struct xdp_md *ctx) { return XDP_PASS; }
char LICENSE[] SEC("license") = "GPL";
"""


@contextmanager
def attached(folder: Path, host: Host, name: str, *, generic: bool) -> Iterator[int]:
    """A program of this name on the host's eth0; its id."""
    source, target = folder / f"{name}.bpf.c", folder / f"{name}.bpf.o"
    source.write_text(SOURCE.replace("NAME", name))
    include = f"-I/usr/include/{os.uname().machine}-linux-gnu"
    command = ["clang", "-O2", "-g", "-target", "bpf", include, "-c", str(source), "-o", str(target)]
    subprocess.run(command, check=True)
    program = _bpf.BpfObject(target)
    with host.inside():
        ifindex = socket.if_nametoindex("eth0")
        link = _bpf.attach_xdp(program.program(name), ifindex, generic=generic)
        found, _ = _bpf.attached_xdp(ifindex)
    try:
        yield found
    finally:
        os.close(link)
        program.close()


@pytest.mark.parametrize(
    ("name", "generic", "advice"),
    [
        ("my_firewall", True, "somebody else's, and takes one only; `bpftool prog show id {id}` tells more"),
        (
            "xdp_dispatcher",
            False,
            "libxdp's dispatcher, for programs of others, and takes one only; `xdp-loader status eth0`",
        ),
        ("glb_capturing", False, "a director's, and takes one only; end that director, or run `glb-director detach`"),
        (
            "glb_second_chance",
            False,
            "a proxy agent's, and takes one only; end that agent, or run `glb-proxy-agent detach`",
        ),
    ],
)
def test_another_program_is_named_and_left_alone(tmp_path: Path, name: str, generic: bool, advice: str) -> None:
    with Switch("director", "proxy1") as net:
        director = Director(net, tmp_path, "xdp")
        director.write_table("proxy1")
        with attached(tmp_path, director.host, name, generic=generic) as theirs:
            command = [sys.executable, "-m", "glb.director.cli", "run", "--config", str(director.config)]
            process = director.host.start(*command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
            _, said = process.communicate(timeout=20)
            assert process.returncode == 1 and "Traceback" not in said
            mode = "generic" if generic else "native"
            assert f"eth0 has another XDP program already, in {mode} mode: {name[:15]} (id {theirs}), " in said
            assert advice.format(id=theirs) in said
            with director.host.inside():
                assert _bpf.attached_xdp(socket.if_nametoindex("eth0")) == (theirs, mode)
