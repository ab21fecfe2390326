"""systemd's service notifications (sd_notify(3)); silent where there is no service manager."""

from __future__ import annotations

import logging
import os
import socket
import time

log = logging.getLogger(__name__)

_PATIENCE_S = 0.2  # with a queue of messages that nobody takes


def notify(*assignments: str) -> None:
    """Send e.g. ``notify("READY=1", "STATUS=forwarding")`` to the service manager, if there is one."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        sender.settimeout(_PATIENCE_S)
        try:
            sender.sendto("\n".join(assignments).encode(), address)
        except OSError as error:  # a service manager that is not listening, or never reads, is no reason to stop
            log.warning("NOTIFY_SOCKET %s: %s", address, error.strerror or error)


def notify_reloading() -> None:
    """RELOADING=1 with the time stamp that Type=notify-reload wants; READY=1 ends it."""
    notify("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")
