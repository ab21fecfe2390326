"""What is made of the kernel's notifications."""

from __future__ import annotations

import errno
from collections.abc import Iterator

import pytest

from glb.director.notifications import Notifications, Told


class Overrun:
    """A netlink socket that could not hold all that it was told, and has nothing else."""

    def __init__(self, *_: int) -> None:
        self._errors: Iterator[OSError] = iter([OSError(errno.ENOBUFS, "overrun"), BlockingIOError()])

    def setblocking(self, is_blocking: bool) -> None:
        assert not is_blocking

    def bind(self, address: tuple[int, int]) -> None:
        pass

    def recv(self, n_bytes: int) -> bytes:
        raise next(self._errors)


def test_what_was_lost_may_have_been_of_any_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.socket", Overrun)
    notifications = Notifications()
    assert notifications.take() == Told(True, True)
    assert notifications.take() == Told(False, False)
