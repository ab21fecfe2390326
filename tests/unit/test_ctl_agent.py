"""glbctl agent status, and what mtu-check asks for before it sends anything."""

from __future__ import annotations

import json
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from glb.ctl.cli import main
from glb.ctl.links import Link, links_of
from glb.table.config import parse_tables
from glb.wire.gue import parse_tunnel

from .fake_fleet import agent_status, director_status, endpoint, full_agent_status

KEYS = {"hash_key": "00" * 16, "seed": "11" * 16}


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def test_agents_are_shown_with_what_they_cannot_do() -> None:
    mss = {"ipv4": 0, "ipv6": 0, "problem": "no legacy iptables table"}
    new = {**full_agent_status(5), "mss": mss, "flows_problems": ["web: gone"]}
    with endpoint(lambda: new) as first, endpoint(lambda: agent_status(2)) as second:
        shown = run("agent", "status", "--agent", f"10.0.0.1={first}", "--agent", second)
    assert shown.exit_code == 0
    assert "10.0.0.1  " in shown.stdout and "not clamped" in shown.stdout
    assert shown.stderr.splitlines() == [
        "glbctl: 10.0.0.1: the MSS is not clamped: no legacy iptables table",
        "glbctl: 10.0.0.1: flows: web: gone",
    ]


def test_agent_that_cannot_be_asked_is_a_row_and_exit_code_1(tmp_path: Path) -> None:
    (tmp_path / "tables.json").write_text(json.dumps({"tables": [table("10.0.0.1")]}))
    with (
        endpoint(lambda: full_agent_status(5)) as up,
        endpoint(lambda: director_status(tmp_path / "tables.json")) as no,
    ):
        agents = [f"--agent=10.0.0.1={up}", "--agent=10.0.0.2=http://127.0.0.1:1", f"--agent=10.0.0.3={no}"]
        shown, as_json = run("agent", "status", *agents), run("agent", "status", *agents, "-o", "json")
    assert shown.exit_code == as_json.exit_code == 1
    assert [line.split()[:2] for line in shown.stdout.splitlines()[2:5]] == [
        ["10.0.0.1", "up"],
        ["10.0.0.2", "down"],
        ["10.0.0.3", "down"],
    ]
    first, second, third = json.loads(as_json.stdout)["agents"]
    assert (first["up"], first["engine"], first["mode"], first["flows"]) == (True, "xdp", "native", 5)
    assert (second["up"], second["address"]) == (False, "10.0.0.2")
    assert "is no agent" in third["error"]


def table(*backends: str, **keys: object) -> dict[str, object]:
    return {
        **KEYS,
        "binds": [{"ip": "203.0.113.10", "proto": "tcp", "port": 443}],
        "backends": [{"ip": ip, "state": "active", "healthy": True} for ip in backends],
        **keys,
    }


def planned(*tables: dict[str, object], every_pair: bool = False, hops: int | None = None) -> list[Link]:
    text = json.dumps({"tables": tables})
    return links_of(parse_tables(text, source="tables.json"), 1500, hops, every_pair=every_pair)


def ways(links: list[Link]) -> list[str]:
    return [f"{str(link.via)[-1] if link.via else ''}>{str(link.to)[-1]}" for link in links]


def test_every_proxy_is_reached_once_and_sends_and_receives_once() -> None:
    three = table("10.0.0.1", "10.0.0.2", "10.0.0.3")
    assert ways(planned(three)) == [">1", ">2", ">3", "1>2", "2>3", "3>1"]
    assert ways(planned(three, every_pair=True)) == [">1", ">2", ">3", "1>2", "1>3", "2>1", "2>3", "3>1", "3>2"]
    assert ways(planned(table("10.0.0.1"))) == [">1"]


def test_needed_is_what_the_tables_hops_take() -> None:
    assert {link.needed for link in planned(table("10.0.0.1"))} == {1536}
    assert {link.needed for link in planned(table("10.0.0.1", "10.0.0.2"))} == {1540}
    four = table("10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4", hops=4)
    assert {link.needed for link in planned(four)} == {1548}
    assert {link.needed for link in planned(four, hops=8)} == {1564}
    # A proxy of two tables is asked once, for the larger packets.
    other = table("10.0.0.1", binds=[{"ip": "203.0.113.11", "proto": "udp", "port": 443}])
    both = planned({**other, "name": "other"}, {**four, "name": "web"})
    assert len(both) == 8
    assert {link.needed for link in both} == {1548}


def test_inactive_proxies_are_not_asked() -> None:
    off = {"ip": "10.0.0.2", "state": "inactive", "healthy": True}
    backends = [{"ip": "10.0.0.1", "state": "active", "healthy": True}, off]
    assert ways(planned(table(backends=backends))) == [">1"]


@pytest.mark.parametrize("hops", [2, 3, 4])
def test_probe_has_the_size_and_the_hops_of_a_directors_packet(hops: int) -> None:
    us = IPv4Address("10.9.9.9")
    for link in planned(table("10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4", hops=hops)):
        packet = link.packet(us, us, 7, 1537, 19523)
        tunnel = parse_tunnel(packet)
        assert len(packet) == 1537
        assert tunnel.destination == link.first
        assert len(tunnel.gue.hops) == hops - 1
        assert set(tunnel.gue.hops) == {link.to}


def test_tables_are_needed() -> None:
    asked = CliRunner(env={"GLB_STORE": None}).invoke(main, ["mtu-check"])
    assert asked.exit_code == 2
    assert "--store" in asked.stderr
