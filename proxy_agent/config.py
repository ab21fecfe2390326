"""agent.toml (or .json, .yaml) into a typed, checked value. Every fault is reported at once, each with its path.

docs/operate/agent.md has the table of keys; it is tested against `KEYS`.
"""

from __future__ import annotations

import difflib
import ipaddress
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec
import yaml

from glb.errors import ConfigError, Problem
from glb.wire.gue import GUE_PORT, MAX_GUE_HOPS, MAX_HOPS
from glb.wire.mtu import LEAST_MSS_BYTES, MOST_MSS_BYTES
from proxy_agent.mss import AUTOMATIC, FAMILIES, MssRule

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

MAX_INTERFACE_BYTES = 15  # IFNAMSIZ less its final zero
DEFAULT_QUEUE = 19523
DEFAULT_STATE_DIR = "/run/glb-proxy-agent"
DEFAULT_PIN_DIR = "/sys/fs/bpf/glb-proxy-agent"
MAX_NAMESPACES = 16  # this and the next two: GLB_MAX_... of bpf/glb_verdicts.h
MAX_VIPS = 4096  # of one address family
MAX_SOURCES = 16384
ENGINES = ("auto", "xdp", "netfilter")

Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]
QueueNumber = Annotated[int, msgspec.Meta(ge=0, le=65535)]
Hops = Annotated[int, msgspec.Meta(ge=1, le=1 + MAX_GUE_HOPS)]
Text = Annotated[str, msgspec.Meta(min_length=1)]


@dataclass(frozen=True)
class AdminAddress:
    """Where the admin endpoint listens: a host and port, or the path of a unix socket."""

    host: str = ""
    port: int = 0
    path: str = ""

    @property
    def is_private(self) -> bool:
        """Only programs of this host can reach it."""
        return bool(self.path) or ipaddress.ip_address(self.host).is_loopback

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True)
class AgentConfig:
    """The whole configuration of one agent. Paths of problems are those of the file's keys."""

    interface: str  # where tunnel packets come in and bounced ones go out
    vips: tuple[Network, ...]  # do not overlap
    engine: str = "auto"  # of ENGINES; auto: xdp where it loads
    gue_port: int = GUE_PORT
    allowed_sources: tuple[Network, ...] | None = None  # None: any
    admin: AdminAddress = AdminAddress("127.0.0.1", 9524)
    queue_num: int = DEFAULT_QUEUE
    state_dir: Path = Path(DEFAULT_STATE_DIR)
    socket_namespaces: tuple[str, ...] = ()  # names or paths; their sockets count as this host's
    vips_on_lo: bool = True
    mss: MssRule = AUTOMATIC
    hops: int = MAX_HOPS  # most that a tunnel packet lists, the first included
    pin_dir: Path | None = Path(DEFAULT_PIN_DIR)  # in a BPF file system; None: the program goes with the process

    def warnings(self) -> list[str]:
        """What works but leaves a door open, one sentence each."""
        found = []
        if self.allowed_sources is None:
            found.append(
                "allowed_sources is not set: ANYONE who can send UDP to this host may forge packets from any client to "
                "the VIPs; list the directors and the fellow proxies"
            )
        elif any(source.version == 6 for source in self.allowed_sources):
            found.append("allowed_sources: tunnel packets come over IPv4, so its IPv6 entries never match")
        if not self.admin.is_private:
            found.append(
                f"admin listens on {self.admin}, which is not loopback: anyone who reaches it reads the metrics"
            )
        return found


class _Keys(msgspec.Struct, forbid_unknown_fields=True):
    """The keys of the file and their plain types; what the texts mean is checked after that."""

    interface: Text
    vips: Annotated[list[str], msgspec.Meta(min_length=1)]
    engine: str = "auto"
    gue_port: Port = GUE_PORT
    allowed_sources: list[str] | None = None
    admin: Text = "127.0.0.1:9524"
    queue_num: QueueNumber = DEFAULT_QUEUE
    state_dir: Text = DEFAULT_STATE_DIR
    pin_dir: str = DEFAULT_PIN_DIR
    socket_namespaces: tuple[Text, ...] = ()
    vips_on_lo: bool = True
    mss: str | int | dict[str, int] = "auto"
    hops: Hops = MAX_HOPS


NETNS_DIR = "/run/netns"


def namespace_path(name: str) -> str:
    """Where a network namespace is found that `socket_namespaces` names."""
    return name if "/" in name else f"{NETNS_DIR}/{name}"


KEYS: tuple[str, ...] = _Keys.__struct_fields__


def load(path: str | Path) -> AgentConfig:
    """Read and check a configuration file. ConfigError names every fault."""
    source = str(path)
    try:
        text = Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(source, [Problem("", f"cannot be read: {error.strerror}")]) from None
    return parse(text, source)


def parse(text: bytes, source: str) -> AgentConfig:
    """Check the text of a configuration file; the suffix of `source` tells JSON and YAML from TOML, the default."""
    problems: list[Problem] = []
    values = _read_values(_decode(text, source), problems)
    config = _build(values, problems)
    if problems or config is None:
        raise ConfigError(source, problems)
    return config


def _decode(text: bytes, source: str) -> dict[str, Any]:
    suffix = Path(source).suffix.lower()
    try:
        if suffix == ".json":
            value = msgspec.json.decode(text)
        elif suffix in (".yaml", ".yml"):
            value = msgspec.yaml.decode(text)
        else:
            value = msgspec.toml.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, yaml.YAMLError) as error:
        kind = {".json": "JSON", ".yaml": "YAML", ".yml": "YAML"}.get(suffix, "TOML")
        raise ConfigError(source, [Problem("", f"not {kind}: {error}")]) from None
    if not isinstance(value, dict):
        raise ConfigError(source, [Problem("$", f"expected a table of keys, found {type(value).__name__}")])
    return value


def _read_values(raw: dict[str, Any], problems: list[Problem]) -> dict[str, Any]:
    """The keys that are present and of the right type; a problem for each other one."""
    types = {field.name: field for field in msgspec.structs.fields(_Keys)}
    for key in raw:
        if key not in types:
            near = difflib.get_close_matches(str(key), types, 1)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(types)}"
            problems.append(Problem(f"$.{key}", f"unknown key; {hint}"))
    values: dict[str, Any] = {}
    for name, field in types.items():
        if name not in raw:
            if field.required:
                problems.append(Problem(f"$.{name}", "is missing"))
            else:
                values[name] = field.default
            continue
        try:
            values[name] = msgspec.convert(raw[name], field.type)
        except msgspec.ValidationError as error:
            message, _, where = str(error).partition(" - at `$")
            problems.append(Problem(f"$.{name}{where.rstrip('`')}", message))
    return values


def _build(values: dict[str, Any], problems: list[Problem]) -> AgentConfig | None:
    def checked(key: str, check: Callable[[Any, list[Problem]], Any]) -> Any:
        return check(values[key], problems) if key in values else None

    interface = checked("interface", _interface)
    engine = checked("engine", _engine)
    vips = checked("vips", _vips)
    sources = checked("allowed_sources", _sources)
    admin = checked("admin", _admin)
    state_dir = checked("state_dir", _state_dir)
    pin_dir = checked("pin_dir", _pin_dir)
    namespaces = checked("socket_namespaces", _namespaces)
    mss = checked("mss", _mss)
    if namespaces and engine == "netfilter":
        problems.append(Problem("$.socket_namespaces", "needs the xdp engine"))
    if problems:
        return None
    return AgentConfig(
        interface=interface,
        vips=vips,
        engine=engine,
        gue_port=values["gue_port"],
        allowed_sources=sources,
        admin=admin,
        queue_num=values["queue_num"],
        state_dir=state_dir,
        pin_dir=pin_dir,
        socket_namespaces=namespaces,
        vips_on_lo=values["vips_on_lo"],
        mss=mss,
        hops=values["hops"],
    )


def _interface(name: str, problems: list[Problem]) -> str:
    if len(name.encode()) > MAX_INTERFACE_BYTES or any(c.isspace() or c == "/" for c in name) or name in (".", ".."):
        problems.append(
            Problem("$.interface", f"{name!r} is no interface name (1 to {MAX_INTERFACE_BYTES} bytes, no space or /)")
        )
    return name


def _engine(name: str, problems: list[Problem]) -> str:
    if name not in ENGINES:
        problems.append(
            Problem("$.engine", f"{name!r} is no engine; expected {', '.join(ENGINES[:-1])} or {ENGINES[-1]}")
        )
    return name


def _network(text: str, path: str, problems: list[Problem]) -> Network | None:
    try:
        return ipaddress.ip_network(text)
    except ValueError:
        pass
    try:
        whole = ipaddress.ip_network(text, strict=False)
    except ValueError:
        problems.append(Problem(path, f"{text!r} is no IP address or prefix"))
    else:
        problems.append(Problem(path, f"{text} has bits set behind the prefix; did you mean {whole}?"))
    return None


def _vips(texts: list[str], problems: list[Problem]) -> tuple[Network, ...]:
    if len(texts) > MAX_VIPS:  # before each of them is judged
        found: Counter[int] = Counter(network.version for text in texts if (network := _network(text, "", [])))
        many = [name for version, name in FAMILIES.items() if found[version] > MAX_VIPS]
        for name in many:
            problems.append(Problem("$.vips", f"at most {MAX_VIPS} of {name}; prefixes cover more"))
        if many:
            return ()
    read = [_network(text, f"$.vips[{i}]", problems) for i, text in enumerate(texts)]
    networks = {i: network for i, network in enumerate(read) if network is not None}
    overlapping = _overlapping(networks)
    for i, network in networks.items():
        path = f"$.vips[{i}]"
        if network.is_multicast or network.is_loopback or network.is_unspecified or network.prefixlen == 0:
            problems.append(Problem(path, f"{texts[i]} cannot be a VIP"))
        for earlier in sorted(overlapping[i]):
            problems.append(Problem(path, f"{texts[i]} is already covered by or covers {networks[earlier]}"))
    return tuple(networks.values())


def _overlapping(networks: Mapping[int, Network]) -> Mapping[int, list[int]]:
    """By place in a list: the places before it with which it overlaps.

    Two prefixes are apart, or one covers the other. In order of their addresses, the wider one first, those that cover
    the one at hand are a stack: the work is sorting, and what there is to report.
    """
    found: dict[int, list[int]] = defaultdict(list)
    covering: list[int] = []
    order = {i: (network.version, int(network.network_address), network.prefixlen) for i, network in networks.items()}
    for i in sorted(networks, key=order.__getitem__):
        while covering and not networks[covering[-1]].overlaps(networks[i]):
            covering.pop()
        for other in covering:
            found[max(i, other)].append(min(i, other))
        covering.append(i)
    return found


def _sources(texts: list[str] | None, problems: list[Problem]) -> tuple[Network, ...] | None:
    if texts is None:
        return None
    if not texts:
        problems.append(
            Problem("$.allowed_sources", "is empty, so nothing could ever arrive; leave it out to allow any source")
        )
    if len(texts) > MAX_SOURCES:
        problems.append(Problem("$.allowed_sources", f"at most {MAX_SOURCES}; prefixes cover more"))
    found = [_network(text, f"$.allowed_sources[{i}]", problems) for i, text in enumerate(texts)]
    return tuple(network for network in found if network is not None)


def _admin(text: str, problems: list[Problem]) -> AdminAddress:
    if text.startswith("unix:"):
        path = text.removeprefix("unix:")
        if not path.startswith("/"):
            problems.append(Problem("$.admin", f"{text!r}: the socket's path must be absolute"))
        return AdminAddress(path=path)
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]") if host.startswith("[") else host
    try:
        address = str(ipaddress.ip_address(host))
        if not colon or not port.isascii() or not port.isdigit() or not 1 <= int(port) <= 65535:
            raise ValueError
    except ValueError:
        problems.append(Problem("$.admin", f"{text!r} is neither ADDRESS:PORT, [IPV6]:PORT nor unix:/PATH"))
        return AdminAddress()
    return AdminAddress(address, int(port))


def _state_dir(text: str, problems: list[Problem]) -> Path:
    if not text.startswith("/"):
        problems.append(Problem("$.state_dir", f"{text!r} must be an absolute path"))
    return Path(text)


def _namespaces(names: tuple[str, ...], problems: list[Problem]) -> tuple[str, ...]:
    if len(names) > MAX_NAMESPACES:
        problems.append(Problem("$.socket_namespaces", f"at most {MAX_NAMESPACES} can be looked into"))
    for i, name in enumerate(names):
        if "/" in name and not name.startswith("/"):
            problems.append(Problem(f"$.socket_namespaces[{i}]", f"{name!r} is neither a name nor an absolute path"))
    return names


def _pin_dir(text: str, problems: list[Problem]) -> Path | None:
    """The key may be "", for not to pin."""
    if text and not text.startswith("/"):
        problems.append(Problem("$.pin_dir", f"{text!r} must be an absolute path in a BPF file system, or empty"))
    return Path(text) if text else None


def _mss(value: str | int | dict[str, int], problems: list[Problem]) -> MssRule:
    """A number is for both families; of a table, a family that is left out is not clamped."""
    if isinstance(value, str):
        if value not in ("auto", "off"):
            problems.append(
                Problem("$.mss", f'{value!r}: expected "auto", "off", a number, or {{ipv4 = .., ipv6 = ..}}')
            )
        return MssRule(automatic=value == "auto")
    if isinstance(value, int):
        _check_mss(value, "$.mss", problems)
        return MssRule(False, value, value)
    for name, number in value.items():
        if name in FAMILIES.values():
            _check_mss(number, f"$.mss.{name}", problems)
        else:
            problems.append(Problem(f"$.mss.{name}", f"unknown key; known are {', '.join(FAMILIES.values())}"))
    return MssRule(False, value.get("ipv4", 0), value.get("ipv6", 0))


def _check_mss(number: int, path: str, problems: list[Problem]) -> None:
    if number and not LEAST_MSS_BYTES <= number <= MOST_MSS_BYTES:
        problems.append(Problem(path, f"{number} is no MSS: {LEAST_MSS_BYTES} to {MOST_MSS_BYTES}, or 0 for none"))
