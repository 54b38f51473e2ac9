"""LFS files in place in parts of a tree: those of the part are fetched, and no others."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

import pytest

from appliance.core.workspace.shape import WantedShape
from tests.workspace.lfs_room import ATTRIBUTES, BIG, SMALL, LfsRoom, assert_clean, unpack


@pytest.mark.slow
def test_a_part_has_the_content_of_its_files(tmp_path: Path) -> None:
    """A guest that asks for one waits for its objects; a new tip brings what changed in it."""
    room = LfsRoom(tmp_path / "room")
    room.commit({".gitattributes": ATTRIBUTES, "in/a.bin": room.store.add(SMALL), "out/b.bin": room.store.add(BIG)})
    wanted = WantedShape(only=("in",))

    async def test() -> None:
        room.store.gate = asyncio.Event()
        waiting = asyncio.create_task(room.snapshots.get(room.repo, None, wanted))
        async with asyncio.timeout(60):
            while not room.store.fetches:
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)
        room.store.gate.set()
        unpack((await waiting)[1], tmp_path / "first")
        assert room.store.fetches[0] == [hashlib.sha256(SMALL).hexdigest()]
        tip = room.commit({"in/a.bin": room.store.add(b"another")})
        room.snapshots.refresh(room.repo)
        async with asyncio.timeout(60):
            while (await room.snapshots.get(room.repo, None, wanted))[0].commit != tip:
                await asyncio.sleep(0.01)
        unpack((await room.snapshots.get(room.repo, None, wanted))[1], tmp_path / "second")
        await room.snapshots.stop()

    asyncio.run(test())
    room.close()
    for name, data in (("first", SMALL), ("second", b"another")):
        guest = tmp_path / name
        assert (guest / "in" / "a.bin").read_bytes() == data and not (guest / "out").exists()
        assert_clean(guest)
