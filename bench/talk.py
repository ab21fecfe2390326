"""What the benchmarks say while they run, on stderr: a progress bar on a terminal, a line per figure elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table


class Talk:
    """rich leaves out colour off a terminal and with NO_COLOR by itself."""

    def __init__(self) -> None:
        self.console = Console(stderr=True)

    def say(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def figure(self, figure: Mapping[str, Any]) -> None:
        """One line that a person reads while the machine reads stdout."""
        self.say(
            f"{figure.get('figure', '?'):<28}{figure.get('value', '?'):>12} {figure.get('unit', ''):<12}"
            f" baseline {figure.get('baseline', '?'):>10}  ratio {figure.get('ratio', '?')}"
        )

    @contextmanager
    def steps(self, label: str, total: int) -> Iterator[Callable[[], None]]:
        """Show how far `total` steps have come; the value is called after each."""
        if not self.console.is_terminal:
            yield lambda: None
            return
        columns = (TextColumn("{task.description:<28}"), BarColumn(), MofNCompleteColumn())
        with Progress(*columns, console=self.console, transient=True) as progress:
            task = progress.add_task(label, total=total)
            yield lambda: progress.advance(task)

    def names(self, described: Mapping[str, str]) -> None:
        table = Table(box=None, show_header=False)
        for name, text in described.items():
            table.add_row(name, text)
        self.console.print(table)
