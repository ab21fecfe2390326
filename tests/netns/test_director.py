"""The running director in real namespaces: what goes out on the wire, what stays with the host, reload, and the end."""

from __future__ import annotations

import errno
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Raw

from glb.store.file import FileStore
from glb.wire.gue import parse_tunnel
from tests.netns.directors import (
    IP_MTU,
    IP_MTU_DISCOVER,
    IPV6_MTU,
    IPV6_MTU_DISCOVER,
    PACKET_AUXDATA,
    PMTUDISC_DO,
    SO_RCVBUFFORCE,
    SOL_PACKET,
    VIP,
    VIP6,
    Director,
    numbered_load,
    port_of,
    send_udp,
)
from tests.netns.topology import Host, eventually

pytestmark = [pytest.mark.netns, pytest.mark.bpf]


def reaches(client: Host, address: str, port: int) -> str:
    """connected, refused or silence."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with client.inside(), socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.settimeout(0.3)
        try:
            probe.connect((address, port))
        except ConnectionRefusedError:
            return "refused"
        except TimeoutError:
            return "silence"
        return "connected"


def test_packets_for_a_bind_leave_as_tunnel_packets_to_the_proxy(director: Director) -> None:
    net = director.net
    listener = director.listen("proxy1")
    director.start()
    for vip, protocol in ((VIP, 4), (VIP6, 41)):
        send_udp(net["client"], vip, 80)
        frame, tunnel = listener.next()
        assert frame.src == net["director"].mac and frame.dst == net["proxy1"].mac
        assert str(tunnel.source) == net["director"].ipv4 and str(tunnel.destination) == net["proxy1"].ipv4
        assert tunnel.gue.protocol == protocol and tunnel.inner.endswith(b"x" * 20)
        assert tunnel.gue.hops == ()
    assert director.metric("glb_director_packets_total") == 2
    accelerated = director.status()["engine"] == "accelerated"
    assert director.metric("glb_director_accelerated_packets_total") == (2 if accelerated else 0)
    assert director.status()["tables"][0]["backends"][0]["packets"] == 2


def test_what_is_not_for_a_bind_stays_with_the_host(director: Director) -> None:
    net = director.net
    director.start()
    with director.host.inside(), socket.create_server(("0.0.0.0", 22)):
        assert reaches(net["client"], director.host.ipv4, 22) == "connected"
    assert reaches(net["client"], director.host.ipv4, 80) == "refused"
    assert reaches(net["client"], director.host.ipv6, 80) == "refused"
    net["client"].run("ping", "-c", "1", "-W", "2", director.host.ipv4)
    net["client"].run("ip", "neigh", "del", director.host.ipv4, "dev", "eth0")
    net["client"].run("ping", "-c", "1", "-W", "2", director.host.ipv4)  # ARP too
    # A port of the VIP without a bind: the host's stack answers if the host has the address.
    director.host.run("ip", "addr", "add", f"{VIP}/32", "dev", "lo")
    assert reaches(net["client"], VIP, 81) == "refused"
    assert reaches(net["client"], VIP, 80) == "silence"
    assert director.metric("glb_director_drops_total") == 0


@pytest.mark.parametrize(("vip", "option"), [(VIP, IP_MTU), (VIP6, IPV6_MTU)])
def test_a_sender_of_packets_that_are_too_big_learns_what_fits(director: Director, vip: str, option: int) -> None:
    listener = director.listen("proxy1")
    director.start()
    family, level = (socket.AF_INET6, socket.IPPROTO_IPV6) if ":" in vip else (socket.AF_INET, socket.IPPROTO_IP)
    headers = 48 if ":" in vip else 28
    with director.net["client"].inside(), socket.socket(family, socket.SOCK_DGRAM) as sender:
        sender.setsockopt(level, IPV6_MTU_DISCOVER if ":" in vip else IP_MTU_DISCOVER, PMTUDISC_DO)
        sender.connect((vip, 80))
        sender.send(bytes(1500 - headers))
        eventually(lambda: sender.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.EMSGSIZE)
        assert sender.getsockopt(level, option) == 1500 - 36
        sender.send(b"m" * (1500 - 36 - headers))
    assert listener.next()[1].inner.endswith(b"m" * 100)
    assert director.metric('glb_director_too_big_answers_total{result="sent"}') == 1
    assert director.metric('glb_director_drops_total{reason="too_big",table="web"}') == 1


@pytest.mark.parametrize(("size", "kind"), [(20, "tunnel packet"), (1472, "answer")])
def test_a_tagged_frame_is_answered_and_forwarded_with_its_tag(director: Director, size: int, kind: str) -> None:
    net = director.net
    director.start()
    frame = Ether(src=net["client"].mac, dst=net["director"].mac) / Dot1Q(vlan=100, prio=5)
    frame /= IP(src=net["client"].ipv4, dst=VIP) / UDP(dport=80) / Raw(bytes(size))
    with port_of(net, "director") as port:
        port.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
        port.send(bytes(frame))

        def received() -> tuple[bytes, int] | None:
            """A frame from the director, less its tag, which the kernel takes out; and that tag."""
            while True:
                try:
                    data, ancillary, flags, _ = port.recvmsg(65535, 64)
                except BlockingIOError:
                    return None
                vlan = int.from_bytes(ancillary[0][2][16:18], sys.byteorder)
                if flags == 0 and vlan:
                    return data, vlan

        data, vlan = eventually(received)
    assert vlan == 5 << 13 | 100
    if kind == "answer":
        assert Ether(data)[ICMP].nexthopmtu == 1500 - 36 and Ether(data).dst == net["client"].mac
    else:
        assert parse_tunnel(data[14:]).inner == bytes(frame)[18:] and Ether(data).dst == net["proxy1"].mac


def test_a_new_table_is_published_and_a_bad_one_refused(director: Director) -> None:
    net = director.net
    director.start()
    before = director.status()["tables"][0]["digest"]
    director.write_table("proxy2", "proxy1", backends=[{"ip": net["proxy2"].ipv4, "state": "active", "healthy": True}])
    eventually(lambda: director.status()["tables"][0]["digest"] != before)
    listener = director.listen("proxy2")
    send_udp(net["client"], VIP, 80)
    assert str(listener.next()[1].destination) == net["proxy2"].ipv4
    good = director.status()["tables"]
    director.replace_table('{"tables": [')
    eventually(lambda: not director.status()["last_reload"]["ok"])
    status = director.status()
    assert status["tables"][0]["digest"] == good[0]["digest"]
    assert "not JSON" in status["last_reload"]["error"] and str(director.table) in status["last_reload"]["error"]
    assert director.metric("glb_table_reload_failures_total") == 1
    send_udp(net["client"], VIP, 80)
    listener.next()
    # SIGHUP tries again.
    director.signal(signal.SIGHUP)
    eventually(lambda: director.metric("glb_table_reload_failures_total") == 2)


def test_counters_survive_a_reload(director: Director) -> None:
    listener = director.listen("proxy1")
    director.start()
    for _ in range(3):
        send_udp(director.net["client"], VIP, 80)
        listener.next()
    before = director.status()["tables"][0]["digest"]
    director.write_table("proxy1", "proxy2")
    eventually(lambda: director.status()["tables"][0]["digest"] != before)
    assert director.metric("glb_director_packets_total") == 3


def test_no_packet_is_lost_while_tables_are_replaced(director: Director) -> None:
    net = director.net
    listener = director.listen("proxy1")
    listener.socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 26)
    director.start()
    sent = 0
    for n in range(20):
        director.write_table("proxy1", hash_key=f"{n:032x}")
        for _ in range(200):
            send_udp(net["client"], VIP, 80, sent.to_bytes(4, "big"))
            sent += 1
    arrived = {listener.next()[1].inner[28:32] for _ in range(sent)}
    assert len(arrived) == sent
    assert director.metric("glb_director_drops_total") == 0


def test_the_next_hop_follows_the_neighbour(director: Director) -> None:
    net = director.net
    director.host.run("ip", "neigh", "del", net["proxy1"].ipv4, "dev", "eth0")  # found by ARP again
    listener = director.listen("proxy1")
    director.start()
    send_udp(net["client"], VIP, 80)
    assert listener.next()[0].dst == net["proxy1"].mac
    director.host.run(
        "ip", "neigh", "replace", net["proxy1"].ipv4, "lladdr", "02:99:00:00:0a:0a", "dev", "eth0", "nud", "permanent"
    )
    watcher = director.listen("proxy1")
    net["proxy1"].run("ip", "link", "set", "eth0", "promisc", "on")

    def moved() -> bool:
        send_udp(net["client"], VIP, 80)
        found = watcher._poll()
        return found is not None and found[0].dst == "02:99:00:00:0a:0a"

    eventually(moved)


def test_a_proxy_that_cannot_be_reached_is_said_and_counted(director: Director) -> None:
    director.write_table("proxy1", backends=[{"ip": "192.0.2.77", "state": "active", "healthy": True}])
    director.start()
    send_udp(director.net["client"], VIP, 80)
    eventually(lambda: director.metric('glb_director_drops_total{reason="no_next_hop",table="web"}') == 1)
    assert "no route" in director.status()["tables"][0]["backends"][0]["fault"]
    assert director.metric("glb_backend_reachable") == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_behind(director: Director, number: signal.Signals) -> None:
    director.start()
    assert "xdp" in director.host.run("ip", "link", "show", "eth0")
    assert ",UP" in director.host.run("ip", "link", "show", "glb0")
    director.signal(number)
    assert director.process is not None
    code = director.process.wait(10)
    assert code == (0 if number == signal.SIGTERM else -signal.SIGKILL), director.log.read_text()
    eventually(lambda: "xdp" not in director.host.run("ip", "link", "show", "eth0"))
    assert "glb0" not in director.host.run("ip", "link")
    director.start()


def test_a_second_director_on_the_interface_is_refused(director: Director) -> None:
    director.start()
    other = director.folder / "other.toml"
    other.write_text(f'interface = "eth0"\ntable = "{director.table}"\nadmin = "127.0.0.1:9999"\n')
    command = [sys.executable, "-m", "glb.director.cli", "run", "--config", str(other)]
    process = director.host.start(*command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    _, message = process.communicate(timeout=20)
    assert process.returncode == 1 and "another" in message and "Traceback" not in message, message
    send_udp(director.net["client"], VIP, 80)
    eventually(lambda: director.metric("glb_director_packets_total") == 1)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ('interface = "nothere"\ntable = "{table}"', "interface nothere is not there; there are: lo, eth0"),
        ('interface = "lo"\ntable = "{table}"', "lo is no Ethernet interface"),
        ('table = "{table}"', "$.interface: is missing"),
        ('interface = "eth0"\ntable = "/nowhere.json"', "/nowhere.json"),
        ('interface = "eth0"\ntable = "{table}"\nadmin = "192.0.2.1:9523"', "admin = 192.0.2.1:9523"),
    ],
)
def test_a_start_that_cannot_work_says_why(director: Director, config: str, message: str) -> None:
    director.config.write_text(config.format(table=director.table))
    command = [sys.executable, "-m", "glb.director.cli", "run", "--config", str(director.config)]
    process = director.host.start(*command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    _, said = process.communicate(timeout=20)
    assert process.returncode in (1, 3) and message in said and "Traceback" not in said, said


def test_get_never_changes_anything_and_posting_is_refused(director: Director) -> None:
    director.start()
    assert "/metrics" in director.get("/")
    assert director.get("/healthz") == "ok\n" and director.get("/readyz") == "ready\n"
    with pytest.raises(urllib.error.HTTPError) as caught, director.host.inside():
        urllib.request.urlopen("http://127.0.0.1:9523/status", data=b"{}", timeout=5)
    caught.value.close()
    assert caught.value.code == 405
    assert "00" * 16 not in director.get("/status"), "keys are never shown"


def test_a_table_that_is_replaced_while_the_director_starts_is_not_missed(director: Director) -> None:
    late = director.folder / "late.json"
    director.write_table("proxy2")
    director.table.rename(late)
    director.write_table("proxy1")
    between = (  # between reading the table and watching it
        "from pathlib import Path; from glb.director.datapath import Datapath; start = Datapath.start\n"
        f"def slow(*args): Path({str(late)!r}).rename({str(director.table)!r}); start(*args)\n"
        "Datapath.start = slow; from glb.director.cli import main; main()"
    )
    director.start("-c", between)
    eventually(lambda: director.status()["tables"][0]["backends"][0]["address"] == director.net["proxy2"].ipv4)


def test_status_names_the_version_of_the_store_that_is_forwarded_by(director: Director) -> None:
    director.start()
    director.write_table("proxy1", "proxy2")
    wanted = FileStore(str(director.table)).load().version
    eventually(lambda: director.status()["table_version"] == wanted)


@pytest.mark.parametrize("director", ["xdp"], indirect=True)
def test_traffic_goes_on_while_the_daemon_is_dead_and_is_taken_over(director: Director, pins: Path) -> None:
    net, listener = director.net, director.listen("proxy1")
    with director.config.open("a") as file:
        file.write(f'pin_dir = "{pins}/d"\n')
    director.start()
    accelerated = 0
    for number in (signal.SIGKILL, signal.SIGTERM):
        director.signal(number)
        assert director.process is not None
        director.process.wait(10)
        assert "xdp" in director.host.run("ip", "link", "show", "eth0")
        for _ in range(20):
            send_udp(net["client"], VIP, 80)
            listener.next()
        director.start()
        assert "took over the program, sockets and counters" in director.log.read_text()
        send_udp(net["client"], VIP, 80)
        listener.next()
        accelerated += 21
        assert director.metric("glb_director_accelerated_packets_total") == accelerated
    # By the tables of the new daemon, not of the dead one.
    proxy2 = director.listen("proxy2")
    director.write_table("proxy2")
    eventually(lambda: director.status()["tables"][0]["backends"][0]["address"] == net["proxy2"].ipv4)
    send_udp(net["client"], VIP, 80)
    proxy2.next()
    director.signal(signal.SIGKILL)
    director.process.wait(10)
    detach = [sys.executable, "-m", "glb.director.cli", "detach", "--config", str(director.config)]
    assert "detached from eth0" in director.host.run(*detach)
    eventually(lambda: "xdp" not in director.host.run("ip", "link", "show", "eth0"))
    assert list((pins / "d").iterdir()) == []
    assert "nothing" in director.host.run(*detach)


@pytest.mark.parametrize("director", ["xdp"], indirect=True)
def test_no_packet_is_lost_while_the_daemon_is_killed_and_restarted_under_load(director: Director, pins: Path) -> None:
    net, listener = director.net, director.listen("proxy1")
    listener.socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 26)
    with director.config.open("a") as file:
        file.write(f'pin_dir = "{pins}/d"\n')
    director.start()
    with numbered_load(net["client"]) as sent:
        for _ in range(3):
            director.signal(signal.SIGKILL)
            assert director.process is not None
            director.process.wait(10)
            director.start()
    assert sent[0] > 500
    arrived = {listener.next()[1].inner[28:32] for _ in range(sent[0])}
    assert len(arrived) == sent[0]
    assert director.metric("glb_director_accelerated_packets_total") == sent[0]
