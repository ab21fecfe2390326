"""Takes typed values out of a decoded document, key by key, and collects every problem by its JSON path."""

from __future__ import annotations

import difflib
import ipaddress
import json
import re
import string
from collections.abc import Collection

from glb.errors import ConfigError, Problem
from glb.table.document import Mapping

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_MAX_SHOWN = 48  # characters of a value in a message
_PLAIN_KEY = re.compile(r"[A-Za-z0-9_-]{1,48}")

_TYPE_NAMES: tuple[tuple[type, str], ...] = (
    (bool, "true or false"),
    (str, "a string"),
    (int, "an integer"),
    (float, "a number with a fraction"),
    (dict, "an object"),
    (list, "a list"),
)


def type_name(value: object) -> str:
    """What an operator calls the value's type."""
    return "null" if value is None else next((name for kind, name in _TYPE_NAMES if isinstance(value, kind)), "a value")


def shown(value: object) -> str:
    """A scalar as it stands in the file, cut to a length that fits a message; of anything else, its type."""
    if isinstance(value, (dict, list)):
        return type_name(value)
    try:
        text = json.dumps(value, default=str)
    except ValueError:  # an integer of thousands of digits
        return "a very large integer"
    return text if len(text) <= _MAX_SHOWN else text[: _MAX_SHOWN - 3] + "..."


def member(path: str, key: str) -> str:
    """The path of a member of an object; odd keys are quoted, so that they can neither mislead nor spoil a line."""
    return f"{path}.{key}" if _PLAIN_KEY.fullmatch(key) else f"{path}[{shown(key)}]"


def listed(words: Collection[str]) -> str:
    """``a, b or c``."""
    *first, last = words
    return f"{', '.join(first)} or {last}" if first else last


def closest(word: str, known: Collection[str]) -> str:
    """``; did you mean "x"?`` where a known word is near, else nothing."""
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f'; did you mean "{near[0]}"?' if near else ""


class Fields:
    """The problems (and, read leniently, the warnings) of one document while it is being read."""

    def __init__(self, source: str, *, lenient: bool = False) -> None:
        self.source = source
        self.lenient = lenient
        self.problems: list[Problem] = []
        self.warnings: list[Problem] = []

    def problem(self, path: str, message: str) -> None:
        self.problems.append(Problem(path, message))

    def warn(self, path: str, message: str) -> None:
        self.warnings.append(Problem(path, message))

    def tolerate(self, path: str, message: str, meaning: str) -> None:
        """Refuse; or, read leniently, warn with what GLB makes of it."""
        if self.lenient:
            self.warn(path, f"{message}; {meaning}")
        else:
            self.problem(path, message)

    def finish(self) -> None:
        """Raise ConfigError if there was any problem."""
        if self.problems:
            raise ConfigError(self.source, self.problems)

    def mapping(self, value: object, path: str, required: Collection[str], optional: Collection[str] = ()) -> Mapping:
        """The value as an object; missing, unknown and repeated keys are reported. Empty if it is no object."""
        if not isinstance(value, dict):
            self.problem(path, f"is {type_name(value)}; must be an object")
            return Mapping()
        known = (*required, *optional)
        for key in value:
            if key not in known:
                self.tolerate(member(path, key), f"unknown key{closest(key, known)}", "ignored")
        for key in value.repeated if isinstance(value, Mapping) else ():
            self.tolerate(member(path, key), "is given more than once", "the last one counts")
        for key in required:
            if key not in value:
                self.problem(f"{path}.{key}", "is missing")
        return value if isinstance(value, Mapping) else Mapping(value)

    def array(self, value: object, path: str, *, minimum: int, maximum: int) -> list[object]:
        """The value as a list of `minimum` to `maximum` entries; empty if it is none."""
        if not isinstance(value, list):
            self.problem(path, f"is {type_name(value)}; must be a list")
            return []
        if not minimum <= len(value) <= maximum:
            self.problem(path, f"has {len(value)} entries; must have {minimum} to {maximum}")
            return value[:maximum]
        return value

    def text(self, value: object, path: str) -> str | None:
        if not isinstance(value, str):
            self.problem(path, f"is {type_name(value)}; must be a string")
            return None
        return value

    def word(self, value: object, path: str, known: Collection[str]) -> str | None:
        """A string that is one of the known words."""
        if isinstance(value, str) and value in known:
            return value
        near = closest(value, known) if isinstance(value, str) else ""
        self.problem(path, f"is {shown(value)}; must be {listed(known)}{near}")
        return None

    def integer(self, value: object, path: str, minimum: int, maximum: int) -> int | None:
        if not isinstance(value, int) or isinstance(value, bool):
            self.problem(path, f"is {shown(value)}; must be an integer from {minimum} to {maximum}")
            return None
        if not minimum <= value <= maximum:
            self.problem(path, f"is {shown(value)}; must be {minimum} to {maximum}")
            return None
        return value

    def key(self, value: object, path: str, n_bytes: int) -> bytes | None:
        """A secret of exactly `n_bytes`, as hex digits. The secret itself is never shown."""
        text = self.text(value, path)
        if text is None:
            return None
        wrong = next((at for at, digit in enumerate(text) if digit not in string.hexdigits), None)
        if wrong is not None:
            self.problem(path, f"character {wrong + 1} is {shown(text[wrong])}, which is no hex digit")
            return None
        if len(text) != 2 * n_bytes:
            self.problem(path, f"has {len(text)} hex digits; must have {2 * n_bytes}")
            return None
        return bytes.fromhex(text)

    def address(self, value: object, path: str) -> Address | None:
        """An IPv4 or IPv6 address without prefix length or zone."""
        text = self.text(value, path)
        if text is None:
            return None
        if "%" in text:
            self.problem(path, f"is {shown(text)}; an address with a zone cannot be used here")
            return None
        if "/" in text:
            self.problem(path, f"is {shown(text)}; must be one address, without a prefix length")
            return None
        return self.plain_address(text, path)

    def plain_address(self, text: str, path: str) -> Address | None:
        try:
            return ipaddress.ip_address(text)
        except ValueError:
            self.problem(path, f"is {shown(text)}; must be an IPv4 or IPv6 address (no leading zeros)")
            return None
