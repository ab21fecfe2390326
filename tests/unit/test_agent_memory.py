"""What a verdict remembers of packets before: flows with a socket, and SYNs that were answered by a cookie."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from proxy_agent._verdict import Recollection, decide

sys.path.insert(0, str(Path(__file__).parent))
import agent_packets as p
from agent_packets import ACK, FIN, RST, SYN
from test_agent_decide import SETTINGS, always


def test_positive_answer_is_remembered_for_its_time_and_no_longer() -> None:
    memory = Recollection()
    packet = p.tunnel(p.from_client(4, ACK))
    times = {"recollection": memory, "remember_ms": 2000}
    assert decide(packet, SETTINGS, always("established"), now_ms=5000, **times).reason == "established"
    assert decide(packet, SETTINGS, always("none"), now_ms=6999, **times).reason == "established"
    assert decide(packet, SETTINGS, always("none"), now_ms=7000, **times).reason == "bounce"
    assert decide(p.tunnel(p.from_client(4, ACK, port=81)), SETTINGS, now_ms=5000, **times).reason == "bounce"


def test_memory_survives_the_wrap_of_its_clock() -> None:
    memory = Recollection()
    packet = p.tunnel(p.from_client(4, ACK))
    times = {"recollection": memory, "remember_ms": 2000}
    decide(packet, SETTINGS, always("established"), now_ms=0xFFFFFF00, **times)
    assert decide(packet, SETTINGS, always("none"), now_ms=100, **times).reason == "established"
    assert decide(packet, SETTINGS, always("none"), now_ms=2000, **times).reason == "bounce"


def test_negative_answer_is_never_remembered() -> None:
    memory = Recollection()
    packet = p.tunnel(p.from_client(4, ACK))
    assert decide(packet, SETTINGS, always("none"), recollection=memory, remember_ms=2000).reason == "bounce"
    assert decide(packet, SETTINGS, always("syn_recv"), recollection=memory, remember_ms=2000).reason == "established"


def test_reset_ends_the_memory_of_its_flow() -> None:
    times = {"recollection": Recollection(), "remember_ms": 2000}
    decide(p.tunnel(p.from_client(4, ACK)), SETTINGS, always("established"), **times)
    assert decide(p.tunnel(p.from_client(4, RST)), SETTINGS, always("none"), **times).reason == "established"
    assert decide(p.tunnel(p.from_client(4, ACK)), SETTINGS, always("none"), **times).reason == "bounce"


def test_remembered_flow_takes_its_icmp_errors() -> None:
    times = {"recollection": Recollection(), "remember_ms": 2000}
    decide(p.tunnel(p.from_client(4, ACK)), SETTINGS, always("established"), **times)
    error = p.tunnel(p.icmp(4, 3, p.quoted(4), source="203.0.113.1"))
    assert decide(error, SETTINGS, always("none"), **times).reason == "icmp_error"


def cookie_ack(
    memory: Recollection,
    *,
    in_use: bool = True,
    seq: int = 1001,
    state: str = "listen",
    now_ms: int = 10,
    flags: int = ACK,
) -> str:
    packet = p.tunnel(p.from_client(6, flags, seq=seq))
    return decide(packet, SETTINGS, always(state), recollection=memory, cookies_in_use=in_use, now_ms=now_ms).reason


@pytest.fixture
def after_syn() -> Recollection:
    """A SYN with sequence number 1000 was accepted here at 1 ms."""
    memory = Recollection()
    assert decide(p.tunnel(p.from_client(6, SYN, seq=1000)), SETTINGS, recollection=memory, now_ms=1).reason == "syn"
    return memory


def test_ack_that_answers_a_cookie_is_accepted(after_syn: Recollection) -> None:
    assert cookie_ack(after_syn) == "syn_cookie"


@pytest.mark.parametrize(
    "wrong",
    [
        {"in_use": False},
        {"seq": 1002},
        {"seq": 1000},
        {"state": "none"},
        {"now_ms": 10_001},
        {"flags": ACK | FIN},
        {"flags": ACK | RST},
        {"flags": 0},
    ],
    ids=str,
)
def test_ack_that_answers_no_cookie_bounces(after_syn: Recollection, wrong: dict[str, object]) -> None:
    assert cookie_ack(after_syn, **wrong) == "bounce"  # type: ignore[arg-type]


def test_every_segment_within_two_seconds_of_a_cookie_is_accepted(after_syn: Recollection) -> None:
    assert cookie_ack(after_syn, now_ms=10) == "syn_cookie"
    assert cookie_ack(after_syn, now_ms=2009, seq=5000, state="none", flags=ACK | FIN, in_use=False) == "syn_cookie"
    assert cookie_ack(after_syn, now_ms=2010, seq=5000, state="none") == "bounce"


def test_syn_ack_begins_no_cookie() -> None:
    memory = Recollection()
    decide(p.tunnel(p.from_client(6, SYN | ACK, seq=1000)), SETTINGS, recollection=memory, now_ms=1)
    assert cookie_ack(memory) == "bounce"


# The kernel judges them: `answers_cookie` stands for its answer.


@pytest.mark.parametrize("family", [4, 6])
def test_kernel_is_asked_about_the_headers_of_an_ack_to_a_listener_and_of_nothing_else(family: int) -> None:
    asked: list[bytes] = []

    def answer(question: bytes) -> bool:
        asked.append(question)
        return len(asked) == 1

    def verdict(inner: bytes, state: str) -> str:
        return decide(p.tunnel(inner), SETTINGS, always(state), answers_cookie=answer).reason

    ack = p.ip(*p.addresses(family), 6, p.tcp(ACK) + b"payload", options=b"\1" * 8 if family == 4 else b"")
    header = ack[:20] + bytes(20) if family == 4 else ack[:40]
    assert verdict(ack, "listen") == "syn_cookie"
    assert asked == [header + p.tcp(ACK)]
    assert verdict(ack, "listen") == "bounce"  # now the kernel says no
    assert len(asked) == 2
    for flags in (SYN, SYN | ACK, FIN | ACK, RST, RST | ACK, 0):
        verdict(p.from_client(family, flags), "listen")
    for state in ("none", "established", "time_wait", "unknown"):
        verdict(ack, state)
    verdict(p.icmp(family, 3, p.quoted(family)), "listen")
    assert len(asked) == 2


def test_what_follows_a_cookie_that_the_kernel_knows_is_accepted_for_two_seconds() -> None:
    memory = Recollection(n_slots=0)  # of the engine when the kernel judges: no SYN is remembered

    def verdict(flags: int, state: str, now_ms: int, valid: bool) -> str:
        packet = p.tunnel(p.from_client(6, flags))
        return decide(
            packet,
            SETTINGS,
            always(state),
            recollection=memory,
            answers_cookie=lambda question: valid,
            now_ms=now_ms,
            remember_ms=2000,
        ).reason

    assert verdict(SYN, "listen", 1, False) == "syn"
    assert verdict(ACK, "listen", 10, True) == "syn_cookie"
    assert verdict(ACK, "listen", 11, False) == "syn_cookie"
    assert verdict(FIN | ACK, "none", 12, False) == "syn_cookie"
    assert verdict(ACK, "established", 13, False) == "established"  # the stack has made the socket
    assert verdict(RST, "established", 14, False) == "established"
    assert verdict(ACK, "none", 2009, False) == "syn_cookie"  # whatever became of it
    assert verdict(ACK, "none", 2010, False) == "bounce"
