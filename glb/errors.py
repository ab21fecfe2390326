"""Every error that reaches an operator, each with the exit code it leads to.

Exit codes: 0 ok, 1 failed, 2 usage (click's own), 3 a check found problems.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class GlbError(Exception):
    """Base of all errors that are reported as one message, without a traceback."""

    exit_code = 1


@dataclass(frozen=True)
class Problem:
    """One fault in a file: where, and what is wrong and allowed there."""

    path: str  # JSON path, e.g. $.tables[0].backends[2].state; "" when the text could not be read at all
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


class ConfigError(GlbError):
    """A configuration file or a forwarding table was refused, as a whole, for every problem in it."""

    exit_code = 3

    def __init__(self, source: str, problems: Sequence[Problem]) -> None:
        self.source = source
        self.problems = tuple(problems)
        super().__init__("\n".join(f"{source}: {problem}" for problem in self.problems))


class TableError(GlbError):
    """A table that was read well cannot be built, written or changed as asked."""


class StoreError(GlbError):
    """The store of the forwarding tables cannot be read, locked or written."""


class UnsafeChangeError(GlbError):
    """A change was refused because flows would be lost; ``--force`` overrides."""

    exit_code = 3


class DeviceError(GlbError):
    """The machine refused: interface, BPF, AF_XDP, netfilter, routes. Names the errno and what to do."""
