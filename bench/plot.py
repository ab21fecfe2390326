"""``python -m bench.plot < figures.jsonl > flat.svg``: what flat.py or memory_flat.py measured, as a drawing."""

from __future__ import annotations

import json
import math
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping

_WIDTH, _HEIGHT = 250, 190  # of a panel's inside
_LEFT, _TOP, _GAP, _BOTTOM = 55, 40, 60, 75
# (family, kind) -> how its line looks, and its name
_LINES = {
    ("4", "hot"): ("#0b6bcb", "", "IPv4, few clients and VIPs"),
    ("6", "hot"): ("#c4511b", "", "IPv6, few clients and VIPs"),
    ("4", "spread"): ("#0b6bcb", "4 3", "IPv4, random clients to all VIPs"),
    ("6", "spread"): ("#c4511b", "4 3", "IPv6, random clients to all VIPs"),
}
_FIGURE = re.compile(r"(?:memory-)?flat/(\w+)-(\d+)-ipv([46])-(\w+)")

Points = dict[tuple[str, str], list[tuple[int, float]]]


def read(lines: Iterable[str]) -> dict[str, Points]:
    """axis -> line -> (number, nanoseconds)."""
    axes: dict[str, Points] = defaultdict(lambda: defaultdict(list))
    for line in lines:
        record = json.loads(line)
        found = _FIGURE.fullmatch(record["figure"])
        if found:
            axis, number, family, kind = found.groups()
            axes[axis][family, kind].append((int(number), record["value"]))
    return axes


def draw(axes: Mapping[str, Points]) -> str:
    highest = max(ns for points in axes.values() for line in points.values() for _, ns in line)
    top = math.ceil(highest / 20) * 20
    width = _LEFT + len(axes) * (_WIDTH + _GAP)
    height = _TOP + _HEIGHT + _BOTTOM
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"',
        ' font-family="sans-serif" font-size="11">',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
    ]
    for i, (axis, points) in enumerate(axes.items()):
        parts += _panel(_LEFT + i * (_WIDTH + _GAP), axis, points, top)
    for i, (colour, dashes, name) in enumerate(_LINES.values()):
        x, y = _LEFT + (i // 2) * 250, height - 26 + (i % 2) * 15
        parts.append(f'<path d="M{x} {y - 4}h24" stroke="{colour}" stroke-width="2" stroke-dasharray="{dashes}"/>')
        parts.append(f'<text x="{x + 30}" y="{y}">{name}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _panel(left: int, axis: str, points: Points, top: int) -> list[str]:
    numbers = sorted({n for line in points.values() for n, _ in line})
    last = math.log2(numbers[-1])

    def x(n: int) -> float:
        return round(left + math.log2(n) / last * _WIDTH, 1)

    def y(ns: float) -> float:
        return round(_TOP + _HEIGHT - ns / top * _HEIGHT, 1)

    parts = [f'<text x="{left}" y="{_TOP - 18}" font-weight="bold">ns a packet, by number of {axis}</text>']
    for ns in range(0, top + 1, 20):
        parts.append(f'<path d="M{left} {y(ns)}h{_WIDTH}" stroke="#ddd"/>')
        parts.append(f'<text x="{left - 6}" y="{y(ns) + 4}" text-anchor="end">{ns}</text>')
    for n in numbers:
        parts.append(f'<text x="{x(n)}" y="{_TOP + _HEIGHT + 16}" text-anchor="middle">{n}</text>')
    for key, line in points.items():
        colour, dashes, _ = _LINES[key]
        places = " ".join(f"{x(n)},{y(ns)}" for n, ns in sorted(line))
        style = f'stroke="{colour}" stroke-width="2" stroke-dasharray="{dashes}"'
        parts.append(f'<polyline points="{places}" fill="none" {style}/>')
    return parts


if __name__ == "__main__":
    sys.stdout.write(draw(read(sys.stdin)))
