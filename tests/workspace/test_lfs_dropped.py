"""What is fetched for a snapshot ends when the snapshot is gone."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Sequence
from pathlib import Path

from appliance.core.lfs.pointers import Pointer
from appliance.core.models import Repo
from appliance.core.workspace.history import History
from appliance.core.workspace.lfs_ahead import FetchAhead
from appliance.core.workspace.lfs_files import Choice, LfsFiles
from appliance.core.workspace.shape import Shape
from appliance.core.workspace.snapshot_place import Snapshot, SnapshotPlace
from appliance.core.workspace.snapshot_registry import KeptSnapshot

REPO = Repo(1, "acme/widgets", "https://github.com/acme/widgets", "main", "cli", None, True, 0.0)


class Hanging:
    """A store whose upstream never answers; `ended` are the objects that nobody waits for any more."""

    def __init__(self) -> None:
        self.ended: list[str] = []

    def path_if_here(self, repo: Repo, oid: str) -> Path | None:
        """Nothing is here."""
        return None

    async def fetch(self, repo: Repo, pointers: Sequence[Pointer]) -> set[str]:
        """Hangs."""
        try:
            await asyncio.Event().wait()
        finally:
            self.ended += [pointer.oid for pointer in pointers]
        return set()


def test_a_part_that_is_gone_fetches_nothing_more(tmp_path: Path) -> None:
    """A guest may ask for any number of parts, of which few are kept."""
    store = Hanging()

    async def test() -> None:
        ahead = FetchAhead(store, lambda: 2**30)

        async def ask(name: str) -> SnapshotPlace:
            place = SnapshotPlace(tmp_path, "main", Shape(History.TREES, (name,), content=True))
            place.directory.mkdir(parents=True)

            async def build(choose: Choice) -> Snapshot:
                await choose([LfsFiles({f"{name}/a.bin": Pointer(name * 64, 1)})])
                raise AssertionError("it has nothing to wait for")

            assert await ahead.build(REPO, KeptSnapshot(place), build, lambda: None) is None
            await asyncio.sleep(0)
            return place

        first = await ask("a")
        await ask("b")
        assert store.ended == []
        shutil.rmtree(first.directory)
        await ask("c")
        await asyncio.sleep(0)
        assert store.ended == ["a" * 64]
        ahead.forget(REPO)
        await asyncio.sleep(0)
        assert sorted(store.ended) == ["a" * 64, "b" * 64, "c" * 64]

    asyncio.run(test())
