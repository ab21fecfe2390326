"""Where forwarding tables are kept: the source of truth that every director follows by itself.

A change is a function from what is stored to the new text. A store calls it with nobody else writing in between (by a
lock, or by compare-and-swap and another call), checks the result as a whole, and only then makes it visible at once.

Beside the tables a store keeps their history: what has been in force since each was last settled (glb.store.history).
What others changed it notices when it looks next; of several such changes in a row, only the last.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from glb.errors import StoreError
from glb.table.config import TableSet
from glb.table.document import Format
from glb.table.fields import Address

if TYPE_CHECKING:  # directors need none
    from glb.store.history import History


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a store held at one moment."""

    tables: TableSet
    text: str
    format: Format
    version: str  # differs whenever the text does
    source: str  # for messages


Change = Callable[[Snapshot], str | None]  # the new text; None: leave it as it is


class Store(Protocol):
    def load(self) -> Snapshot:
        """What is stored. StoreError if it cannot be read, ConfigError if it is no valid set of tables."""

    def update(self, change: Change, *, by: str) -> Snapshot:
        """Replace what is stored by `change` of it. The same errors; after any of them nothing has changed.

        by: the command, for the history.
        """

    def history(self, snapshot: Snapshot) -> History:
        """What was in force, the snapshot's tables last. StoreError or ConfigError if it cannot be read."""

    def settle(self, table: str, backends: Collection[Address] | None = None) -> None:
        """Note that displaced flows of the table have ended: all, or those that these backends held."""


def open_store(url: str) -> Store:
    """``file:///path`` or a plain path -> its store. StoreError for kinds of stores that are not known."""
    from glb.store.file import FileStore

    scheme, separator, rest = url.partition("://")
    if not separator:
        return FileStore(url)
    if scheme == "file":
        if not rest.startswith("/"):
            raise StoreError(f"{url}: a file store needs an absolute path: file:///etc/glb/tables.json")
        return FileStore(rest)
    if scheme == "etcd":
        raise StoreError(f"{url}: etcd as a store is not in this version; use a file")
    raise StoreError(f"{url}: unknown kind of store {scheme!r}; must be a path or file:///path")
