"""What the director notices of its table file."""

from __future__ import annotations

import asyncio
from pathlib import Path

from glb.director.watch import file_changes, identity


def replaced(path: Path, text: str) -> None:
    path.with_suffix(".new").write_text(text)
    path.with_suffix(".new").rename(path)


def test_each_change_once_and_nothing_of_other_files(tmp_path: Path) -> None:
    path = tmp_path / "tables.json"
    path.write_text("1")

    async def watch() -> None:
        changes = file_changes(path, identity(path))
        for text in ("2", "3"):
            change = asyncio.ensure_future(anext(changes))
            await asyncio.sleep(0)
            (tmp_path / "other").write_text("x")
            assert await asyncio.wait([change], timeout=0.2) == (set(), {change})
            replaced(path, text)
            await asyncio.wait_for(change, 5)
        await changes.aclose()  # type: ignore[attr-defined]

    asyncio.run(watch())


def test_what_was_changed_before_anybody_watched_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "tables.json"
    path.write_text("1")
    before = identity(path)
    replaced(path, "2")

    async def watch() -> None:
        await asyncio.wait_for(anext(file_changes(path, before)), 1)

    asyncio.run(watch())


def test_a_file_that_was_not_there_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "tables.json"

    async def watch() -> None:
        change = asyncio.ensure_future(anext(file_changes(path, identity(path))))
        await asyncio.sleep(0)
        path.write_text("1")
        await asyncio.wait_for(change, 5)

    asyncio.run(watch())
