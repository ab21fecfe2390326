"""One TCP stream through a director and an agent, against the same way by plain routing."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from pyroute2 import netns

from bench import compiled, samples
from bench.errors import BenchError
from bench.hosts import Host
from bench.live import await_ready, ending
from bench.measure import BASELINE, OURS, Session, figure, spread
from glb import _bpf

SUMMARY = "one TCP stream (iperf3) through director and agent, against plain routing"

PASSING = "passing"
# side -> the VIP, the hosts by which the client reaches it and at which it ends; all on one switch
_SIDES = {
    OURS: ("198.51.100.1", "director", "proxy"),
    BASELINE: ("198.51.100.2", "router", "server"),
    PASSING: ("198.51.100.3", "router-xdp", "server-xdp"),  # plain routing, each with an XDP program that passes all
}
_HOSTS = ("client", *(host for _, *hosts in _SIDES.values() for host in hosts))
_PORT = 5201
_CORE_MTU_BYTES, _CLIENT_MTU_BYTES = 1600, 1500  # 1,500 and a tunnel
_PATHS = (("xdp", "xdp"), ("cython", "netfilter"))  # datapath of the director, engine of the agent
_ALTERNATIONS = 9
_SPAN = ("-t", "1", "-O", "0.3")  # a second, after what slow start takes
_QUICK_SPAN = ("-n", "20M")
_METHOD = (
    "network namespaces on one bridge, MTU 1600, the client's 1500; one iperf3 stream between client and VIP, by a "
    "director (one backend) and a proxy with the agent; what the proxy sends goes straight to the client; no "
    "segmentation offload on any interface, so that frames are as long as on a wire, and GRO on hosts; the client's "
    "processes and what its sending entails on one core, the server on another. `passing`: plain routing by hosts with "
    "an XDP program that passes everything, which is what veth's XDP mode costs by itself"
)
_BASELINE = (
    "the same stream over hosts of the same kind that forward and serve without GLB, on the same bridge in turns"
)


def _address(name: str) -> str:
    return f"10.97.0.{_HOSTS.index(name) + 1}"


@contextmanager
def _network() -> Iterator[dict[str, Host]]:
    missing = [name for name in ("iperf3", "ethtool") if shutil.which(name) is None]
    if missing:
        raise BenchError(f"missing: {', '.join(missing)} (apt-get install {' '.join(missing)})")
    with ExitStack() as stack:
        made = {}
        for name in ("switch", *_HOSTS):
            made[name] = Host()
            stack.callback(made[name].close)
        _build(made)
        yield made


def _build(hosts: dict[str, Host]) -> None:
    with hosts["switch"].routes() as switch:
        switch.link("add", ifname="br0", kind="bridge")
        bridge = switch.link_lookup(ifname="br0")[0]
        for name in _HOSTS:
            ends = {"ifname": name, "mtu": _CORE_MTU_BYTES}
            peer = {"ifname": "eth0", "net_ns_pid": hosts[name].pid, "mtu": _CORE_MTU_BYTES}
            switch.link("add", kind="veth", peer=peer, **ends)
            switch.link("set", index=switch.link_lookup(ifname=name)[0], master=bridge, state="up")
        switch.link("set", index=bridge, mtu=_CORE_MTU_BYTES, state="up")
    for name in _HOSTS:
        with hosts[name].routes() as ipr:
            lo, eth0 = ipr.link_lookup(ifname="lo")[0], ipr.link_lookup(ifname="eth0")[0]
            ipr.link("set", index=lo, state="up")
            ipr.link("set", index=eth0, state="up", **({"mtu": _CLIENT_MTU_BYTES} if name == "client" else {}))
            ipr.addr("add", index=eth0, address=_address(name), prefixlen=24)
            for side, (vip, way, end) in _SIDES.items():
                if name == "client":
                    ipr.route("add", dst=f"{vip}/32", gateway=_address(way))
                elif name == way and side != OURS:
                    ipr.route("add", dst=f"{vip}/32", gateway=_address(end))
                elif name == end and side != OURS:
                    ipr.addr("add", index=lo, address=vip, prefixlen=32)
        # GRO on the switch's ports would merge what the links keep apart; what XDP sends there needs it, though.
        _run(hosts[name], "ethtool", "-K", "eth0", "tx", "off", "gro", "on")
        _run(hosts["switch"], "ethtool", "-K", name, "tx", "off", "gro", "on" if name == "director" else "off")
    for name in ("router", "router-xdp"):
        off = ("net.ipv4.conf.all.send_redirects=0", "net.ipv4.conf.eth0.send_redirects=0")
        _run(hosts[name], "sysctl", "-qw", "net.ipv4.ip_forward=1", *off)


@contextmanager
def _passing(hosts: dict[str, Host]) -> Iterator[None]:
    """The program that passes everything is on the interfaces of the hosts that are to have it."""
    with closing(_bpf.BpfObject(compiled.bpf_object("chain.bpf.c"))) as made, ExitStack() as stack:
        for name in _SIDES[PASSING][1:]:
            netns.pushns(hosts[name].path)
            try:
                link = _bpf.attach_xdp(made.program("pass"), socket.if_nametoindex("eth0"))
            finally:
                netns.popns()
            stack.callback(os.close, link)
        yield


def _run(host: Host, *argv: str) -> str:
    command = ["nsenter", f"--net={host.path}", *argv]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        raise BenchError(f"{' '.join(argv)}: {(done.stderr or done.stdout).strip()[-500:]}")
    return done.stdout


@contextmanager
def _daemon(host: Host, core: int, module: str, config: str) -> Iterator[None]:
    """A `run` of the director or the agent; ready."""
    home = compiled.directory()
    path = home / f"{module}.toml"
    path.write_text(config)
    with (
        (home / f"{module}.log").open("wb") as log,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified,
    ):
        address = home / f"{module}.sock"
        address.unlink(missing_ok=True)
        notified.bind(str(address))
        notified.settimeout(0.1)
        argv = [sys.executable, "-m", module, "run", "--config", str(path)]
        with ending(host.start(argv, core, stderr=log, environment={"NOTIFY_SOCKET": str(address)})) as process:
            await_ready(notified, process, Path(log.name))
            yield


def _director(hosts: dict[str, Host], core: int, datapath: str) -> Any:
    tables = compiled.directory() / "stream.json"
    bind = {"ip": _SIDES[OURS][0], "proto": "tcp", "port": _PORT}
    backend = {"ip": _address("proxy"), "state": "active", "healthy": True}
    table = {"name": "web", "hash_key": samples.HASH_KEY.hex(), "seed": samples.SEED.hex()}
    tables.write_text(json.dumps({"tables": [table | {"binds": [bind], "backends": [backend]}]}))
    config = f"""\
interface = "eth0"
datapath = "{datapath}"
table = "{tables}"
outbound_src_ip = "{_address("director")}"
pin_dir = ""
admin = "unix:{tables.parent}/stream-director.sock"
"""
    return _daemon(hosts["director"], core, "glb.director.cli", config)


def _agent(hosts: dict[str, Host], core: int, engine: str) -> Any:
    home = compiled.directory()
    config = f"""\
interface = "eth0"
engine = "{engine}"
vips = ["{_SIDES[OURS][0]}"]
allowed_sources = ["{_address("director")}"]
pin_dir = ""
state_dir = "{home}/agent-state"
admin = "unix:{home}/stream-agent.sock"
"""
    return _daemon(hosts["proxy"], core, "proxy_agent.cli", config)


def _stream(hosts: dict[str, Host], side: str, direction: str, span: tuple[str, ...], core: int) -> float:
    """Bits a second that arrived."""
    argv = ["iperf3", "-c", _SIDES[side][0], "-p", str(_PORT), *span, "-J"]
    argv += ["-R"] if direction == "download" else []
    said = json.loads(_run(hosts["client"], "taskset", "-c", str(core), *argv))
    return float(said["end"]["sum_received"]["bits_per_second"])


def run(session: Session) -> Iterator[dict[str, Any]]:
    for datapath, engine in _PATHS:
        with _network() as hosts, ExitStack() as stack:
            stack.enter_context(_agent(hosts, session.cores.work, engine))
            stack.enter_context(_director(hosts, session.cores.load, datapath))
            stack.enter_context(_passing(hosts))
            for side in _SIDES:
                stack.enter_context(_server(hosts, side, session.cores.work))
            for direction in ("upload", "download"):
                yield _measured(session, hosts, f"{datapath}-{direction}", direction, engine)


@contextmanager
def _server(hosts: dict[str, Host], side: str, core: int) -> Iterator[None]:
    vip, _, name = _SIDES[side]
    argv = ["iperf3", "-s", "-B", vip, "-p", str(_PORT), "--forceflush"]
    with ending(hosts[name].start(argv, core, stderr=subprocess.DEVNULL)) as process:
        assert process.stdout is not None
        while "listening" not in (line := process.stdout.readline()):
            if not line:
                raise BenchError(f"iperf3 on {name} ended")
        yield


def _measured(session: Session, hosts: dict[str, Host], case: str, direction: str, engine: str) -> dict[str, Any]:
    span = _QUICK_SPAN if session.quick else _SPAN
    sides = {side: partial(_stream, hosts, side, direction, span, session.cores.load) for side in _SIDES}
    taken = session.alternate(f"stream/{case}", sides, session.times(_ALTERNATIONS))
    to_passing = [mine / other for mine, other in zip(taken[OURS], taken[PASSING], strict=True)]
    return figure(
        f"stream/{case}",
        taken,
        unit="bit/s",
        better="higher",
        frame_bytes=[_CLIENT_MTU_BYTES + 14],
        method=_METHOD,
        baseline=_BASELINE,
        not_included="network cards",
        passing=spread(taken[PASSING]),
        ratio_to_passing=spread(to_passing),
        engine=engine,
        span=" ".join(span),
    )
