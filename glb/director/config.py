"""director.toml (or GLB's own director.conf) -> Config, refused with every problem by its path."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Literal

from glb.table.document import Format, decode
from glb.table.fields import Fields, shown

Datapath = Literal["auto", "xdp", "cython"]

# name in the file -> bit of glb._fastpath's HashField
HASH_FIELDS = {"src_addr": 1, "dst_addr": 2, "src_port": 4, "dst_port": 8}

_KEYS = (
    "interface",
    "datapath",
    "table",
    "store",
    "outbound_src_ip",
    "outbound_gateway_mac",
    "outbound_src_mac",
    "hash_fields",
    "alt_hash_fields",
    "forward_icmp_ping_responses",
    "admin",
    "remote_capture",
    "announce_device",
    "pin_dir",
    "too_big_answers_per_s",
    "worker_cores",
    "busy_poll",
)
# GLB's director.conf: DPDK's cores, queues and devices, which this director has no use for.
_GLB_ONLY_KEYS = (
    "num_worker_queues",
    "flow_paths",
    "lcores",
    "rx_drop_en",
    "kni_enabled",
    "kni_ip",
    "statsd_server",
    "statsd_port",
)
DEFAULT_PIN_DIR = "/sys/fs/bpf/glb-director"
_MAX_CORES = 8192  # as many as Linux knows on any machine
DEFAULT_ADMIN = "127.0.0.1:9523"
# As many ICMP errors as Linux sends in all: one for each new client of a busy director, no load for anyone else.
DEFAULT_TOO_BIG_ANSWERS_PER_S = 1000


@dataclass(frozen=True, slots=True)
class Config:
    """A director's configuration, checked."""

    interface: str | None = None  # required to run, not to replay
    datapath: Datapath = "auto"
    store: str | None = None  # path or URL of the forwarding tables
    outbound_src_ip: IPv4Address | None = None  # None: the interface's first address
    outbound_gateway_mac: bytes | None = None  # 6 bytes; None: from the kernel's routes and neighbours
    outbound_src_mac: bytes | None = None  # 6 bytes; None: the interface's own (replay: the received destination)
    hash_fields: int = HASH_FIELDS["src_addr"]
    alt_hash_fields: int = 0  # 0: no alternative row
    forward_icmp_ping_responses: bool = True
    admin: str = DEFAULT_ADMIN  # host:port, or unix:/path
    remote_capture: bool = False  # whether packets are shown to other hosts that reach `admin`
    announce_device: str | None = None
    pin_dir: str | None = DEFAULT_PIN_DIR  # in a BPF file system; None: the program goes with the process
    too_big_answers_per_s: int = DEFAULT_TOO_BIG_ANSWERS_PER_S  # of each worker; 0: never answer
    worker_cores: tuple[int, ...] = ()  # of the receive queues' workers, in turn; empty: anywhere
    busy_poll: bool = False
    warnings: tuple[str, ...] = ()


def parse_config(text: str | bytes, *, source: str, format: Format = "toml") -> Config:
    """Text of a configuration file -> Config. ConfigError with every problem."""
    document = decode(text, source=source, format=format)
    fields = Fields(source)
    given = fields.mapping(document, "$", (), (*_KEYS, *_GLB_ONLY_KEYS))
    ignored = [key for key in _GLB_ONLY_KEYS if key in given]
    warnings = [f"{source}: GLB's {', '.join(ignored)} have no meaning here and are ignored"] if ignored else []
    if "table" in given and "store" in given:
        fields.problem("$.store", "stands beside $.table; give one of them")
    config = Config(
        interface=_device_name(given, "interface", fields),
        datapath=_datapath(given, fields),
        store=_text(given, "store", fields) or _text(given, "table", fields),
        outbound_src_ip=_source_ip(given, fields),
        outbound_gateway_mac=_mac(given, "outbound_gateway_mac", fields),
        outbound_src_mac=_mac(given, "outbound_src_mac", fields),
        hash_fields=_hash_fields(given, "hash_fields", fields, HASH_FIELDS["src_addr"]),
        alt_hash_fields=_hash_fields(given, "alt_hash_fields", fields, 0),
        forward_icmp_ping_responses=_boolean(given, "forward_icmp_ping_responses", fields, True),
        admin=_admin(given, fields),
        remote_capture=_boolean(given, "remote_capture", fields, False),
        announce_device=_device_name(given, "announce_device", fields),
        pin_dir=_pin_dir(given, fields),
        too_big_answers_per_s=_rate(given, "too_big_answers_per_s", fields, DEFAULT_TOO_BIG_ANSWERS_PER_S),
        worker_cores=_worker_cores(given, fields),
        busy_poll=_boolean(given, "busy_poll", fields, False),
        warnings=tuple(warnings),
    )
    fields.finish()
    return config


def _text(given: dict[str, object], key: str, fields: Fields) -> str | None:
    if key not in given:
        return None
    text = fields.text(given[key], f"$.{key}")
    if text == "":
        fields.problem(f"$.{key}", "is empty")
    return text


def _device_name(given: dict[str, object], key: str, fields: Fields) -> str | None:
    name = _text(given, key, fields)
    if name and (len(name) > 15 or "/" in name or any(c.isspace() for c in name)):
        fields.problem(f"$.{key}", f"is {shown(name)}; an interface name has at most 15 characters, no slash or space")
    return name


def _datapath(given: dict[str, object], fields: Fields) -> Datapath:
    word = fields.word(given.get("datapath", "auto"), "$.datapath", ("auto", "xdp", "cython"))
    return "xdp" if word == "xdp" else "cython" if word == "cython" else "auto"


def _source_ip(given: dict[str, object], fields: Fields) -> IPv4Address | None:
    if "outbound_src_ip" not in given:
        return None
    address = fields.address(given["outbound_src_ip"], "$.outbound_src_ip")
    if address is not None and not isinstance(address, IPv4Address):
        fields.problem("$.outbound_src_ip", f"is {address}; must be an IPv4 address: the tunnel's outer header is IPv4")
        return None
    return address


def _mac(given: dict[str, object], key: str, fields: Fields) -> bytes | None:
    text = _text(given, key, fields)
    if text is None:
        return None
    parts = text.split(":")
    try:
        octets = bytes(int(part, 16) for part in parts if len(part) == 2)
    except ValueError:
        octets = b""
    if len(parts) != 6 or len(octets) != 6:
        fields.problem(f"$.{key}", f"is {shown(text)}; must be a MAC address such as 02:00:5e:00:00:01")
        return None
    if octets[0] & 1 or not any(octets):
        fields.problem(f"$.{key}", f"is {shown(text)}; must be one station's address (not multicast, not zero)")
        return None
    return octets


def _hash_fields(given: dict[str, object], key: str, fields: Fields, default: int) -> int:
    if key not in given:
        return default
    faults = len(fields.problems)
    chosen = fields.mapping(given[key], f"$.{key}", (), tuple(HASH_FIELDS))
    bits = 0
    for name, bit in HASH_FIELDS.items():
        if name not in chosen:
            continue
        if not isinstance(chosen[name], bool):
            fields.problem(f"$.{key}.{name}", f"is {shown(chosen[name])}; must be true or false")
        elif chosen[name]:
            bits |= bit
    if not bits and len(fields.problems) == faults:
        fields.problem(f"$.{key}", f"chooses no field; set one of {', '.join(HASH_FIELDS)} to true, or leave it out")
    return bits


def _boolean(given: dict[str, object], key: str, fields: Fields, default: bool) -> bool:
    value = given.get(key, default)
    if not isinstance(value, bool):
        fields.problem(f"$.{key}", f"is {shown(value)}; must be true or false")
        return default
    return value


def _rate(given: dict[str, object], key: str, fields: Fields, default: int) -> int:
    rate = fields.integer(given.get(key, default), f"$.{key}", 0, 1_000_000)
    return default if rate is None else rate


def _worker_cores(given: dict[str, object], fields: Fields) -> tuple[int, ...]:
    if "worker_cores" not in given:
        return ()
    named = fields.array(given["worker_cores"], "$.worker_cores", minimum=1, maximum=_MAX_CORES)
    cores = [fields.integer(core, f"$.worker_cores[{i}]", 0, _MAX_CORES - 1) for i, core in enumerate(named)]
    for i, core in enumerate(cores):
        if core is not None and core in cores[:i]:
            fields.problem(
                f"$.worker_cores[{i}]", f"is {core}, as $.worker_cores[{cores.index(core)}]; name a core once"
            )
    return tuple(core for core in cores if core is not None)


def _pin_dir(given: dict[str, object], fields: Fields) -> str | None:
    """The key may be "", for not to pin."""
    text = fields.text(given.get("pin_dir", DEFAULT_PIN_DIR), "$.pin_dir")
    if text and not text.startswith("/"):
        fields.problem("$.pin_dir", f"is {shown(text)}; must be an absolute path in a BPF file system, or empty")
    return text or None


def _admin(given: dict[str, object], fields: Fields) -> str:
    text = _text(given, "admin", fields)
    if text is None:
        return DEFAULT_ADMIN
    if text.startswith("unix:/"):
        return text
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdecimal() or not 0 < int(port) < 65536:
        fields.problem("$.admin", f"is {shown(text)}; must be host:port, such as {DEFAULT_ADMIN}, or unix:/path")
    return text
