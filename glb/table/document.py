"""Text to plain values: JSON, TOML or YAML. Refused with line and column; keys that are given twice are remembered."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Literal, NoReturn

from glb.errors import ConfigError, Problem

Format = Literal["json", "toml", "yaml"]

_FORMAT_BY_SUFFIX: dict[str, Format] = {".toml": "toml", ".yaml": "yaml", ".yml": "yaml"}


class Mapping(dict[str, object]):
    """A JSON object, and which of its keys were given more than once (the last one counts)."""

    repeated: tuple[str, ...] = ()


def format_of(path: str) -> Format:
    """The format that a file's suffix names; JSON unless it is .toml, .yaml or .yml."""
    return _FORMAT_BY_SUFFIX.get(path[path.rfind(".") :].lower(), "json")


def decode(text: str | bytes, *, source: str, format: Format = "json") -> object:
    """Text or UTF-8 bytes -> dicts, lists and scalars. ConfigError with line and column if it is not of the format."""
    if isinstance(text, bytes):
        try:
            text = text.decode("utf-8")
        except UnicodeDecodeError as error:
            line = error.object.count(b"\n", 0, error.start) + 1
            _refuse(source, f"line {line}: byte 0x{error.object[error.start]:02x} is not UTF-8")
    try:
        return {"json": _decode_json, "toml": _decode_toml, "yaml": _decode_yaml}[format](text, source)
    except RecursionError:
        _refuse(source, f"nested too deeply to be a forwarding table or a configuration in {format.upper()}")


def _refuse(source: str, message: str) -> NoReturn:
    raise ConfigError(source, [Problem("", message)])


def _mapping(pairs: Iterable[tuple[str, object]]) -> Mapping:
    result = Mapping()
    repeated: list[str] = []
    for key, value in pairs:
        if key in result:
            repeated.append(key)
        result[key] = value
    if repeated:
        result.repeated = tuple(dict.fromkeys(repeated))
    return result


def _decode_json(text: str, source: str) -> object:
    def refuse_constant(name: str) -> NoReturn:
        raise ValueError(f"{name} is no JSON number")

    try:
        return json.loads(text, object_pairs_hook=_mapping, parse_constant=refuse_constant)
    except json.JSONDecodeError as error:
        _refuse(source, f"line {error.lineno}, column {error.colno}: not JSON: {error.msg}")
    except ValueError as error:  # NaN, or an integer of thousands of digits
        _refuse(source, f"not JSON: {error}")


def _decode_toml(text: str, source: str) -> object:
    import tomllib

    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, ValueError) as error:  # its message ends in "(at line 1, column 5)"
        _refuse(source, f"not TOML: {error}")


def _decode_yaml(text: str, source: str) -> object:
    import yaml

    class Loader(yaml.SafeLoader):
        """Keeps keys that are given twice, as the JSON reader does; keys become text."""

    def construct(loader: yaml.SafeLoader, node: yaml.MappingNode) -> Mapping:
        loader.flatten_mapping(node)
        return _mapping(
            (str(loader.construct_object(key, deep=True)), loader.construct_object(value, deep=True))
            for key, value in node.value
        )

    Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, construct)
    try:
        return yaml.load(text, Loader)  # the Loader above is a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        at = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        _refuse(source, f"{at}not YAML: {error.problem}")
    except (yaml.YAMLError, ValueError) as error:
        _refuse(source, f"not YAML: {error}")
