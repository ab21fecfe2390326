"""director.toml: what is read, and what is refused at which path."""

from __future__ import annotations

import json
from ipaddress import IPv4Address

import corpus
import pytest

from glb.director.config import Config, parse_config
from glb.errors import ConfigError


def problems(text: str, format: str = "toml") -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse_config(text, source="director.toml", format=format)  # type: ignore[arg-type]
    return [str(problem) for problem in caught.value.problems]


def test_defaults() -> None:
    assert parse_config('interface = "eth0"\ntable = "t.json"', source="x") == Config(interface="eth0", store="t.json")


def test_every_key() -> None:
    config = parse_config(
        """
        interface = "eth0"
        datapath = "cython"
        store = "file:///etc/glb/tables.json"
        outbound_src_ip = "192.0.2.1"
        outbound_gateway_mac = "02:00:5E:00:00:01"
        outbound_src_mac = "02:00:5e:00:00:02"
        hash_fields = { src_addr = true, dst_port = true, src_port = false }
        alt_hash_fields = { src_addr = true }
        forward_icmp_ping_responses = false
        admin = "unix:/run/glb-director.sock"
        announce_device = "glb0"
        pin_dir = ""
        too_big_answers_per_s = 0
        worker_cores = [1, 0]
        busy_poll = true
        """,
        source="x",
    )
    assert config == Config(
        interface="eth0",
        datapath="cython",
        store="file:///etc/glb/tables.json",
        outbound_src_ip=IPv4Address("192.0.2.1"),
        outbound_gateway_mac=bytes.fromhex("02005e000001"),
        outbound_src_mac=bytes.fromhex("02005e000002"),
        hash_fields=1 | 8,
        alt_hash_fields=1,
        forward_icmp_ping_responses=False,
        admin="unix:/run/glb-director.sock",
        announce_device="glb0",
        pin_dir=None,
        too_big_answers_per_s=0,
        worker_cores=(1, 0),
        busy_poll=True,
    )


def test_glbs_own_director_conf_is_understood() -> None:
    for name, document in json.loads((corpus.REFERENCE / "directors.json").read_text()).items():
        config = parse_config(json.dumps(document), source=name, format="json")
        assert config.outbound_src_ip == IPv4Address(document["outbound_src_ip"])
        assert "flow_paths" in config.warnings[0]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('interfaces = "eth0"', '$.interfaces: unknown key; did you mean "interface"?'),
        ('interface = "a-name-that-is-too-long"', "at most 15 characters"),
        ("interface = 3", "$.interface: is an integer; must be a string"),
        ('datapath = "fast"', '$.datapath: is "fast"; must be auto, xdp or cython'),
        ('pin_dir = "bpf"', "must be an absolute path"),
        ("worker_cores = []", "$.worker_cores: has 0 entries"),
        ("worker_cores = 3", "$.worker_cores: is an integer; must be a list"),
        ("worker_cores = [0, -1]", "$.worker_cores[1]: is -1"),
        ("worker_cores = [0, 3, 0]", "$.worker_cores[2]: is 0, as $.worker_cores[0]; name a core once"),
        ("busy_poll = 50", "$.busy_poll: is 50; must be true or false"),
        ("too_big_answers_per_s = -1", "$.too_big_answers_per_s: is -1"),
        ('table = "a"\nstore = "b"', "$.store: stands beside $.table"),
        ('table = ""', "$.table: is empty"),
        ('outbound_src_ip = "2001:db8::1"', "must be an IPv4 address"),
        ('outbound_src_ip = "10.0.0.256"', "$.outbound_src_ip"),
        ('outbound_gateway_mac = "02:00:5e:00:00"', "must be a MAC address"),
        ('outbound_gateway_mac = "02:00:5e:00:00:0g"', "must be a MAC address"),
        ('outbound_gateway_mac = "ff:ff:ff:ff:ff:ff"', "one station's address"),
        ("hash_fields = { src_addr = false }", "$.hash_fields: chooses no field"),
        ("alt_hash_fields = {}", "$.alt_hash_fields: chooses no field"),
        ("hash_fields = { source = true }", "$.hash_fields.source: unknown key"),
        ("hash_fields = { src_addr = 1 }", "$.hash_fields.src_addr: is 1; must be true or false"),
        ('forward_icmp_ping_responses = "no"', "must be true or false"),
        ('admin = "9523"', "must be host:port"),
        ('admin = "127.0.0.1:0"', "must be host:port"),
        ("interface = ", "not TOML"),
    ],
)
def test_refused(text: str, problem: str) -> None:
    (found,) = problems(text)
    assert problem in found


def test_every_problem_is_named_at_once() -> None:
    assert len(problems('interface = 1\ndatapath = 2\nadmin = "x"\nfoo = 1')) == 4
