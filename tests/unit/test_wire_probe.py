"""Probes and their answers, read and made by scapy."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoReply, ICMPv6EchoRequest, IPv6
from scapy.packet import Packet, Raw

from glb.wire import probe
from glb.wire.probe import Answer

US, VIP = {4: "10.0.0.9", 6: "fd00::9"}, {4: "203.0.113.10", 6: "2001:db8:f::10"}
LAYER = {4: IP, 6: IPv6}


def made(version: int, kind: str, key: int, length: int) -> bytes:
    addresses = ip_address(US[version]), ip_address(VIP[version])
    if kind == "echo":
        return probe.echo(*addresses, key, length)
    return probe.stray(*addresses, 443, key, length)


def with_right_checksums(packet: Packet) -> bytes:
    """What scapy makes of it when it computes every checksum itself."""
    for layer in (IP, TCP, ICMP, ICMPv6EchoRequest):
        if layer in packet:
            field = "chksum" if hasattr(packet[layer], "chksum") else "cksum"
            delattr(packet[layer], field)
    return bytes(packet)


@pytest.mark.parametrize("kind", ["echo", "stray"])
@pytest.mark.parametrize("version", [4, 6])
@given(key=st.integers(0, 2**32 - 1), length=st.integers(probe.LEAST_INNER_BYTES, 1500))
def test_probe_is_a_whole_packet_of_its_length(version: int, kind: str, key: int, length: int) -> None:
    packet = made(version, kind, key, length)
    assert len(packet) == length
    read = LAYER[version](packet)
    assert (read.src, read.dst) == (US[version], VIP[version])
    assert with_right_checksums(read) == packet


@given(st.integers(0, 2**32 - 1))
def test_answers_carry_the_key(key: int) -> None:
    for version in (4, 6):
        layer = LAYER[version](src=VIP[version], dst=US[version])
        asked = LAYER[version](made(version, "echo", key, 200))
        reply = ICMP(type=0) if version == 4 else ICMPv6EchoReply()
        payload = bytes(asked[Raw]) if version == 4 else asked[ICMPv6EchoRequest].data
        assert probe.read_answer(bytes(layer / reply / Raw(payload))) == Answer("echo", ip_address(VIP[version]), key)
        stray = LAYER[version](made(version, "stray", key, 200))
        reset = TCP(sport=443, dport=stray[TCP].sport, flags="R", seq=stray[TCP].ack)
        assert probe.read_answer(bytes(layer / reset)) == Answer("reset", ip_address(VIP[version]), key)


def test_router_that_says_too_big_is_read_with_the_proxy_that_was_meant() -> None:
    quoted = IP(src=US[4], dst="10.0.0.1") / UDP(sport=40000, dport=19523)
    error = IP(src="10.9.9.9", dst=US[4]) / ICMP(type=3, code=4, nexthopmtu=1492) / quoted
    answer = probe.read_answer(bytes(error))
    assert answer == Answer("too_big", ip_address("10.9.9.9"), 0, ip_address("10.0.0.1"), 1492)


@given(st.binary(max_size=80))
def test_anything_else_is_no_answer(data: bytes) -> None:
    for front in (b"", b"\x45", b"\x60", bytes(made(4, "echo", 1, 100)[:30])):
        found = probe.read_answer(front + data)
        assert found is None or isinstance(found, Answer)


def test_echo_reply_of_somebody_elses_ping_is_no_answer() -> None:
    ping = IP(src=VIP[4], dst=US[4]) / ICMP(type=0) / Raw(b"abcdefghijklmnop")
    assert probe.read_answer(bytes(ping)) is None
