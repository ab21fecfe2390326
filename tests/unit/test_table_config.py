"""Reading forwarding tables: every fault refused by its path, and what is taken means what it says."""

from __future__ import annotations

import ipaddress
import json
from typing import Any

import pytest

from glb.errors import ConfigError
from glb.table.config import Bind, Healthchecks, State, TableSet, parse_tables
from glb.table.document import decode, format_of

from .table_samples import HASH_KEY, SEED, document, text


def _problems(content: str | bytes, **options: Any) -> dict[str, str]:
    with pytest.raises(ConfigError) as refusal:
        parse_tables(content, source="tables.json", **options)
    assert refusal.value.exit_code == 3
    return {problem.path: problem.message for problem in refusal.value.problems}


def _bind(**keys: object) -> str:
    return text(binds=[keys])


def _backend(**keys: object) -> str:
    return text(backends=[{"ip": "10.0.0.9", "state": "active"}, keys])


def _weight(weight: object, **keys: object) -> str:
    backends = [{"ip": "10.0.0.9", "state": "active"}, {"ip": "10.0.0.1", "state": "active", "weight": weight}]
    return text(backends=backends, **keys)


def _zone(zone: object, **keys: object) -> str:
    backends = [{"ip": "10.0.0.9", "state": "active"}, {"ip": "10.0.0.1", "state": "active", "zone": zone}]
    return text(backends=backends, **keys)


_BIND = "$.tables[0].binds[0]"
_BACKEND = "$.tables[0].backends[1]"

# name -> (document, path of the one problem, part of its message, whether --lenient takes it)
_REFUSED: dict[str, tuple[str, str, str, bool]] = {
    # the regressions of FIELD.md 1.4: what GLB's builder accepts and nobody wants
    "glb-0-backends": (text(backends=[]), "$.tables[0].backends", "has 0 entries; must have 1 to 4096", False),
    "glb-duplicate-backend": (
        text(backends=[{"ip": "10.0.0.1", "state": "active"}] * 2),
        "$.tables[0].backends[1].ip",
        "10.0.0.1 is $.tables[0].backends[0] already",
        True,
    ),
    "glb-key-not-hex": (text(hash_key="7d3g" + "0" * 28), "$.tables[0].hash_key", 'character 4 is "g"', False),
    "glb-seed-not-hex": (text(seed="é" * 32), "$.tables[0].seed", "character 1 is", False),
    "glb-no-usable-slot": (
        text(backends=[{"ip": "10.0.0.1", "state": "inactive"}]),
        "$.tables[0].backends",
        "every backend is inactive",
        False,
    ),
    # shapes
    "root-is-a-list": ("[]", "$", "is a list; must be an object", False),
    "tables-is-an-object": ('{"tables": {}}', "$.tables", "is an object; must be a list", False),
    "table-is-null": ('{"tables": [null]}', "$.tables[0]", "is null; must be an object", False),
    "257-tables": (
        json.dumps({"tables": [document(name=f"t{n}", binds=[{"ip": f"10.1.{n // 256}.{n % 256}", "proto": "tcp",
            "port": 80}])["tables"][0] for n in range(257)]}),
        "$.tables",
        "has 257 entries; must have 1 to 256",
        False,
    ),
    "backend-is-text": (text(backends=["x"]), "$.tables[0].backends[0]", "is a string; must be an object", False),
    "key-is-a-number": (text(hash_key=7), "$.tables[0].hash_key", "is an integer; must be a string", False),
    # keys
    "unknown-key": (text(hash_kye="00"), "$.tables[0].hash_kye", 'did you mean "hash_key"?', True),
    "unknown-root-key": ('{"version": 1, ' + text()[1:], "$.version", "unknown key", True),
    "key-given-twice": (text().replace('"proto"', '"port": 81, "proto"'), f"{_BIND}.port", "more than once", True),
    "weight-101": (_weight(101), f"{_BACKEND}.weight", "is 101; must be an integer from 0 to 100", True),
    "weight-negative": (_weight(-1), f"{_BACKEND}.weight", "is -1; must be an integer from 0 to 100", True),
    "weight-is-a-fraction": (_weight(0.5), f"{_BACKEND}.weight", "is 0.5; must be an integer", True),
    "weight-is-true": (_weight(True), f"{_BACKEND}.weight", "is true; must be an integer", True),
    "weight-is-null": (_weight(None), f"{_BACKEND}.weight", "is null; must be an integer", True),
    "weight-is-text": (_weight("1"), f"{_BACKEND}.weight", 'is "1"; must be an integer', True),
    "weight-is-huge": (_weight(10**4000), f"{_BACKEND}.weight", "must be an integer from 0 to 100", True),
    "weight-with-glb2": (_weight(2, row_rule="glb2"), f"{_BACKEND}.weight", "is 2; the row rule glb2 has no", True),
    "every-weight-0": (
        text(backends=[{"ip": f"10.0.0.{n}", "state": "active", "weight": 0} for n in (1, 2)]),
        "$.tables[0].backends",
        "every backend has weight 0; at least one must have 1 to 100",
        False,
    ),
    "zone-is-a-number": (_zone(1), f"{_BACKEND}.zone", "is 1; must be 1 to 64 printable characters", True),
    "zone-is-null": (_zone(None), f"{_BACKEND}.zone", "is null; must be", True),
    "zone-is-empty": (_zone(""), f"{_BACKEND}.zone", 'is ""; must be', True),
    "zone-with-newline": (_zone("a\n"), f"{_BACKEND}.zone", "printable", True),
    "zone-too-long": (_zone("a" * 65), f"{_BACKEND}.zone", "1 to 64", True),
    "zone-with-glb2": (_zone("a", row_rule="glb2"), f"{_BACKEND}.zone", "the row rule glb2 has no zones", True),
    # table keys
    "rows-no-power-of-two": (text(rows=65537), "$.tables[0].rows", "is 65537; must be a power of two", False),
    "rows-0": (text(rows=0), "$.tables[0].rows", "is 0; must be 256 to 1048576", False),
    "rows-128": (text(rows=128), "$.tables[0].rows", "is 128; must be 256 to 1048576", False),
    "rows-too-many": (text(rows=2**21), "$.tables[0].rows", "is 2097152; must be 256 to 1048576", False),
    "rows-is-text": (text(rows="65536"), "$.tables[0].rows", 'is "65536"; must be an integer', False),
    "rows-is-true": (text(rows=True), "$.tables[0].rows", "is true; must be an integer", False),
    "rows-with-glb2": (text(rows=131072, row_rule="glb2"), "$.tables[0].rows", "glb2 has always 65536", False),
    "hops-1": (text(hops=1), "$.tables[0].hops", "is 1; must be 2 to 4", False),
    "hops-true": (text(hops=True), "$.tables[0].hops", "is true; must be an integer", False),
    "hops-3-with-glb2": (text(hops=3, row_rule="glb2"), "$.tables[0].hops", "glb2 has always 2", False),
    "row-rule": (text(row_rule="first"), "$.tables[0].row_rule", "must be first_usable or glb2", False),
    "empty-name": (text(name=""), "$.tables[0].name", "must be 1 to 64 printable characters", True),
    "name-with-newline": (text(name="a\nb"), "$.tables[0].name", "printable", True),
    # backends
    "backend-ipv6": (_backend(ip="2001:db8::1", state="active"), f"{_BACKEND}.ip", "must be IPv4", True),
    "backend-leading-zeros": (_backend(ip="10.0.0.01", state="active"), f"{_BACKEND}.ip", "no leading zeros", False),
    "backend-zone-id": (_backend(ip="fe80::1%eth0", state="active"), f"{_BACKEND}.ip", "zone", False),
    "backend-multicast": (_backend(ip="224.0.0.1", state="active"), f"{_BACKEND}.ip", "address of one host", True),
    "backend-zero": (_backend(ip="0.0.0.0", state="active"), f"{_BACKEND}.ip", "address of one host", True),
    "backend-ip-number": (_backend(ip=167772161, state="active"), f"{_BACKEND}.ip", "is an integer", False),
    "state-near": (_backend(ip="10.0.0.1", state="drianing"), f"{_BACKEND}.state", 'did you mean "draining"?', False),
    "state-is-a-list": (_backend(ip="10.0.0.1", state=[]), f"{_BACKEND}.state", "is a list; must be", False),
    "healthy-is-text": (
        _backend(ip="10.0.0.1", state="active", healthy="yes"), f"{_BACKEND}.healthy", "true or false", True
    ),
    "healthy-is-null": (
        _backend(ip="10.0.0.1", state="active", healthy=None), f"{_BACKEND}.healthy", "true or false", True
    ),
    "healthcheck-port": (
        _backend(ip="10.0.0.1", state="active", healthchecks={"http": 0}),
        f"{_BACKEND}.healthchecks.http",
        "is 0; must be 1 to 65535",
        False,
    ),
    "healthcheck-unknown": (
        _backend(ip="10.0.0.1", state="active", healthchecks={"htttp": 80}),
        f"{_BACKEND}.healthchecks.htttp",
        'did you mean "http"?',
        True,
    ),
    # binds
    "port-0": (_bind(ip="192.0.2.1", proto="tcp", port=0), f"{_BIND}.port", '"port_start": 0, "port_end": 65535', True),
    "port-absent": (_bind(ip="192.0.2.1", proto="tcp"), f"{_BIND}.port", "is missing", True),
    "port-is-text": (_bind(ip="192.0.2.1", proto="tcp", port="80"), f"{_BIND}.port", 'is "80"', True),
    "port-is-a-fraction": (_bind(ip="192.0.2.1", proto="tcp", port=80.0), f"{_BIND}.port", "is 80.0", True),
    "port-beside-range": (
        _bind(ip="192.0.2.1", proto="tcp", port=80, port_start=1, port_end=2), f"{_BIND}.port", "one or the other", True
    ),
    "range-without-end": (
        _bind(ip="192.0.2.1", proto="tcp", port_start=1), f"{_BIND}.port_end", "is missing beside port_start", True
    ),
    "range-reversed": (
        _bind(ip="192.0.2.1", proto="tcp", port_start=9, port_end=1), f"{_BIND}.port_end", "below port_start 9", True
    ),
    "range-too-far": (
        _bind(ip="192.0.2.1", proto="tcp", port_start=1, port_end=65536), f"{_BIND}.port_end", "0 to 65535", False
    ),
    "prefix-is-text": (_bind(ip="192.0.2.0/abc", proto="tcp", port=1), f"{_BIND}.ip", 'prefix length "abc"', True),
    "prefix-is-empty": (_bind(ip="192.0.2.0/", proto="tcp", port=1), f"{_BIND}.ip", 'prefix length ""', True),
    "prefix-with-letter": (_bind(ip="192.0.2.0/24x", proto="tcp", port=1), f"{_BIND}.ip", 'prefix length "24x"', True),
    "prefix-leading-zero": (_bind(ip="192.0.2.0/024", proto="tcp", port=1), f"{_BIND}.ip", "without leading", True),
    "prefix-netmask": (
        _bind(ip="192.0.2.0/255.255.255.0", proto="tcp", port=1), f"{_BIND}.ip", "in decimal", False
    ),
    "bind-zone-id": (_bind(ip="fe80::1%eth0/64", proto="tcp", port=1), f"{_BIND}.ip", "zone", False),
    "proto-upper-case": (_bind(ip="192.0.2.1", proto="TCP", port=1), f"{_BIND}.proto", "must be tcp or udp", False),
    "bind-given-twice": (
        text(binds=[{"ip": "192.0.2.1", "proto": "tcp", "port": 80}] * 2),
        "$.tables[0].binds[1]",
        "192.0.2.1/32 port 80 is bound at $.tables[0].binds[0] already",
        True,
    ),
    "ranges-overlap": (
        text(
            binds=[
                {"ip": "192.0.2.0/24", "proto": "tcp", "port_start": 10, "port_end": 20},
                {"ip": "192.0.2.7/24", "proto": "tcp", "port_start": 20, "port_end": 30},
            ]
        ),
        "$.tables[0].binds[1]",
        "192.0.2.0/24 port 20-20 is bound",
        True,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", _REFUSED)
def test_refused(name: str) -> None:
    content, path, message, _ = _REFUSED[name]
    problems = _problems(content)
    assert list(problems) == [path]
    assert message in problems[path]


@pytest.mark.parametrize("name", _REFUSED)
def test_lenient_takes_only_what_glb_accepts_and_warns(name: str) -> None:
    content, path, _, lenient = _REFUSED[name]
    if not lenient:
        assert path in _problems(content, lenient=True)
        return
    warnings = parse_tables(content, source="tables.json", lenient=True).warnings
    assert path in [warning.path for warning in warnings]


def test_every_problem_is_named_at_once() -> None:
    content = text(
        hash_key="00",
        row_rule="x",
        binds=[{"ip": "192.0.2.256", "proto": "sctp", "port": -1}, {"proto": "tcp", "port": 1}],
        backends=[{"ip": "::1", "state": "up"}, {"ip": "10.0.0.1"}],
        extra=1,
    )
    assert set(_problems(content)) == {
        "$.tables[0].extra",
        "$.tables[0].hash_key",
        "$.tables[0].row_rule",
        "$.tables[0].binds[0].ip",
        "$.tables[0].binds[0].proto",
        "$.tables[0].binds[0].port",
        "$.tables[0].binds[1].ip",
        "$.tables[0].backends[0].ip",
        "$.tables[0].backends[0].state",
        "$.tables[0].backends[1].state",
    }


def test_a_secret_is_never_shown() -> None:
    secret = "0123456789abcdef0123456789abcdeX"
    assert secret[:6] not in str(_problems(text(hash_key=secret, seed=secret + "00")))


def test_an_odd_key_is_quoted_in_its_path() -> None:
    problems = _problems(text(**{"a\nb: ok": 1, "\ud800": 1, "k" * 999: 1}))
    assert list(problems) == ['$.tables[0]["a\\nb: ok"]', '$.tables[0]["\\ud800"]', f'$.tables[0]["{"k" * 44}...]']
    assert all(path.isprintable() for path in problems)


def test_binds_are_compared_across_tables() -> None:
    tables = [document(name=name)["tables"][0] for name in ("a", "b")]
    assert list(_problems(json.dumps({"tables": tables}))) == ["$.tables[1].binds[0]"]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param(("192.0.2.0/24", "tcp", 80, 80), ("192.0.2.1", "tcp", 80, 80), id="longer-prefix"),
        pytest.param(("192.0.2.1", "tcp", 80, 80), ("192.0.2.1", "tcp", 1, 100), id="narrower-range"),
        pytest.param(("192.0.2.1", "tcp", 80, 80), ("192.0.2.1", "udp", 80, 80), id="other-protocol"),
        pytest.param(("192.0.2.1", "tcp", 10, 20), ("192.0.2.1", "tcp", 21, 31), id="ranges-side-by-side"),
    ],
)
def test_binds_with_a_clear_precedence_are_taken(one: tuple[object, ...], other: tuple[object, ...]) -> None:
    binds = [dict(zip(("ip", "proto", "port_start", "port_end"), bind, strict=True)) for bind in (one, other)]
    assert len(parse_tables(text(binds=binds), source="t").tables[0].binds) == 2


def test_table_names_are_unique() -> None:
    tables = [document(name="a")["tables"][0], document(name="a")["tables"][0]]
    tables[1]["binds"][0]["port"] = 81
    assert _problems(json.dumps({"tables": tables})) == {"$.tables[1].name": '"a" is $.tables[0] already'}


# ---- what is taken


def test_values() -> None:
    entry = parse_tables(
        text(
            name=...,
            hops=3,
            rows=1024,
            binds=[
                {"ip": "198.51.100.77/24", "proto": "udp", "port_start": 0, "port_end": 65535},
                {"ip": "2001:db8::1", "proto": "tcp", "port": 443},
            ],
            backends=[
                {"ip": "10.0.0.1", "state": "filling", "healthy": False, "weight": 0},
                {
                    "ip": "10.0.0.2",
                    "state": "draining",
                    "weight": 100,
                    "zone": "rack 1",
                    "healthchecks": {"http": 80, "http_uri": "/up", "gue": 19523},
                },
            ],
        ),
        source="t",
    ).tables[0]
    assert (entry.name, entry.hash_key, entry.seed) == ("table-0", HASH_KEY, SEED)
    assert (entry.hops, entry.row_rule, entry.n_rows) == (3, "first_usable", 1024)
    network = ipaddress.ip_network("198.51.100.0/24")
    assert entry.binds[0] == Bind(network, 17, 0, 65535, written=ipaddress.IPv4Address("198.51.100.77"))
    assert str(entry.binds[0].address) == "198.51.100.77"
    assert entry.binds[1] == Bind(ipaddress.ip_network("2001:db8::1/128"), 6, 443, 443)
    assert str(entry.binds[1].address) == "2001:db8::1"
    first, second = entry.backends
    assert (str(first.address), first.state, first.healthy) == ("10.0.0.1", State.filling, False)
    assert (second.state, second.healthy) == (State.draining, None)
    assert (first.weight, first.zone, second.weight, second.zone) == (0, None, 100, "rack 1")
    assert second.healthchecks == Healthchecks(http=80, http_uri="/up", gue=19523)


def test_host_bits_are_taken_with_a_warning() -> None:
    tables = parse_tables(_bind(ip="198.51.100.77/24", proto="tcp", port=80), source="t")
    assert [str(warning) for warning in tables.warnings] == [
        f"{_BIND}.ip: 198.51.100.77/24 has host bits set; it is 198.51.100.0/24"
    ]


def test_a_backend_without_a_zone_among_others_is_warned_of() -> None:
    (warning,) = parse_tables(_zone("a"), source="t").warnings
    assert str(warning) == "$.tables[0].backends: 1 of 2 have no zone; none of those is ever the hop in another zone"


def test_what_glb_ignores_is_ignored_with_the_rule_glb2_when_read_leniently() -> None:
    for content in (_weight(7, row_rule="glb2"), _zone("a", row_rule="glb2"), _weight("x"), _zone(1)):
        backend = parse_tables(content, source="t", lenient=True).tables[0].backends[1]
        assert (backend.weight, backend.zone) == (1, None)


def test_weights_and_zones_count_when_read_leniently() -> None:
    """An unknown key elsewhere must not change where flows go."""
    assert parse_tables(_weight(7), source="t", lenient=True).tables[0].backends[1].weight == 7
    assert parse_tables(_zone("a"), source="t", lenient=True).tables[0].backends[1].zone == "a"


@pytest.mark.parametrize("n_rows", [256, 65536, 2**20])
def test_rows_are_a_power_of_two(n_rows: int) -> None:
    assert parse_tables(text(rows=n_rows), source="t").tables[0].n_rows == n_rows


@pytest.mark.parametrize(
    ("ip", "bits"),
    [("192.0.2.0/", 0), ("192.0.2.0/abc", 0), ("192.0.2.0/24x", 24), ("192.0.2.0/ +7", 7), ("192.0.2.0/000000009", 9)],
)
def test_lenient_prefix_is_what_atoi_reads(ip: str, bits: int) -> None:
    tables = parse_tables(_bind(ip=ip, proto="tcp", port=80), source="t", lenient=True)
    assert tables.tables[0].binds[0].network.prefixlen == bits


def test_lenient_negative_prefix_is_refused_as_by_glb() -> None:
    assert "prefix length -1" in _problems(_bind(ip="192.0.2.0/-1", proto="tcp", port=80), lenient=True)[f"{_BIND}.ip"]


def test_lenient_ports_mean_what_they_mean_to_glb() -> None:
    for keys in ({"port": "80"}, {}, {"port": 0}, {"port": None}):
        bind = parse_tables(_bind(ip="192.0.2.1", proto="tcp", **keys), source="t", lenient=True).tables[0].binds[0]
        assert (bind.port_first, bind.port_last) == (0, 0)
    keys = {"port": 80, "port_start": 1, "port_end": 9}
    bind = parse_tables(_bind(ip="192.0.2.1", proto="tcp", **keys), source="t", lenient=True).tables[0].binds[0]
    assert (bind.port_first, bind.port_last) == (80, 80)


# ---- documents

_TOML = f"""
[[tables]]
name = "web"
hash_key = "{HASH_KEY.hex()}"
seed = "{SEED.hex()}"
binds = [{{ ip = "203.0.113.10", proto = "tcp", port = 80 }}]
backends = [
  {{ ip = "10.0.0.1", state = "active", healthy = true }},
  {{ ip = "10.0.0.2", state = "active", healthy = true }},
  {{ ip = "10.0.0.3", state = "active", healthy = true }},
]
"""

_YAML = f"""
tables:
  - name: web
    hash_key: "{HASH_KEY.hex()}"
    seed: "{SEED.hex()}"
    binds: [{{ip: 203.0.113.10, proto: tcp, port: 80}}]
    backends:
      - {{ip: 10.0.0.1, state: active, healthy: true}}
      - {{ip: 10.0.0.2, state: active, healthy: true}}
      - {{ip: 10.0.0.3, state: active, healthy: true}}
"""


def test_all_formats_say_the_same() -> None:
    expected = parse_tables(text(), source="t")
    assert parse_tables(_TOML, source="t", format="toml") == expected
    assert parse_tables(_YAML.encode(), source="t", format="yaml") == expected


@pytest.mark.parametrize(
    ("path", "expected"),
    [("a.json", "json"), ("a.toml", "toml"), ("a.YAML", "yaml"), ("b.yml", "yaml"), ("a.conf", "json"), ("-", "json")],
)
def test_the_suffix_names_the_format(path: str, expected: str) -> None:
    assert format_of(path) == expected


@pytest.mark.parametrize(
    ("content", "format_", "message"),
    [
        pytest.param('{"tables": [', "json", "line 1, column 13: not JSON", id="json-cut"),
        pytest.param('{\n "tables": x}', "json", "line 2, column 12: not JSON", id="json-line"),
        pytest.param("", "json", "line 1, column 1: not JSON", id="json-empty"),
        pytest.param('{"tables": NaN}', "json", "NaN is no JSON number", id="json-nan"),
        pytest.param("[" * 100_000, "json", "nested too deeply", id="json-deep"),
        pytest.param('{"tables": ' + "9" * 5000 + "}", "json", "not JSON", id="json-huge-number"),
        pytest.param(b'{"a":\n"\xff"}', "json", "line 2: byte 0xff is not UTF-8", id="json-bytes"),
        pytest.param("tables = [", "toml", "not TOML", id="toml-cut"),
        pytest.param("a = 1\na = 2\nb = 3", "toml", "line 2", id="toml-key-twice"),
        pytest.param("tables: [", "yaml", "line 1, column 10: not YAML", id="yaml-cut"),
        pytest.param("tables: !!python/object:os.system x", "yaml", "not YAML", id="yaml-python-tag"),
        pytest.param("a: \x00", "yaml", "not YAML", id="yaml-nul"),
        pytest.param("tables: &x {a: *x}", "yaml", "not YAML", id="yaml-recursive"),
        pytest.param("? [a]\n: 1", "yaml", "unknown key", id="yaml-key-that-is-a-list"),
        pytest.param("tables: 2001-01-01", "yaml", "is a value; must be a list", id="yaml-date"),
        pytest.param("[[tables]]\nhops = 0x" + "f" * 5000, "toml", "very large", id="toml-huge-number"),
    ],
)
def test_text_that_cannot_be_read_names_the_place(content: str | bytes, format_: Any, message: str) -> None:
    shown = _problems(content, format=format_).values()
    assert any(message in entry for entry in shown)


def test_yaml_key_given_twice_is_refused() -> None:
    assert "$.tables[0].name" in _problems(_YAML.replace("- name: web", "- name: web\n    name: web"), format="yaml")


@pytest.mark.parametrize("value", ["null", "7", '"x"', "[]", "{}"])
def test_any_document_is_decoded(value: str) -> None:
    assert decode(value, source="t") == json.loads(value)


def test_no_half_read_table_is_ever_returned() -> None:
    """Cut the text anywhere: it is refused, or it is the whole."""
    whole = text().rstrip()
    for end in range(len(whole)):
        assert _problems(whole[:end])
    assert isinstance(parse_tables(whole, source="t"), TableSet)
