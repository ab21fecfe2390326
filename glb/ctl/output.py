"""How glbctl prints: JSON, or columns: coloured on a terminal, plain and never cut in a pipe."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import click

_Command = TypeVar("_Command", bound=Callable[..., Any])

_BAR_CELLS = 24
_STYLES = {  # rich styles of words that matter
    "draining": "yellow",
    "filling": "cyan",
    "inactive": "dim",
    "unhealthy": "red",
    "down": "bold red",
    "differs": "bold red",
    "is behind": "bold red",
}


@dataclass(frozen=True, slots=True)
class Share:
    """A part of all rows, 0 to 1; on a terminal also a bar."""

    value: float

    def __str__(self) -> str:
        return f"{self.value:.2%}"


Cell = str | int | Share


def output_option(command: _Command) -> _Command:
    """The option -o table|json, as the parameter `output`."""
    option = click.option(
        "-o",
        "--output",
        type=click.Choice(["table", "json"]),
        default="table",
        show_default=True,
        help="Form of the data.",
    )
    return option(command)


def lenient_option(command: _Command) -> _Command:
    """The option --lenient."""
    option = click.option(
        "--lenient", is_flag=True, help="Warn of, instead of refusing, what GLB accepts with a defined result."
    )
    return option(command)


def print_json(value: object) -> None:
    """One JSON document."""
    click.echo(json.dumps(value, indent=2))


def print_line(text: str) -> None:
    """One line of data."""
    click.echo(text)


def say(text: str) -> None:
    """One line of talk, on stderr."""
    click.echo(text, err=True)


def coloured() -> bool:
    """Whether stdout is a terminal that may be coloured."""
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ


def print_columns(title: str, headers: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
    """A table with a title; numbers and shares are right-aligned."""
    if sys.stdout.isatty():
        _print_rich(title, headers, rows)
        return
    texts = [list(headers)] + [[str(cell) for cell in row] for row in rows]
    widths = [max(len(text[column]) for text in texts) for column in range(len(headers))]
    right = _right_aligned(headers, rows)
    click.echo(title)
    for text in texts:
        cells = [
            cell.rjust(width) if is_right else cell.ljust(width)
            for cell, width, is_right in zip(text, widths, right, strict=True)
        ]
        click.echo("  ".join(cells).rstrip())


def health_word(healthy: bool | None) -> str:
    """Health for people."""
    return {True: "healthy", False: "unhealthy", None: "unchecked"}[healthy]


def _right_aligned(headers: Sequence[str], rows: Sequence[Sequence[Cell]]) -> list[bool]:
    return [bool(rows) and not isinstance(rows[0][column], str) for column in range(len(headers))]


def _print_rich(title: str, headers: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    def drawn(cell: Cell) -> Text:
        if isinstance(cell, Share):
            return Text.assemble((_bar(cell.value), "green"), f" {cell}")
        return Text(str(cell), style=_STYLES.get(str(cell), ""))

    drawing = Table(title=Text(title), title_justify="left", box=SIMPLE_HEAD)
    for header, is_right in zip(headers, _right_aligned(headers, rows), strict=True):
        drawing.add_column(header, justify="right" if is_right else "left", no_wrap=True)
    for row in rows:
        drawing.add_row(*map(drawn, row))
    Console(no_color=not coloured(), highlight=False).print(drawing)


def _bar(value: float) -> str:
    """A bar in eighths of a character cell."""
    eighths = round(value * _BAR_CELLS * 8)
    full, rest = divmod(eighths, 8)
    return "█" * full + (" ▏▎▍▌▋▊▉"[rest] if rest else "")
