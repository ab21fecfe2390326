"""A director that starts where one has been: it goes on with the sockets and counters there, or says why not."""

from __future__ import annotations

import itertools
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from glb import _bpf
from glb.director.config import Config
from glb.director.forwarding import compile_forwarding
from glb.director.kept import KEPT_MAPS, LAYOUT_VERSION
from glb.table.config import parse_tables
from glb.table.rows import RowBuilder
from glb.wire.gue import parse_tunnel
from tests.netns.directors import SO_RCVBUFFORCE, VIP, Director, numbered_load, port_of, send_udp
from tests.netns.topology import eventually

pytestmark = [
    pytest.mark.netns,
    pytest.mark.bpf,
    pytest.mark.parametrize("director", ["xdp"], indirect=True),
]

OTHER_VERSION = "from glb.director import kept; kept.LAYOUT_VERSION += 1; from glb.director.cli import main; main()"
PAYLOAD = b"x" * 20
FRAME_BYTES = 14 + 20 + 8 + len(PAYLOAD)


def kill(director: Director) -> None:
    director.signal(signal.SIGKILL)
    assert director.process is not None
    director.process.wait(10)


def sample(director: Director, name: str, **labels: str) -> float:
    """Sum over all series that have these labels."""
    return sum(
        each.value
        for family in text_string_to_metric_families(director.get("/metrics"))
        for each in family.samples
        if each.name == name and labels.items() <= each.labels.items()
    )


def versions(folder: Path) -> list[str]:
    """Layout versions of the maps that are pinned."""
    return sorted(path.name for path in folder.glob("maps_*/*"))


def test_counters_go_on_with_other_tables_and_while_nobody_runs(director: Director, pins: Path) -> None:
    net = director.net
    proxy1, proxy2 = director.listen("proxy1"), director.listen("proxy2")
    director.configure(f'pin_dir = "{pins}/d"\n')

    def send(n: int) -> None:
        for _ in range(n):
            send_udp(net["client"], VIP, 80, PAYLOAD)

    def counted(name: str, **labels: str) -> float:
        return sample(director, name, table="web", engine="accelerated", **labels)

    director.start()
    send(20)
    kill(director)
    send(10)
    uncommon = Ether(src=net["client"].mac, dst=net["director"].mac)
    uncommon /= IP(src=net["client"].ipv4, dst=VIP, options=b"\x01" * 4) / UDP(dport=80) / Raw(PAYLOAD)
    with port_of(net, "director") as port:
        for _ in range(3):
            port.send(bytes(uncommon))
        director.write_table("proxy2")  # one backend is added, one removed
        director.start()
        send(5)
        for _ in range(30):
            proxy1.next()
        for _ in range(5):
            proxy2.next()
        port.send(bytes(uncommon))
        proxy2.next()
    assert proxy1.empty() and proxy2.empty()
    assert counted("glb_director_packets_total") == 35
    assert counted("glb_director_bytes_total") == 35 * FRAME_BYTES
    assert counted("glb_director_encapsulated_packets_total", backend=net["proxy1"].ipv4) == 30
    assert counted("glb_director_encapsulated_packets_total", backend=net["proxy2"].ipv4) == 5
    assert sample(director, "glb_director_packets_total", table="web", engine="cython") == 1
    assert sample(director, "glb_director_lost_total", reason="no_socket") == 3
    status = director.status()
    assert status["accelerated_packets"] == 35 and status["tables"][0]["backends"][0]["packets"] == 6
    # A reload and an orderly restart go on with them as well; only what the process itself has counted begins anew.
    before = status["tables"][0]["digest"]
    director.write_table("proxy1")
    eventually(lambda: director.status()["tables"][0]["digest"] != before)
    send(1)
    proxy1.next()
    director.signal(signal.SIGTERM)
    assert director.process is not None and director.process.wait(10) == 0
    send(1)
    director.start()
    proxy1.next()
    assert counted("glb_director_packets_total") == 37
    assert counted("glb_director_encapsulated_packets_total", backend=net["proxy1"].ipv4) == 32
    assert sample(director, "glb_director_packets_total", engine="cython") == 0
    # A table by another name has counters of its own; the sum over all keeps what those that are gone have counted.
    director.write_table("proxy2", name="mail")
    eventually(lambda: director.status()["tables"][0]["name"] == "mail")
    director.write_table("proxy1", name="mail")
    eventually(lambda: director.status()["tables"][0]["backends"][0]["address"] == net["proxy1"].ipv4)
    send(2)
    assert sample(director, "glb_director_packets_total", table="mail", engine="accelerated") == 2
    assert counted("glb_director_packets_total") == 0
    assert director.status()["accelerated_packets"] == 39


def unpin_one(place: Path) -> None:
    (place / "glb_counters").unlink()


def pin_a_map_of_another_kind(place: Path) -> None:
    (place / "glb_sockets").unlink()
    other = _bpf.create_array("other", 8)
    _bpf.pin(other, place / "glb_sockets")
    os.close(other)


def spoil_the_ledger(place: Path) -> None:
    ledger = _bpf.open_pinned(place / "glb_ledger")
    assert ledger is not None
    _bpf.update_map(ledger, bytes(4), b"\xff" * (1 << 21))
    os.close(ledger)


@pytest.mark.parametrize(
    ("spoil", "program", "why"),
    [
        (None, ("-c", OTHER_VERSION), f"layout version {LAYOUT_VERSION + 1} is pinned; versions that are: 1"),
        (unpin_one, (), f"no glb_counters of layout version {LAYOUT_VERSION} is pinned"),
        (pin_a_map_of_another_kind, (), "the kernel refused the eBPF object"),
        (spoil_the_ledger, (), "its ledger of counters cannot be read"),
    ],
)
def test_maps_that_do_not_fit_are_replaced_with_the_program_and_nothing_is_lost(
    director: Director, pins: Path, spoil: Callable[[Path], None] | None, program: tuple[str, ...], why: str
) -> None:
    listener = director.listen("proxy1")
    listener.socket.setsockopt(1, SO_RCVBUFFORCE, 1 << 26)
    director.configure(f'pin_dir = "{pins}/d"\n')
    director.start()
    with numbered_load(director.net["client"]) as sent:
        eventually(lambda: sent[0] > 100)
        kill(director)
        if spoil is not None:
            (place,) = (pins / "d").glob(f"maps_*/{LAYOUT_VERSION}")
            spoil(place)
        director.start(*program)
        assert why in director.log.read_text() and "counters begin at 0" in director.log.read_text()
        counted = sample(director, "glb_director_accelerated_packets_total")
        assert counted < sent[0] - 100
        version = LAYOUT_VERSION + len(program) // 2
        assert versions(pins / "d") == [str(version)], "those of the old one are gone"
        # What replaced them can be adopted.
        kill(director)
        director.start(*program)
        assert "sockets and counters" in director.log.read_text()
    arrived = {listener.next()[1].inner[28:32] for _ in range(sent[0])}
    assert len(arrived) == sent[0]
    assert counted < sample(director, "glb_director_accelerated_packets_total") < sent[0] - 100


def test_maps_without_a_link_are_removed(director: Director, pins: Path) -> None:
    listener = director.listen("proxy1")
    director.configure(f'pin_dir = "{pins}/d"\n')
    director.start()
    send_udp(director.net["client"], VIP, 80)
    listener.next()
    kill(director)
    (folder,) = (pins / "d").glob("maps_*")
    (folder / "0").mkdir()  # of a version before
    folder.with_name(folder.name.removeprefix("maps_")).unlink()
    director.start()
    assert "begin at 0" not in director.log.read_text(), "there was nothing in force whose counters could be missed"
    assert sample(director, "glb_director_accelerated_packets_total") == 0
    assert versions(pins / "d") == [str(LAYOUT_VERSION)]
    assert sorted(path.name for path in folder.glob("*/*")) == sorted((*KEPT_MAPS, "glb_ledger"))


def test_a_second_director_changes_nothing_of_the_first(director: Director, pins: Path) -> None:
    net, listener = director.net, director.listen("proxy1")
    director.configure(f'pin_dir = "{pins}/d"\n')
    director.start()
    director.write_table("proxy2")
    eventually(lambda: director.status()["tables"][0]["backends"][0]["address"] == net["proxy2"].ipv4)
    director.write_table("proxy1")
    eventually(lambda: director.status()["tables"][0]["backends"][0]["address"] == net["proxy1"].ipv4)
    other = director.folder / "other.toml"
    other.write_text(director.config.read_text().replace("glb0", "glb1") + 'admin = "127.0.0.1:9999"\n')
    command = [sys.executable, "-m", "glb.director.cli", "run", "--config", str(other)]
    process = director.host.start(*command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    _, message = process.communicate(timeout=20)
    assert process.returncode == 1 and "another" in message, message
    director.write_table("proxy1", "proxy2")
    eventually(lambda: len(director.status()["tables"][0]["backends"]) == 2)
    director.write_table("proxy1")
    eventually(lambda: len(director.status()["tables"][0]["backends"]) == 1)
    send_udp(net["client"], VIP, 80)
    listener.next()
    kill(director)
    director.start()
    assert sample(director, "glb_director_accelerated_packets_total") == 1


class Tables:
    """Two tables, and what either makes of frames of many clients."""

    def __init__(self, director: Director) -> None:
        net = director.net
        self.director = director
        client = Ether(src=net["client"].mac, dst=net["director"].mac)
        payload = UDP(sport=1000, dport=80, chksum=0) / Raw(bytes(20))
        self.frames = [bytes(client / IP(src=f"198.51.100.{n}", dst=VIP) / payload) for n in range(128)]
        self.listeners = [director.listen("proxy1"), director.listen("proxy2")]
        self.texts: list[str] = []
        self.expected: list[dict[bytes, tuple[Any, ...]]] = []
        for proxies, more in ((("proxy1", "proxy2"), {}), (("proxy2", "proxy1"), {"seed": "22" * 16, "name": "b"})):
            director.write_table(*proxies, **more)
            self.texts.append(director.table.read_text())
            self.expected.append(self.by(self.texts[-1]))
        differing = sum(self.expected[0][inner] != self.expected[1][inner] for inner in self.expected[0])
        assert 32 < differing < 128, "a mixture can be told"

    def by(self, text: str, **options: int) -> dict[bytes, tuple[Any, ...]]:
        """Inner packet -> (proxy, further hops)."""
        tables = parse_tables(text, source="test")
        source = IPv4Address(self.director.host.ipv4)
        made = compile_forwarding(
            tables, RowBuilder().build_all(tables), Config(**options), source_ip=source, source_mac=bytes(6)
        ).forwarding
        for proxy in ("proxy1", "proxy2"):
            made.set_next_hop(IPv4Address(self.director.net[proxy].ipv4).packed, bytes(6))
        sent = [parse_tunnel((frame or b"")[14:]) for _, frame in made.encapsulate(self.frames, made.new_counters())]
        return {tunnel.inner: (tunnel.destination, tunnel.gue.hops) for tunnel in sent}

    @contextmanager
    def replaced_all_the_time(self) -> Iterator[None]:
        """One by the other in turn, for as long as the block lasts."""
        stop = threading.Event()

        def replace() -> None:
            for text in itertools.cycle(self.texts):
                if stop.wait(0.002):
                    return
                self.director.replace_table(text)

        thread = threading.Thread(target=replace)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def sent_by(self, send: Callable[[bytes], int]) -> set[int]:
        """Send all frames once, and wait for them: by which of the tables all of them went; empty: by no single one."""
        for frame in self.frames:
            send(frame)
        arrived: dict[bytes, tuple[Any, ...]] = {}

        def all_have() -> bool:
            for listener in self.listeners:
                while (found := listener._poll()) is not None:
                    tunnel = found[1]
                    arrived[tunnel.inner] = tunnel.destination, tunnel.gue.hops
                    assert any(table[tunnel.inner] == arrived[tunnel.inner] for table in self.expected)
            return len(arrived) == len(self.frames)

        eventually(all_have)
        return {i for i, table in enumerate(self.expected) if table == arrived}


def test_options_and_tables_of_the_next_director_come_into_force_together(director: Director, pins: Path) -> None:
    director.configure(f'pin_dir = "{pins}/d"\n')
    tables = Tables(director)
    director.replace_table(tables.texts[0])
    director.start()
    with port_of(director.net, "director") as port:
        assert tables.sent_by(port.send) == {0}
        kill(director)
        director.configure("hash_fields = {src_addr = true, src_port = true}\n")
        director.replace_table(tables.texts[1])
        tables.expected[1] = tables.by(tables.texts[1], hash_fields=1 | 4)
        start = threading.Thread(target=director.start)
        start.start()
        try:
            while start.is_alive():
                tables.sent_by(port.send)
        finally:
            start.join()
        assert tables.sent_by(port.send) == {1}
    assert "sockets and counters" in director.log.read_text()


def test_a_director_killed_while_it_publishes_leaves_one_table_and_true_counters(
    director: Director, pins: Path
) -> None:
    director.configure(f'pin_dir = "{pins}/d"\n')
    tables = Tables(director)
    chance = random.Random(4)
    rounds = 0
    with port_of(director.net, "director") as port:
        for last in (0, 1) * 4:
            director.replace_table(tables.texts[last])
            director.start()
            assert ("sockets and counters" in director.log.read_text()) == (rounds > 0)
            assert tables.sent_by(port.send) == {last}
            with tables.replaced_all_the_time():
                moment = time.monotonic() + chance.uniform(0.05, 0.5)
                while time.monotonic() < moment:
                    tables.sent_by(port.send)
                    rounds += 1
                kill(director)
            assert tables.sent_by(port.send), "by one of the two, whole"
            rounds += 2
    director.replace_table(tables.texts[0])
    director.start()
    assert sample(director, "glb_director_accelerated_packets_total") == rounds * len(tables.frames)
    assert director.metric("glb_director_drops_total") == director.metric("glb_director_lost_total") == 0
