"""What the proxies serve: files whose every byte follows from their path, so that a client can verify them."""

from __future__ import annotations

import hashlib
from pathlib import Path

DOWNLOADS = 32
DOWNLOAD_BYTES = 256 * 1024
SHORT_PATH = "/short"
SHORT_BYTES = 256


def download_path(number: int) -> str:
    return f"/download/{number % DOWNLOADS}"


def expected(path: str) -> bytes:
    """The whole content at ``path``: SHAKE-256 of the path."""
    return hashlib.shake_256(path.encode()).digest(SHORT_BYTES if path == SHORT_PATH else DOWNLOAD_BYTES)


def write(root: Path) -> None:
    """Put every file under ``root``, nginx's document root."""
    (root / "download").mkdir(parents=True)
    for path in (SHORT_PATH, *map(download_path, range(DOWNLOADS))):
        (root / path[1:]).write_bytes(expected(path))
