"""VLAN tags: looked past, and kept on what is sent."""

from __future__ import annotations

import corpus
import pytest
from scapy.layers.inet import ICMP, IP, TCP
from scapy.layers.inet6 import ICMPv6PacketTooBig, IPv6
from scapy.layers.l2 import ARP, Dot1AD, Dot1Q, Ether
from scapy.packet import Packet, Raw
from scene import CLIENT, CLIENT6, VIP, VIP6, ethernet, forwarding

from fuzz.mutations import mutated
from glb._fastpath import Forwarding

TAGS = {
    "none": [],
    "one": [Dot1Q(vlan=100, prio=5)],
    "priority": [Dot1Q(vlan=0, prio=7)],
    "service": [Dot1AD(vlan=7)],
    "two": [Dot1AD(vlan=7), Dot1Q(vlan=100)],
    "two of a kind": [Dot1Q(vlan=7), Dot1Q(vlan=100)],
}


def tagged(tags: list[Packet], packet: Packet) -> Packet:
    frame = ethernet()
    for tag in tags:
        frame = frame / tag.copy()
    return Ether(bytes(frame / packet))


def sent_by(plan: Forwarding, frame: Packet | bytes) -> tuple[str, bytes | None]:
    return plan.encapsulate([bytes(frame)], plan.new_counters())[0]


IPV4, IPV6 = IP(src=CLIENT, dst=VIP) / TCP(dport=80), IPv6(src=CLIENT6, dst=VIP6) / TCP(dport=80)


@pytest.mark.parametrize("tags", TAGS.values(), ids=TAGS)
@pytest.mark.parametrize("packet", [IPV4, IPV6], ids=["IPv4", "IPv6"])
def test_the_tunnel_packet_has_the_tags_of_the_frame(tags: list[Packet], packet: Packet) -> None:
    frame = bytes(tagged(tags, packet))
    link = len(frame) - len(packet)
    verdict, sent = sent_by(forwarding(), frame)
    _, plain = sent_by(forwarding(), tagged([], packet))
    assert verdict == "forward" and sent is not None and plain is not None
    # All of the untagged one's bytes, with the tags, whose last type is now IPv4.
    assert sent == plain[:12] + frame[12 : link - 2] + plain[12:]
    assert sent[link - 2 : link] == b"\x08\x00"
    decoded = Ether(sent)
    assert [layer.vlan for layer in decoded.iterpayloads() if isinstance(layer, Dot1Q)] == [tag.vlan for tag in tags]
    assert decoded[IP].src == "192.0.2.1"


@pytest.mark.parametrize("tags", TAGS.values(), ids=TAGS)
@pytest.mark.parametrize("packet", [IPV4, IPV6], ids=["IPv4", "IPv6"])
def test_so_has_the_answer_to_one_that_is_too_big(tags: list[Packet], packet: Packet) -> None:
    frame = bytes(tagged(tags, packet / Raw(bytes(1461))))
    link = len(frame) - len(packet) - 1461
    _, sent = sent_by(forwarding(), frame)
    assert sent is not None
    assert sent[:12] == frame[6:12] + frame[:6] and sent[12:link] == frame[12:link]
    answer = Ether(sent)
    assert ICMP in answer or ICMPv6PacketTooBig in answer
    assert sent[link + (28 if packet is IPV4 else 48) :] in frame


@pytest.mark.parametrize("tags", TAGS.values(), ids=TAGS)
def test_what_is_not_ours_goes_to_the_host_tagged_or_not(tags: list[Packet]) -> None:
    plan = forwarding()
    for packet in (ARP(), IP(dst="192.0.2.200") / TCP(dport=80), IP(dst=VIP) / TCP(dport=81), Raw(b"")):
        assert sent_by(plan, tagged(tags, packet)) == ("host", None)


def test_three_tags_and_other_kinds_of_tags_go_to_the_host() -> None:
    plan = forwarding()
    assert sent_by(plan, tagged([Dot1Q(vlan=1)] * 3, IPV4)) == ("host", None)
    frame = bytearray(bytes(tagged([Dot1Q(vlan=1)], IPV4)))
    frame[12:14] = b"\x91\x00"
    assert sent_by(plan, bytes(frame)) == ("host", None)


def test_the_length_of_a_tagged_frame_is_that_behind_its_tags() -> None:
    plan = forwarding()
    frame = bytes(tagged(TAGS["two"], IPV4))
    assert [sent_by(plan, frame[:n])[0] for n in range(len(frame) - 1, 42, -1)] == ["truncated"] * (len(frame) - 43)
    assert [sent_by(plan, frame[:n])[0] for n in range(42)] == ["host"] * 42
    assert sent_by(plan, frame + bytes(9))[0] == "forward"


@pytest.mark.parametrize("env", ["plain", "two-fields", "alt"])
def test_a_tag_changes_nothing_else(env: str) -> None:
    """Most packets go a short way through parsing that no tagged one goes: both ways must agree on everything."""
    plan = corpus.forwarding(env, mtu_bytes=1500)
    frames = [bytes.fromhex(record["frame"]) for record in corpus.packets()]
    frames += mutated(frames, seed=1, n=20_000)
    frames = [frame for frame in frames if len(frame) >= 14 and frame[12:14] not in (b"\x81\x00", b"\x88\xa8")]
    tag = bytes(Dot1Q(vlan=100))[:2]
    tagged_frames = [frame[:12] + b"\x81\x00" + tag + frame[12:] for frame in frames]
    plain, with_tag = (plan.encapsulate(some, plan.new_counters()) for some in (frames, tagged_frames))
    assert {verdict for verdict, _ in plain} >= {"forward", "host", "malformed", "truncated"}
    for frame, (verdict, sent), (other_verdict, other_sent) in zip(frames, plain, with_tag, strict=True):
        assert (other_verdict, other_sent) == (
            verdict,
            sent[:12] + b"\x81\x00" + tag + sent[12:] if sent is not None else None,
        ), frame.hex()
