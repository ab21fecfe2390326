"""agent.toml: what is understood, and that every fault is named by its path, all at once."""

from __future__ import annotations

import json
from ipaddress import ip_network
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from glb.errors import ConfigError
from proxy_agent import config
from proxy_agent.cli import main
from proxy_agent.mss import MssRule

LEAST = {"interface": "eth0", "vips": ["198.51.100.1"]}


def parsed(**keys: object) -> config.AgentConfig:
    return config.parse(json.dumps({**LEAST, **keys}).encode(), "agent.json")


def problems(**keys: object) -> list[str]:
    given = {key: value for key, value in {**LEAST, **keys}.items() if value is not None}
    with pytest.raises(ConfigError) as caught:
        config.parse(json.dumps(given).encode(), "agent.json")
    assert caught.value.exit_code == 3
    return [str(problem) for problem in caught.value.problems]


def test_defaults() -> None:
    assert parsed() == config.AgentConfig(
        interface="eth0",
        vips=(ip_network("198.51.100.1"),),
        engine="auto",
        gue_port=19523,
        allowed_sources=None,
        admin=config.AdminAddress("127.0.0.1", 9524),
        queue_num=19523,
        state_dir=Path("/run/glb-proxy-agent"),
        pin_dir=Path("/sys/fs/bpf/glb-proxy-agent"),
        socket_namespaces=(),
        vips_on_lo=True,
        mss=MssRule(automatic=True),
        hops=4,
    )
    assert parsed(pin_dir="").pin_dir is None
    assert problems(engine="netfilter", socket_namespaces=["web"]) == ["$.socket_namespaces: needs the xdp engine"]


def test_the_three_formats_mean_the_same() -> None:
    keys = {**LEAST, "gue_port": 6080, "allowed_sources": ["10.0.0.0/8"]}
    toml = "\n".join(f"{key} = {json.dumps(value)}" for key, value in keys.items())
    expected = config.parse(json.dumps(keys).encode(), "a.json")
    assert config.parse(toml.encode(), "a.toml") == expected
    assert config.parse(yaml.safe_dump(keys).encode(), "a.yaml") == expected


@pytest.mark.parametrize(
    "text, address, private",
    [
        ("127.0.0.1:9524", config.AdminAddress("127.0.0.1", 9524), True),
        ("[::1]:80", config.AdminAddress("::1", 80), True),
        ("10.0.0.2:9524", config.AdminAddress("10.0.0.2", 9524), False),
        ("0.0.0.0:1", config.AdminAddress("0.0.0.0", 1), False),
        ("unix:/run/a.sock", config.AdminAddress(path="/run/a.sock"), True),
    ],
)
def test_admin_addresses(text: str, address: config.AdminAddress, private: bool) -> None:
    found = parsed(admin=text).admin
    assert (found, found.is_private, str(found)) == (address, private, text)


@pytest.mark.parametrize(
    "key, value, problem",
    [
        ("interface", None, "$.interface: is missing"),
        ("interface", "", "$.interface: Expected `str` of length >= 1"),
        (
            "interface",
            "a-name-that-is-too-long",
            "$.interface: 'a-name-that-is-too-long' is no interface name (1 to 15 bytes, no space or /)",
        ),
        ("interface", "../x", "$.interface: '../x' is no interface name (1 to 15 bytes, no space or /)"),
        ("interface", 7, "$.interface: Expected `str`, got `int`"),
        ("vips", None, "$.vips: is missing"),
        ("vips", [], "$.vips: Expected `array` of length >= 1"),
        ("vips", ["198.51.100.1", 5], "$.vips[1]: Expected `str`, got `int`"),
        ("vips", ["198.51.100.256"], "$.vips[0]: '198.51.100.256' is no IP address or prefix"),
        (
            "vips",
            ["198.51.100.1/24"],
            "$.vips[0]: 198.51.100.1/24 has bits set behind the prefix; did you mean 198.51.100.0/24?",
        ),
        (
            "vips",
            ["198.51.100.0/24", "198.51.100.9"],
            "$.vips[1]: 198.51.100.9 is already covered by or covers 198.51.100.0/24",
        ),
        ("vips", ["224.0.0.1"], "$.vips[0]: 224.0.0.1 cannot be a VIP"),
        ("vips", ["::1"], "$.vips[0]: ::1 cannot be a VIP"),
        ("vips", ["0.0.0.0/0"], "$.vips[0]: 0.0.0.0/0 cannot be a VIP"),
        (
            "allowed_sources",
            [],
            "$.allowed_sources: is empty, so nothing could ever arrive; leave it out to allow any source",
        ),
        ("allowed_sources", ["host"], "$.allowed_sources[0]: 'host' is no IP address or prefix"),
        ("engine", "iptables", "$.engine: 'iptables' is no engine; expected auto, xdp or netfilter"),
        ("socket_namespaces", ["a/b"], "$.socket_namespaces[0]: 'a/b' is neither a name nor an absolute path"),
        ("socket_namespaces", ["x"] * 17, "$.socket_namespaces: at most 16 can be looked into"),
        ("vips_on_lo", 1, "$.vips_on_lo: Expected `bool`, got `int`"),
        ("pin_dir", "bpf", "$.pin_dir: 'bpf' must be an absolute path in a BPF file system, or empty"),
        ("gue_port", 0, "$.gue_port: Expected `int` >= 1"),
        ("gue_port", 65536, "$.gue_port: Expected `int` <= 65535"),
        ("gue_port", "19523", "$.gue_port: Expected `int`, got `str`"),
        ("queue_num", -1, "$.queue_num: Expected `int` >= 0"),
        ("admin", "9524", "$.admin: '9524' is neither ADDRESS:PORT, [IPV6]:PORT nor unix:/PATH"),
        ("admin", "localhost:9524", "$.admin: 'localhost:9524' is neither ADDRESS:PORT, [IPV6]:PORT nor unix:/PATH"),
        ("admin", "127.0.0.1:", "$.admin: '127.0.0.1:' is neither ADDRESS:PORT, [IPV6]:PORT nor unix:/PATH"),
        ("admin", "unix:a.sock", "$.admin: 'unix:a.sock': the socket's path must be absolute"),
        ("state_dir", "run", "$.state_dir: 'run' must be an absolute path"),
        ("allowed_source", ["10.0.0.1"], "$.allowed_source: unknown key; did you mean allowed_sources?"),
    ],
)
def test_fault_is_named_by_its_path(key: str, value: object, problem: str) -> None:
    assert problems(**{key: value}) == [problem]


def test_all_faults_are_named_at_once() -> None:
    found = problems(interface=None, vips=["x", "y"], gue_port=-1, enigne="auto")
    assert [problem.partition(":")[0] for problem in found] == [
        "$.enigne",
        "$.interface",
        "$.gue_port",
        "$.vips[0]",
        "$.vips[1]",
    ]


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("a.toml", "interface = ", "not TOML"),
        ("a.json", "{", "not JSON"),
        ("a.yaml", "a: [", "not YAML"),
        ("a.toml", "\xff", "not TOML"),
        ("a.json", "[]", "expected a table of keys, found list"),
    ],
)
def test_text_that_is_no_table_is_refused(name: str, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config.parse(text.encode("latin-1"), name)


def test_open_doors_are_warned_about() -> None:
    assert [warning.split()[0] for warning in parsed().warnings()] == ["allowed_sources"]
    assert parsed(allowed_sources=["10.0.0.1"]).warnings() == []
    assert "IPv6" in parsed(allowed_sources=["fd00::/8"]).warnings()[0]
    assert "not loopback" in parsed(allowed_sources=["10.0.0.1"], admin="0.0.0.0:9524").warnings()[0]


def test_check_exits_with_3_and_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "agent.toml"
    path.write_text('interface = "eth0"\n')
    refused = CliRunner().invoke(main, ["check", "--config", str(path)])
    assert (refused.exit_code, refused.output) == (3, f"glb-proxy-agent: {path}: $.vips: is missing\n")
    path.write_text('interface = "eth0"\nvips = ["198.51.100.1"]\nallowed_sources = ["10.0.0.1"]\n')
    accepted = CliRunner().invoke(main, ["check", "--config", str(path)])
    assert (accepted.exit_code, accepted.output) == (0, f"{path}: ok\n")


def test_missing_file_is_one_message(tmp_path: Path) -> None:
    missing = CliRunner().invoke(main, ["check", "--config", str(tmp_path / "none.toml")])
    assert missing.exit_code == 3
    assert "cannot be read: No such file" in missing.output


def test_every_command_has_an_example_in_its_help() -> None:
    for name, command in main.commands.items():
        assert f"Example: glb-proxy-agent {name}" in (command.help or "")


@pytest.mark.parametrize(
    "mss, mtu_bytes, hops, values",
    [
        ("auto", 1500, 2, {4: 1420, 6: 1400}),  # docs/operate/mtu.md
        ("auto", 1500, 8, {4: 1396, 6: 1376}),
        ("auto", 9000, 4, {4: 8912, 6: 8892}),
        ("auto", 100, 4, {4: 88, 6: 88}),
        ("off", 1500, 2, {4: 0, 6: 0}),
        (1300, 1500, 2, {4: 1300, 6: 1300}),
        ({"ipv6": 1380}, 1500, 2, {4: 0, 6: 1380}),
    ],
)
def test_mss_is_computed_or_what_the_file_says(mss: object, mtu_bytes: int, hops: int, values: dict[int, int]) -> None:
    assert parsed(mss=mss).mss.values(mtu_bytes, hops) == values


def test_faults_of_the_mss_are_named() -> None:
    assert problems(mss="1400") == ['$.mss: \'1400\': expected "auto", "off", a number, or {ipv4 = .., ipv6 = ..}']
    assert problems(mss=50) == ["$.mss: 50 is no MSS: 88 to 65495, or 0 for none"]
    assert problems(mss={"ipv4": -1, "v6": 1400}) == [
        "$.mss.ipv4: -1 is no MSS: 88 to 65495, or 0 for none",
        "$.mss.v6: unknown key; known are ipv4, ipv6",
    ]
    assert problems(hops=0) == ["$.hops: Expected `int` >= 1"]


def test_what_the_programs_maps_have_no_room_for_is_refused() -> None:
    four = [f"10.{i >> 8}.{i & 255}.1" for i in range(4097)]
    assert problems(vips=four) == ["$.vips: at most 4096 of ipv4; prefixes cover more"]
    six = [f"2001:db8::{i:x}" for i in range(1, 4098)]
    assert problems(vips=["192.0.2.1", *six]) == ["$.vips: at most 4096 of ipv6; prefixes cover more"]
    sources = [f"10.{i >> 8}.{i & 255}.0/24" for i in range(16385)]
    assert problems(allowed_sources=sources) == ["$.allowed_sources: at most 16384; prefixes cover more"]
    assert len(parsed(allowed_sources=sources[1:]).allowed_sources or ()) == 16384
