"""One corpus through both engines with real sockets: the same verdicts and bytes, but for the differences we know.

Two proxies have the same sockets in the same states, one with the netfilter engine and one with the xdp engine. Every
packet of tests/unit/agent_corpus.py is sent to both as a frame; their counters say for which reasons they judged, the
switch sees what they bounce, and a queue at the INPUT hook sees what their stacks get. Where they differ, and why, is
in tests/vectors/agent_differences.jsonl, by name and exactly.
"""

from __future__ import annotations

import itertools
import json
import socket
import struct
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from ipaddress import ip_network
from pathlib import Path
from typing import NamedTuple

import pytest

from proxy_agent import syncookie, xdp
from proxy_agent._verdict import Settings, decide
from proxy_agent._verdict import Sockets as SocketTable
from proxy_agent.decide import Action
from proxy_agent.engine import Guard
from tests.netns import situations
from tests.netns.agents import Agent, departures
from tests.netns.intake import Intake
from tests.netns.pair import Pair
from tests.netns.topology import Host, Switch

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
import agent_corpus as corpus
import agent_packets as p
from agent_packets import ACK, SYN
from test_agent_decide import CASES, OUTER

pytestmark = [pytest.mark.netns, pytest.mark.bpf]

ENGINES = ("netfilter", "xdp")
DIFFERENCES = Path(__file__).parents[1] / "vectors" / "agent_differences.jsonl"
LAST_SERIAL = 0xFFFF
BOUNCES_WITHIN_S = 5.0
HURRY_S = 0.05  # where the engines are known to differ, one may send nothing
REMEMBERED_S = 1.5  # the netfilter engine's memory is 2 s
VIPS = tuple(ip_network(vip) for vip in (p.VIP4, p.VIP6))
ATTEMPTS = 20  # to have a few verdicts in that time, on a busy machine
_PORTS = itertools.count(6000)


class Outcome(NamedTuple):
    """What an engine did with some packets."""

    counted: Counter[str]
    sent: list[bytes]
    delivered: list[bytes]


class Proxy:
    """A host with an agent, sockets in every situation, and what watches what comes out."""

    def __init__(self, host: Host, net: Switch, directory: Path, stack: ExitStack, pins: Path) -> None:
        self.host = host
        self.engine = host.name
        for name in ("all", "eth0"):
            host.sysctl(f"net/ipv4/conf/{name}/rp_filter", 0)  # clients are behind another interface here
        for hops in ("10.0.0.0/24", "10.1.0.0/16"):
            host.run("ip", "route", "add", hops, "via", net["director"].ipv4)
        self.sockets = situations.Sockets(host, stack)
        self.intake = stack.enter_context(closing(Intake(host, situations.DEVICE)))
        self.agent = Agent(host, directory, engine=host.name, pin_dir=str(pins))
        stack.callback(self.agent.stop)
        self.agent.start()
        self.departures = stack.enter_context(closing(departures(host, net.core)))
        self.departures.setsockopt(socket.SOL_SOCKET, 33, 1 << 24)  # SO_RCVBUFFORCE
        with net.core.inside():
            self._wire = stack.enter_context(closing(socket.socket(socket.AF_PACKET, socket.SOCK_RAW)))
            self._wire.bind((host.name, 0))
        self._macs = bytes.fromhex((host.mac + net["director"].mac).replace(":", ""))
        self._counters = self._read()

    def _read(self) -> Counter[str]:
        return Counter(self.agent.status()["counters"])

    def send(self, packet: bytes) -> None:
        self._wire.send(self._macs + b"\x08\x00" + packet)

    def judge(self, packets: Iterable[bytes], bounces: int, *, hurry: bool = False) -> Outcome:
        """What becomes of the packets, in this order, of which `bounces` should bounce.

        Nothing says that no more of them will come: `hurry` waits less for what may not.
        """
        last = corpus.with_serial(p.udp(4), LAST_SERIAL)
        for packet in packets:
            self.send(packet)
        self.send(p.tunnel(last))
        delivered = self.intake.take(last)
        sent = list(self._bounced(bounces, HURRY_S if hurry else BOUNCES_WITHIN_S))
        before, self._counters = self._counters, self._read()
        return Outcome(self._counters - before - Counter(["udp"]), sent, delivered)

    def _bounced(self, n: int, within_s: float) -> Iterator[bytes]:
        """`n` tunnel packets that leave the host, and those which have left besides."""
        deadline = time.monotonic() + within_s
        while True:
            self.departures.settimeout(max(0.001, deadline - time.monotonic()) if n > 0 else 0.001)
            try:
                packet, (_, _, kind, *_) = self.departures.recvfrom(65536)
            except TimeoutError:
                return
            if kind != socket.PACKET_OUTGOING and packet[0] >> 4 == 4 and packet[9] == 17 and packet[12:16] == _ME:
                n -= 1
                yield packet[: struct.unpack_from(">H", packet, 2)[0]]


_ME = socket.inet_aton(p.ME)


@pytest.fixture(scope="module")
def proxies(netfilter: None, bpffs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Proxy]]:
    directory = tmp_path_factory.mktemp("agents")
    with Switch("director", *ENGINES) as net, ExitStack() as stack:
        for engine in ENGINES:
            net.core.run("ethtool", "-K", engine, "gro", "on")
        yield [Proxy(net[engine], net, directory, stack, bpffs / "verdicts") for engine in ENGINES]


def numbers_of(proxy: Proxy, situation: str, family: int) -> corpus.Numbers | None:
    return proxy.sockets.numbers.get((situation, family))


@pytest.mark.parametrize("situation", corpus.SITUATIONS)
def test_corpus_gets_its_verdicts_from_both_engines(proxies: list[Proxy], situation: str) -> None:
    for proxy in proxies:
        proxy.sockets.renew()
        for family in corpus.SITUATIONS[situation].families:
            cases = list(corpus.cases(situation, family, numbers_of(proxy, situation, family)))
            reasons = Counter(case.reason for case in cases)
            outcome = proxy.judge((case.packet for case in cases), reasons["bounce"])
            assert outcome.counted == reasons
            assert_same(outcome.sent, cases, "sent")
            assert_same(outcome.delivered, cases, "delivered")
        proxy.sockets.check()


def assert_same(packets: Sequence[bytes], cases: Sequence[corpus.Case], what: str) -> None:
    """Each packet is that of one case; the order of those that enter by the TUN device is another."""
    expected = {packet: case.name for case in cases if (packet := getattr(case, what)) is not None}
    missing = set(expected) - set(packets)
    assert not missing, f"not {what}: {sorted(expected[packet] for packet in missing)[:5]}"
    surplus = Counter(packets) - Counter(expected.keys())
    assert not surplus, f"{what}, and should not be: {[packet.hex() for packet in surplus][:3]}"


@pytest.mark.parametrize("situation", corpus.SITUATIONS)
def test_engines_agree_on_each_packet_of_the_corpus(proxies: list[Proxy], situation: str) -> None:
    """Packet by packet, reason by reason: the program by BPF_PROG_TEST_RUN, the decision with real questions."""
    proxy = proxies[0]
    proxy.sockets.renew()
    with proxy.host.inside(), closing(syncookie.Program(0)) as cookies:
        # A test run's frames come in by the loopback interface.
        pair = Pair(Guard(VIPS, None, corpus.OWN), SocketTable(0), cookies.is_valid)
        for family in corpus.SITUATIONS[situation].families:
            for case in corpus.cases(situation, family, numbers_of(proxy, situation, family)):
                verdict = pair.compare(case.packet)
                assert verdict is not None and verdict.reason == case.reason, case.name
        pair.check()


def test_sockets_of_another_namespace_give_the_program_the_same_verdicts() -> None:
    """`socket_namespaces`, of the xdp engine only: the decision is asked in the container, as if it were a proxy."""
    with Switch("proxy", "container") as net, ExitStack() as stack:
        container = net["container"]
        standing = situations.Sockets(container, stack)
        with container.inside():
            sockets = SocketTable(0)
        with net["proxy"].inside():
            cookies = stack.enter_context(closing(syncookie.Program(0)))
            (number,) = xdp.namespace_ids([container.namespace]).values()

            def is_valid(question: bytes) -> bool:
                with container.inside():
                    return cookies.is_valid(question)

            pair = Pair(Guard(VIPS, None, corpus.OWN), sockets, is_valid, [number])
            for name, situation in corpus.SITUATIONS.items():
                standing.renew()
                for family in situation.families:
                    for case in corpus.cases(name, family, standing.numbers.get((name, family))):
                        verdict = pair.compare(case.packet)
                        assert verdict is not None and verdict.reason == case.reason, case.name
            pair.check()


@pytest.mark.parametrize("family", [4, 6])
def test_thirty_hops_are_bounced_to_one_by_one(proxies: list[Proxy], family: int) -> None:
    hops = tuple(f"10.1.0.{i}" for i in range(1, 31))
    inner = p.from_client(family, ACK, port=81)
    kind = corpus.KINDS["ack"]
    cases = [corpus.case(f"hop-{i}", kind, inner, corpus.Way(hops, i), known=False) for i in range(31)]
    for proxy in proxies:
        hops_before = proxy.agent.status()["bounced_by_hop"]
        outcome = proxy.judge((case.packet for case in cases), len(hops))
        assert outcome == Outcome(
            Counter(bounce=30, last_resort=1), [case.sent for case in cases if case.sent], [inner]
        )
        counted = Counter(proxy.agent.status()["bounced_by_hop"]) - Counter(hops_before)
        assert counted == {str(i): 1 for i in range(1, 31)}


# -- what is no plain packet of a flow ---------------------------------------------------------------------------------


def with_outer_options(packet: bytes, options: bytes) -> bytes:
    longer = bytearray(packet[:20] + options + packet[20:])
    longer[0] += len(options) // 4
    longer[2:4] = struct.pack(">H", len(longer))
    return p.with_header_checksum(bytes(longer))


def shapes() -> dict[str, bytes]:
    """Malformed and unusual packets by name; no flow has a socket."""
    hops = (p.NEXT,)
    found = {}
    for name, (inner, _, _) in CASES.items():
        found[name] = p.tunnel(inner, hops, udp_checksum=True)
        found[f"{name}-last-hop"] = p.tunnel(inner, ())
    good = p.tunnel(p.from_client(4, SYN), hops)
    for name, (at, value, _) in OUTER.items():
        if name != "empty":
            found[f"outer-{name}"] = p.with_header_checksum(good[:at] + value + good[at + len(value) :])
    ack, syn = p.tunnel(p.from_client(4, ACK), hops), good
    short = p.with_length(ack, 60)
    return found | {
        "outer-header-checksum": good[:10] + bytes([good[10] ^ 1]) + good[11:],
        "outer-cut": good[:-1],
        "outer-length-of-fewer-bytes-than-inner": short,
        "outer-udp-checksum-wrong": ack[:26] + b"\x12\x34" + ack[28:],
        "outer-padded": ack + b"\xff" * 60,
        "outer-padded-accepted": syn + b"\xff" * 60,
        "outer-options-of-no-meaning": with_outer_options(ack, b"\1" * 8),
        "outer-options-of-no-meaning-accepted": with_outer_options(syn, b"\1" * 8),
        "outer-options-like-the-inner-ones": with_outer_options(
            p.tunnel(p.ip(p.CLIENT4, p.VIP4, 6, p.tcp(SYN), options=b"\1" * 8), hops), b"\1" * 8
        ),
        "outer-options-that-are-wrong": with_outer_options(ack, b"\x83\x01\0\0"),
        "outer-options-that-are-wrong-accepted": with_outer_options(syn, b"\x83\x01\0\0"),
        "outer-option-record-route": with_outer_options(ack, b"\x07\x07\x04\0\0\0\0\1"),
        "inner-header-checksum": p.tunnel(with_wrong_checksum(p.from_client(4, SYN)), hops),
        "inner-header-checksum-bounced": p.tunnel(with_wrong_checksum(p.from_client(4, ACK)), hops),
    }


def with_wrong_checksum(packet: bytes) -> bytes:
    return packet[:10] + bytes([packet[10] ^ 1]) + packet[11:]


SHAPES = shapes()


def described(outcome: Outcome, packet: bytes) -> str:
    """Reason and what came out, in words: "bounce: sent", "icmp: delivered", "malformed", "not counted"."""
    reason = " ".join(outcome.counted) or "not counted"
    decision = decide(packet, Settings([p.VIP4, p.VIP6], None, corpus.OWN))
    out = []
    if outcome.sent:
        lowered = decision.packet[:8] + bytes([packet[8] - 1]) + decision.packet[9:]
        same = outcome.sent == [p.with_header_checksum(lowered)]
        out.append("sent" if same else "sent with other options")
    if outcome.delivered:
        assert outcome.delivered == [decision.packet]
        out.append("delivered")
    return f"{reason}: {', '.join(out)}" if out else reason


def known_differences(group: str) -> dict[str, dict[str, str]]:
    """Name -> engine -> what it does, of one group of the data file."""
    entries = [json.loads(line) for line in DIFFERENCES.read_text().splitlines()]
    return {e["name"]: {engine: e[engine] for engine in ENGINES} for e in entries if e["group"] == group}


def test_shapes_get_the_same_verdict_from_both_engines_but_for_the_known_differences(proxies: list[Proxy]) -> None:
    found: dict[str, dict[str, str]] = {}
    for name, packet in SHAPES.items():
        ours = corpus.is_tunnel_packet(packet)
        decision = decide(packet, Settings([p.VIP4, p.VIP6], None, corpus.OWN))
        done = {}
        for proxy in proxies:
            outcome = proxy.judge([packet], decision.action is Action.BOUNCE, hurry=name in known_differences("shape"))
            done[proxy.engine] = described(outcome, packet)
        if done["netfilter"] != done["xdp"]:
            found[name] = done
        # The xdp engine sees the frame as it came.
        assert done["xdp"].partition(":")[0] == (decision.reason if ours else "not counted"), name
    assert found == known_differences("shape")


# -- flows that have just ended ----------------------------------------------------------------------------------------

ENDED = ("ack", "data", "fin", "too-big", "syn", "udp", "rst", "ack-after-the-rst")


@pytest.mark.parametrize("family", [4, 6])
def test_flow_that_has_just_ended_is_remembered_by_one_engine_as_documented(proxies: list[Proxy], family: int) -> None:
    done = {proxy.engine: _after_the_end(proxy, family) for proxy in proxies}
    found = {f"ended-{name}": {engine: done[engine][name] for engine in ENGINES} for name in ENDED}
    different = {name: reasons for name, reasons in found.items() if len(set(reasons.values())) > 1}
    assert different == known_differences("ended")


def _after_the_end(proxy: Proxy, family: int) -> dict[str, str]:
    """What is done with packets of a flow that has ended, less than 2 seconds after one of its packets was accepted."""
    for source_port in itertools.islice(_PORTS, ATTEMPTS):
        with proxy.host.inside():
            numbers, end = proxy.sockets.connect(family, 80, source_port)
        packets = {}
        for kind in ENDED:
            inner = corpus.KINDS[kind.removesuffix("-after-the-rst")].build(family, 80, source_port, numbers)
            packets[kind] = p.tunnel(inner, (p.NEXT,))
        began = time.monotonic()
        assert proxy.judge([packets["ack"]], 0).counted == {"established": 1}
        end()
        done = {}
        for kind, packet in packets.items():
            (done[kind],) = proxy.judge([packet], 0, hurry=True).counted
        if time.monotonic() - began < REMEMBERED_S:  # else the machine was too busy to say
            return done
    raise AssertionError(f"no {len(ENDED)} verdicts within {REMEMBERED_S} s, in {ATTEMPTS} attempts")
