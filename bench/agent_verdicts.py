"""Verdicts a second of the agent's NFQUEUE loop, against the same loop accepting every packet without a look.

Two namespaces and a veth pair; a packet-ring generator (one core) floods tunnel packets of established flows to the
agent's loop (the other core). The loop's own CPU time is what counts: verdicts a second of it, local stack included, so
that a busy machine or a slow generator does not show. Variants take turns: machines have fast and slow moments.

All of it with those flows alone, and with 100,000 more that are established on the host.

    python -m bench.agent_verdicts      one JSON line per variant; `ratio` is to `accept_everything` of the same run
"""

from __future__ import annotations

import ctypes
import json
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from ipaddress import IPv4Address
from pathlib import Path
from statistics import mean

from bench.established import established
from glb.wire.checksum import internet_checksum, ipv4_header, pseudo_header
from glb.wire.gue import GUE_PORT, encapsulate
from lab import ring

ROUNDS = 4  # with few and with many flows each
ROUND_S = 1.0
N_FLOWS = 1000
N_MANY = 100_000
VIP = "198.51.100.1"
AGENT, PEER, NEXT = "10.98.0.2", "10.98.0.1", "10.98.0.3"
MACS = {AGENT: "02:98:00:00:00:02", PEER: "02:98:00:00:00:01", NEXT: "02:98:00:00:00:01"}
QUEUE = 9524
SYN, ACK = 0x02, 0x10

# name -> (packets in turns as TCP flags and whether their flows are known, how long answers are remembered in ms,
#          does the loop accept everything, does the kernel judge SYN cookies)
VARIANTS = {
    "accept_everything": ([(ACK, True)], 0, True, True),
    "established_with_look_up": ([(ACK, True)], 0, False, True),
    "established_remembered": ([(ACK, True)], 2000, False, True),
    "mixed": (
        [(ACK, True)] * 17 + [(SYN, True)] * 2 + [(ACK, False)],
        2000,
        False,
        True,
    ),  # 85 % data, 10 % SYNs, 5 % to bounce
    "syn": ([(SYN, True)], 2000, False, True),
    "bounce_with_look_up": ([(ACK, False)], 2000, False, True),
    "bounce_without_ebpf": ([(ACK, False)], 2000, False, False),
}
CLIENTS = IPv4Address("10.64.0.0")  # of the many flows

CLONE_NEWNET = 0x40000000


def run(rounds: int = ROUNDS) -> Iterable[dict[str, object]]:
    """Measure all variants; one result each, with the ratio of its verdicts per CPU second to the baseline's."""
    with _namespaces() as (agent_ns, peer_ns):
        inside = [sys.executable, "-m", "bench.agent_verdicts", "--inside", peer_ns, str(rounds)]
        child = subprocess.run(
            ["ip", "netns", "exec", agent_ns, *inside], capture_output=True, text=True, cwd=Path(__file__).parents[1]
        )
    if child.returncode:
        raise RuntimeError(f"the agent's loop cannot be measured here: {child.stderr.strip()[-800:]}")
    few, many = json.loads(child.stdout)
    for measured, suffix in ((few, ""), (many, "_many")):
        baseline = measured["accept_everything"]["rate"]
        for name, result in measured.items():
            ratio = result["rate"] / baseline
            to_few = ratio / (few[name]["rate"] / few["accept_everything"]["rate"])
            yield {
                "bench": "agent_verdicts",
                "name": name + suffix,
                "verdicts_per_cpu_second": round(result["rate"]),
                "verdicts_per_second": round(result["wall_rate"]),
                "ratio": round(ratio, 3),
                "baseline": "accept_everything" + suffix,
                "look_ups_per_verdict": round(result["look_ups"], 3),
                **({"ratio_to_few_flows": round(to_few, 3)} if suffix else {}),
            }


@contextmanager
def _namespaces() -> Iterator[tuple[str, str]]:
    stem = f"glbt-{os.getpid()}-bench"
    agent_ns, peer_ns = f"{stem}-agent", f"{stem}-peer"

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True)

    try:
        ip("netns", "add", agent_ns)
        ip("netns", "add", peer_ns)
        ip("-n", agent_ns, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", peer_ns)
        for namespace, address in ((agent_ns, AGENT), (peer_ns, PEER)):
            ip("-n", namespace, "link", "set", "lo", "up")
            ip("-n", namespace, "link", "set", "eth0", "address", MACS[address], "up")
            ip("-n", namespace, "addr", "add", f"{address}/24", "dev", "eth0")
        for namespace, others in ((agent_ns, (PEER, NEXT)), (peer_ns, (AGENT,))):
            for other in others:
                ip("-n", namespace, "neigh", "replace", other, "lladdr", MACS[other], "dev", "eth0", "nud", "permanent")
        ip("-n", agent_ns, "addr", "add", f"{VIP}/32", "dev", "lo")
        ip("-n", agent_ns, "route", "add", "default", "via", PEER)
        ip("-n", peer_ns, "route", "add", f"{VIP}/32", "via", AGENT)
        yield agent_ns, peer_ns
    finally:
        for namespace in (agent_ns, peer_ns):
            subprocess.run(["ip", "netns", "del", namespace], capture_output=True)


# -- in the agent's namespace ------------------------------------------------------------------------------------------


def _inside(peer_ns: str, rounds: int) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, float]]]:
    """By variant, with few flows and with many."""
    from proxy_agent import netfilter, syncookie, tun

    for name, value in (("forwarding", 1), ("accept_local", 1), ("send_redirects", 0)):
        Path(f"/proc/sys/net/ipv4/conf/eth0/{name}").write_text(str(value))
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[0]})

    listener = socket.create_server((VIP, 80), backlog=N_FLOWS)
    # SYNs end here, behind the verdict: answering them would be measuring TCP.
    subprocess.run(["iptables-legacy", "-A", "INPUT", "-p", "tcp", "--dport", "81", "-j", "DROP"], check=True)
    with _namespace(peer_ns):
        flows = [socket.create_connection((VIP, 80)) for _ in range(N_FLOWS)]
    accepted = [listener.accept()[0] for _ in flows]
    known = [flow.getsockname()[1] for flow in flows]
    # What accept_everything lets through ends in a socket that is full: no answer is sent for it.
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    udp.bind(("0.0.0.0", GUE_PORT))

    tun_fd = tun.create(tun.device_name(QUEUE))
    cookies = syncookie.Program(socket.if_nametoindex("eth0"))
    netfilter.install("eth0", GUE_PORT, QUEUE)
    few: dict[str, list[tuple[float, float, float]]] = {name: [] for name in VARIANTS}
    many: dict[str, list[tuple[float, float, float]]] = {name: [] for name in VARIANTS}
    try:
        # Mirrored: what drifts favours neither.
        for taken, turns in ((few, rounds - rounds // 2), (many, rounds), (few, rounds // 2)):
            with established(IPv4Address(VIP), 80, CLIENTS, range(N_MANY)) if taken is many else nullcontext():
                for _ in range(turns):
                    for name in VARIANTS:
                        taken[name].append(_sample(name, known, peer_ns, cores[-1], tun_fd, cookies.fd))
    finally:
        netfilter.remove("eth0")
    for each in (*flows, *accepted, listener, udp):
        each.close()
    return _means(few), _means(many)


def _sample(
    name: str, known: list[int], peer_ns: str, generator_core: int, tun_fd: int, cookie_program: int
) -> tuple[float, float, float]:
    """Verdicts per CPU second and per second, look-ups per verdict."""
    from proxy_agent._verdict import Engine, Settings

    packets, remember_ms, accept_all, judged = VARIANTS[name]
    settings = Settings([VIP], None, [AGENT, VIP])
    ifindex = socket.if_nametoindex("eth0")
    engine = Engine(
        QUEUE,
        ifindex,
        settings,
        tun_fd,
        remember_ms=remember_ms,
        accept_all=accept_all,
        cookie_program=cookie_program if judged else -1,
    )
    engine.open()
    thread = threading.Thread(target=engine.run)
    thread.start()
    frames = []
    for i, port in enumerate(known):
        flags, is_known = packets[i % len(packets)]
        frames.append(_frame(port if is_known else 1024 + i, 81 if flags == SYN else 80, flags))
    with _generator(peer_ns, generator_core, frames):
        time.sleep(0.2)
        cpu_clock = time.pthread_getcpuclockid(thread.ident or 0)
        start, cpu, before = time.monotonic(), time.clock_gettime(cpu_clock), _judged(engine)
        time.sleep(ROUND_S)
        after, cpu = _judged(engine), time.clock_gettime(cpu_clock) - cpu
        elapsed = time.monotonic() - start
    engine.stop()
    thread.join()
    engine.close()
    verdicts, look_ups = after[0] - before[0], after[1] - before[1]
    return verdicts / cpu, verdicts / elapsed, look_ups / max(1, verdicts)


def _means(taken: dict[str, list[tuple[float, float, float]]]) -> dict[str, dict[str, float]]:
    keys = ("rate", "wall_rate", "look_ups")
    return {
        name: dict(zip(keys, map(mean, zip(*samples, strict=True)), strict=True)) for name, samples in taken.items()
    }


def _judged(engine: object) -> tuple[int, int]:
    return sum(engine.counters().values()), engine.internals()["look_ups"]  # type: ignore[attr-defined]


def _frame(source_port: int, port: int, flags: int) -> bytes:
    segment = struct.pack(">HHIIBBHHH", source_port, port, 1, 1, 0x50, flags, 1024, 0, 0)
    client, vip = socket.inet_aton(PEER), socket.inet_aton(VIP)
    inner = _with_tcp_checksum(client, vip, segment)
    packet = encapsulate(inner, PEER, [AGENT, NEXT])
    macs = (MACS[AGENT] + MACS[PEER]).replace(":", "")
    return bytes.fromhex(macs) + b"\x08\x00" + packet


def _with_tcp_checksum(source: bytes, destination: bytes, segment: bytes) -> bytes:
    a, b = IPv4Address(source), IPv4Address(destination)
    checksum = internet_checksum(pseudo_header(a, b, 6, len(segment)) + segment)
    return ipv4_header(a, b, 6, len(segment)) + segment[:16] + struct.pack(">H", checksum) + segment[18:]


@contextmanager
def _namespace(name: str) -> Iterator[None]:
    libc = ctypes.CDLL(None, use_errno=True)
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    target = os.open(f"/run/netns/{name}", os.O_RDONLY)
    try:
        if libc.setns(target, CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), f"cannot enter {name}")
        yield
    finally:
        libc.setns(before, CLONE_NEWNET)
        os.close(before)
        os.close(target)


@contextmanager
def _generator(namespace: str, core: int, frames: list[bytes]) -> Iterator[None]:
    """Send the frames round and round from another process, until the block ends."""
    pid = os.fork()
    if pid == 0:
        try:
            os.sched_setaffinity(0, {core})
            with _namespace(namespace):
                _flood(frames)
        finally:
            os._exit(1)
    try:
        yield
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)


def _flood(frames: list[bytes]) -> None:
    """One copy and one call for a ring full: no work per packet in Python."""
    image, sender = ring.image(frames), ring.Ring("eth0")
    while True:
        sender.send(image)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--inside"]:
        print(json.dumps(_inside(sys.argv[2], int(sys.argv[3]))))
    else:
        for line in run():
            print(json.dumps(line))
