"""How the lab talks: plain lines with the time in a pipe, the same lines with a live part below them on a terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

_BAR_WIDTH = 40
_REFRESHES_PER_S = 5


class Screen:
    """rich leaves out colour off a terminal and with NO_COLOR by itself."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._begun_s = time.monotonic()

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self._begun_s

    def headline(self, text: str, style: str = "") -> None:
        self.console.print()
        self.console.print(Text(text), style=f"bold {style}", soft_wrap=True)

    def say(self, text: str) -> None:
        """One line, with the time since the start."""
        self.console.print(Text(f"{self.elapsed_s:6.1f} s  {text}"), soft_wrap=True)

    def note(self, text: str) -> None:
        """One line, without the time."""
        self.console.print(Text(f"  {text}"), soft_wrap=True)

    def table(self, table: Table) -> None:
        self.console.print()
        self.console.print(table)

    @contextmanager
    def following(self, view: Callable[[], RenderableType]) -> Iterator[None]:
        """Show ``view()`` below the lines, refreshed, while the block runs; nothing in a pipe."""
        if not self.console.is_terminal:
            yield
            return
        live = Live(console=self.console, get_renderable=view, refresh_per_second=_REFRESHES_PER_S, transient=True)
        with live:
            yield

    def bars(self, shares: Mapping[str, float], expected: Mapping[str, float]) -> None:
        """A bar for each name: its share, and beside it what was expected."""
        width = max(map(len, expected), default=0)
        longest = max((*shares.values(), *expected.values()), default=1.0)
        for name, wanted in expected.items():
            share = shares.get(name, 0.0)
            bar = self._bar(share / longest)
            line = Text(f"          {name:<{width}}  ")
            line.append(bar, style="cyan")
            line.append(f"  {share:6.2%}   expected {wanted:6.2%}")
            self.console.print(line, soft_wrap=True)

    def _bar(self, part: float) -> str:
        full = "█" if (self.console.encoding or "").lower().startswith("utf") else "#"
        return f"{full * round(part * _BAR_WIDTH):<{_BAR_WIDTH}}"
