"""What the Cython path misses while a director is killed and started again: what comes in between, which is counted."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from tests.netns.directors import SO_RCVBUFFORCE, VIP, Director, port_of
from tests.netns.topology import eventually, repeating

pytestmark = [pytest.mark.netns, pytest.mark.bpf]

NUMBER = slice(32, 36)  # of the inner packet: IPv4 with 4 bytes of options, UDP, then this


@contextmanager
def uncommon_load(director: Director) -> Iterator[list[int]]:
    """Numbered packets with IPv4 options, which no program in the kernel encapsulates; how many were sent so far."""
    net = director.net
    frame = Ether(src=net["client"].mac, dst=net["director"].mac)
    frame /= IP(src=net["client"].ipv4, dst=VIP, options=b"\x01\x01\x01\x01") / UDP(dport=80, chksum=0)
    head = bytes(frame / Raw(bytes(4)))[:-4]

    with port_of(net, "director") as port, repeating(lambda n: port.send(head + n.to_bytes(4, "big")), 0.001) as sent:
        yield sent


def test_workers_take_packets_again_as_soon_as_the_director_is_back(director: Director, bpffs: Path) -> None:
    director.configure(f'pin_dir = "{bpffs}/{director.net["director"].namespace}"\n')
    listener = director.listen("proxy1")
    listener.socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 26)
    arrived: set[int] = set()

    def has_arrived(wanted: range) -> bool:
        while (packet := listener._poll()) is not None:
            arrived.add(int.from_bytes(packet[1].inner[NUMBER], "big"))
        return arrived.issuperset(wanted)

    director.start()
    with uncommon_load(director) as sent:
        eventually(lambda: sent[0] > 100)
        upto = sent[0]
        eventually(lambda: has_arrived(range(upto)))
        director.signal(signal.SIGKILL)
        assert director.process is not None
        director.process.wait(10)
        director.start()
        first = sent[0] + 1  # the one before may have been on its way already
        eventually(lambda: sent[0] > first + 100)
        upto = sent[0]
        eventually(lambda: has_arrived(range(first, upto)))
    eventually(lambda: has_arrived(range(first, sent[0])))
    assert director.metric("glb_director_drops_total") == 0
    # All but what the socket of the one that was dying took.
    missing, lost = sent[0] - len(arrived), director.metric('glb_director_lost_total{reason="no_socket"}')
    assert lost == director.metric("glb_director_lost_total") and missing / 2 < lost <= missing
