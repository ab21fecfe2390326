"""The search for the largest packet that a link carries: which sizes to try next, from what came back. Pure."""

from __future__ import annotations

from collections.abc import Iterable

AT_ONCE = 16  # sizes that are tried in one round
# What links usually carry: Ethernet, PPPoE, tunnels, VPNs. Tried first, since one of them is most likely the answer.
USUAL = (1500, 1492, 1480, 1476, 1472, 1468, 1460, 1450, 1440, 1420, 1400, 1380, 1350, 1280)


class Search:
    """`least` is surely carried if anything is; `wanted` is as far as anybody asks. All in bytes of the IP packet."""

    def __init__(self, least: int, wanted: int) -> None:
        self.least = least
        self.wanted = wanted
        self._carried: int | None = None  # the largest that came through
        self._lost = wanted + 1  # the smallest that did not
        self._hints: set[int] = set(USUAL)
        self._tried: set[int] = set()

    def limit(self, size: int) -> None:
        """Ask for no more than this; before the first size is tried."""
        self.wanted = min(self.wanted, size)
        self._lost = self.wanted + 1

    def hint(self, size: int) -> None:
        """A router on the way has stated this as its MTU."""
        self._hints.add(size)

    def note(self, answered: Iterable[int], unanswered: Iterable[int]) -> None:
        """What became of the sizes that were tried: one that is carried shows that smaller ones are."""
        answered, unanswered = list(answered), list(unanswered)
        self._tried.update(answered, unanswered)
        for size in answered:
            self._carried = size if self._carried is None else max(self._carried, size)
        lost = [size for size in unanswered if self._carried is None or size > self._carried]
        self._lost = min([self._lost, *lost])

    @property
    def path_mtu(self) -> int | None:
        """The largest size that is known to be carried; None: nothing is."""
        return self._carried

    @property
    def tried(self) -> bool:
        return bool(self._tried)

    @property
    def fits(self) -> bool:
        return self._carried is not None and self._carried >= self.wanted

    def next_sizes(self) -> list[int]:
        """What to try now; nothing when the answer is known."""
        if not self._tried:
            return sorted({self.least, self.wanted})
        if self._carried is None:
            return []
        low, high = self._carried + 1, self._lost - 1  # those still open
        if low > high:
            return []
        # A size and its successor decide together.
        near = {size + more for size in self._hints for more in (0, 1)}
        chosen = {size for size in near if low <= size <= high}
        step = max((high - low) // AT_ONCE, 1)
        return sorted(chosen | set(range(low, high + 1, step)))
