"""Workspaces with LFS files in place: which files, what git and git-lfs say of them, and what is not there yet."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance.core.workspace import lfs_ahead
from appliance.core.workspace.git_index import normalise_index
from appliance.core.workspace.snapshot_registry import NoSnapshot
from tests.support.gitutil import fsck, git
from tests.support.lfs_server import pointer_of
from tests.workspace.lfs_room import ATTRIBUTES, BIG, SMALL, LfsRoom, assert_clean, unpack, with_git_lfs

Test = Callable[[], Coroutine[Any, Any, None]]


@pytest.fixture
def room(tmp_path: Path) -> Iterator[LfsRoom]:
    """A room whose workspaces have content."""
    made = LfsRoom(tmp_path / "room")
    yield made
    made.close()


def run(room: LfsRoom, test: Test) -> None:
    """Run a test in an event loop, and end what it began."""

    async def whole() -> None:
        try:
            await test()
        finally:
            await room.snapshots.stop()

    asyncio.run(whole())


def test_content_is_in_place_and_git_sees_no_change(room: LfsRoom, tmp_path: Path) -> None:
    """Without git-lfs: status, diff and stash leave the files alone, an edit is seen, other files behave as ever."""
    room.commit(
        {".gitattributes": ATTRIBUTES, "a.bin": room.store.add(BIG), "d/b.bin": room.store.add(SMALL), "c": "c"}
    )

    async def test() -> None:
        unpack(await room.tar(), tmp_path / "guest")

    run(room, test)
    guest = tmp_path / "guest"
    assert (guest / "a.bin").read_bytes() == BIG and (guest / "d" / "b.bin").read_bytes() == SMALL
    fsck(guest)
    assert_clean(guest)
    assert not (guest / ".git" / "lfs").exists()
    (guest / "c").write_text("changed\n")
    git("stash", cwd=guest)
    assert_clean(guest)
    git("stash", "pop", cwd=guest)
    assert git("status", "--porcelain", cwd=guest) == "M c"
    git("add", "--all", cwd=guest)
    assert git("diff", "--cached", "--name-only", cwd=guest) == "c"
    with (guest / "a.bin").open("r+b") as file:
        file.write(b"X")
    assert git("status", "--porcelain", "a.bin", cwd=guest) == "M a.bin"
    assert (guest / "a.bin").stat().st_size == len(BIG)


@pytest.mark.slow
def test_git_lfs_takes_the_files_for_its_own(room: LfsRoom, tmp_path: Path) -> None:
    """status, ls-files and add say what they say in a clone; with the objects from the files, fsck and checkout too."""
    env = with_git_lfs(tmp_path / "home")
    room.commit({".gitattributes": ATTRIBUTES, "a.bin": room.store.add(BIG), "b.bin": room.store.add(SMALL)})

    async def test() -> None:
        unpack(await room.tar(), tmp_path / "guest")

    run(room, test)
    guest = tmp_path / "guest"
    assert_clean(guest, env)
    found = git("lfs", "ls-files", "--long", cwd=guest, env=env).splitlines()
    assert [line.split()[1] for line in found] == ["*", "*"]
    assert "a.bin" not in git("lfs", "status", "--porcelain", cwd=guest, env=env)
    os.utime(guest / "a.bin")
    (guest / "b.bin").write_bytes(SMALL)
    git("add", "a.bin", "b.bin", cwd=guest, env=env)
    assert_clean(guest, env)
    # git-lfs has taken the objects of both into its store.
    git("lfs", "fsck", cwd=guest, env=env)
    (guest / "b.bin").write_bytes(b"edited")
    assert git("status", "--porcelain", cwd=guest, env=env) == "M b.bin"
    git("stash", cwd=guest, env=env)
    assert (guest / "b.bin").read_bytes() == SMALL
    git("stash", "pop", cwd=guest, env=env)
    git("checkout", "--", "b.bin", cwd=guest, env=env)
    assert (guest / "b.bin").read_bytes() == SMALL
    assert_clean(guest, env)


@pytest.mark.slow
def test_attributes_decide_which_files_are_of_lfs(room: LfsRoom, tmp_path: Path) -> None:
    """Nested files, macros, exceptions, links, odd names; whatever is no pointer stays what it is."""
    pointer, empty = room.store.add(SMALL), pointer_of(b"")
    content = {
        "a b/ü\nx.bin": pointer, "deep/er/x.dat": pointer, "run.bin": pointer, "of/macro.iso": pointer,
    }  # fmt: skip
    pointers = {"not.bin": pointer, "deep/other.bin": pointer, "plain.txt": pointer, "of/no.iso": pointer}
    others = {"none.bin": b"", "real.bin": BIG, "zero.bin": empty, "wrong.bin": pointer_of(SMALL).replace(b"15", b"16")}
    room.commit(
        {
            ".gitattributes": "[attr]large filter=lfs -text\n*.bin filter=lfs\nnot.bin -filter\n*.iso large\n",
            "deep/.gitattributes": "*.dat filter=lfs\n*.bin !filter\n",
            "of/.gitattributes": "no.iso -large filter=other\n",
            **content,
            **pointers,
            **others,
        }
    )
    scratch = tmp_path / "scratch"
    git("clone", "--quiet", str(room.bare), str(scratch))
    (scratch / "link.bin").symlink_to("run.bin")
    (scratch / "run.bin").chmod(0o755)
    git("add", "link.bin", "run.bin", cwd=scratch)
    git("commit", "--quiet", "-m", "modes", cwd=scratch)
    git("push", "--quiet", "origin", "main", cwd=scratch)

    async def test() -> None:
        unpack(await room.tar(), tmp_path / "guest")

    run(room, test)
    guest = tmp_path / "guest"
    assert {path: (guest / path).read_bytes() for path in content} == dict.fromkeys(content, SMALL)
    assert {path: (guest / path).read_bytes() for path in pointers} == pointers
    assert {path: (guest / path).read_bytes() for path in others} == others
    assert (guest / "link.bin").is_symlink() and (guest / "run.bin").stat().st_mode & 0o777 == 0o755
    assert_clean(guest)


@pytest.mark.slow
def test_the_next_tip_changes_what_changed(room: LfsRoom, tmp_path: Path) -> None:
    """The tree that is kept has pointers: content that changes, stays, or becomes a plain file is right."""
    store = room.store
    first = room.commit({".gitattributes": ATTRIBUTES, "a.bin": store.add(BIG), "b.bin": store.add(SMALL)})

    async def test() -> None:
        room.snapshots.refresh(room.repo)
        await room.until(first)
        second = room.commit({"a.bin": store.add(b"another"), "e.bin": store.add(BIG)})
        room.snapshots.refresh(room.repo)
        unpack(await room.until(second), tmp_path / "second")
        third = room.commit({".gitattributes": "", "a.bin": b"no longer of LFS"})
        room.snapshots.refresh(room.repo)
        unpack(await room.until(third), tmp_path / "third")

    run(room, test)
    second, third = tmp_path / "second", tmp_path / "third"
    assert [(second / f"{name}.bin").read_bytes() for name in "abe"] == [b"another", SMALL, BIG]
    assert [(third / f"{name}.bin").read_bytes() for name in "ab"] == [b"no longer of LFS", pointer_of(SMALL)]
    assert_clean(second)
    assert_clean(third)
    assert store.fetches == [
        [hashlib.sha256(BIG).hexdigest(), hashlib.sha256(SMALL).hexdigest()],
        [hashlib.sha256(b"another").hexdigest()],
    ]


@pytest.mark.slow
def test_the_tar_of_the_tip_before_is_served_while_objects_come(room: LfsRoom) -> None:
    """A fetch that hangs keeps nobody from a workspace; once it has ended, the new tip is served."""
    first = room.commit({".gitattributes": ATTRIBUTES, "a.bin": room.store.add(BIG)})

    async def test() -> None:
        room.snapshots.refresh(room.repo)
        await room.until(first)
        room.store.gate = asyncio.Event()
        second = room.commit({"a.bin": room.store.add(SMALL)})
        room.snapshots.refresh(room.repo)
        async with asyncio.timeout(60):
            while len(room.store.fetches) < 2:
                await asyncio.sleep(0.01)
        assert (await room.snapshots.get(room.repo, None))[0].commit == first
        third = room.commit({"b.bin": room.store.add(b"and more")})
        room.snapshots.refresh(room.repo)
        room.store.gate.set()
        assert room.snapshots.current(room.repo).commit in (first, second)  # type: ignore[union-attr]
        await room.until(third, missing=0)

    run(room, test)


def test_a_first_guest_waits_for_the_objects(room: LfsRoom, tmp_path: Path) -> None:
    """Also for those of another branch than the followed one."""
    room.commit({"c": "c"})
    room.commit({".gitattributes": ATTRIBUTES, "a.bin": room.store.add(BIG)}, "other")

    async def test() -> None:
        room.store.gate = asyncio.Event()
        waiting = asyncio.create_task(room.tar("other"))
        async with asyncio.timeout(60):
            while not room.store.fetches:
                await asyncio.sleep(0.01)
        room.store.gate.set()
        unpack(await waiting, tmp_path / "guest")

    run(room, test)
    assert (tmp_path / "guest" / "a.bin").read_bytes() == BIG


@pytest.mark.slow
def test_a_tip_does_not_wait_for_ever(room: LfsRoom, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the bound the tar has pointers, which is said; when the objects come after all, it is built again."""
    monkeypatch.setattr(lfs_ahead, "FIRST_WAIT", 0.2)
    first = room.commit({".gitattributes": ATTRIBUTES, "a.bin": room.store.add(BIG), "b.bin": room.store.add(SMALL)})

    async def test() -> None:
        room.store.gate = asyncio.Event()
        unpack(await room.tar(), tmp_path / "early")
        [warning] = room.snapshots.complaints()
        assert "acme/widgets: 2 of 2 LFS files of main are pointers" in warning
        room.store.gate.set()
        unpack(await room.until(first, missing=0), tmp_path / "late")
        assert room.snapshots.complaints() == []

    run(room, test)
    assert (tmp_path / "early" / "a.bin").read_bytes() == pointer_of(BIG)
    assert (tmp_path / "late" / "a.bin").read_bytes() == BIG
    assert_clean(tmp_path / "early")
    assert_clean(tmp_path / "late")


@pytest.mark.slow
def test_what_cannot_be_had_is_a_pointer_and_asked_for_again(
    room: LfsRoom, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Not in a loop, and not when nothing came; the next `serve` knows of it and asks at once."""
    monkeypatch.setattr(lfs_ahead, "FIRST_RETRY", 0.05)
    commit = room.commit({".gitattributes": ATTRIBUTES, "a.bin": pointer_of(BIG), "b.bin": room.store.add(SMALL)})

    async def test() -> None:
        room.snapshots.refresh(room.repo)
        before = unpack(await room.until(commit, missing=1), tmp_path / "before")
        assert (before / "a.bin").read_bytes() == pointer_of(BIG) and (before / "b.bin").read_bytes() == SMALL
        assert_clean(before)
        async with asyncio.timeout(60):
            while len(room.store.fetches) < 4:
                await asyncio.sleep(0.01)
        assert sum("snapshot of main" in each.getMessage() for each in caplog.records) == 1
        await room.snapshots.stop()
        room.begin()
        room.snapshots.refresh(room.repo)
        await room.until(commit, missing=1)
        room.store.add(BIG)
        after = unpack(await room.until(commit, missing=0), tmp_path / "after")
        assert (after / "a.bin").read_bytes() == BIG
        # The line comes a moment later than the tar.
        async with asyncio.timeout(60):
            while sum("snapshot of main" in each.getMessage() for each in caplog.records) != 2:
                await asyncio.sleep(0.01)

    caplog.set_level("INFO")
    run(room, test)


@pytest.mark.slow
def test_more_than_the_budget_is_said_and_not_fetched(room: LfsRoom, tmp_path: Path) -> None:
    """What fits is in place, by the order of the paths; with a larger budget, all of it."""
    room.commit({".gitattributes": ATTRIBUTES, "a.bin": room.store.add(SMALL), "b.bin": room.store.add(BIG)})
    commit = room.commit({"c.bin": room.store.add(SMALL), "d.bin": room.store.add(SMALL)})
    room.budget = len(BIG) - 1

    async def test() -> None:
        guest = unpack(await room.tar(), tmp_path / "guest")
        assert (guest / "a.bin").read_bytes() == SMALL and (guest / "b.bin").read_bytes() == pointer_of(BIG)
        [warning] = room.snapshots.complaints()
        assert "1 of 4 LFS files of main are pointers" in warning and "lfs_budget is only 100" in warning
        room.snapshots.refresh(room.repo)
        room.budget = 2**20
        room.snapshots.refresh(room.repo)
        await room.until(commit, missing=0)

    run(room, test)
    assert len(room.store.fetches) == 2


@pytest.mark.slow
def test_without_a_store_files_are_pointers(room: LfsRoom, tmp_path: Path) -> None:
    """`lfs_budget = 0` is said in the warnings."""
    room.commit({".gitattributes": ATTRIBUTES, "a.bin": room.store.add(SMALL)})
    room.budget = 0

    async def test() -> None:
        guest = unpack(await room.tar(), tmp_path / "guest")
        assert (guest / "a.bin").read_bytes() == pointer_of(SMALL)
        assert "lfs_budget is 0" in room.snapshots.complaints()[0]

    run(room, test)


def test_an_object_that_is_damaged_or_gone_is_fetched_again(room: LfsRoom, tmp_path: Path) -> None:
    """It is noticed while the tar is written, which never has wrong content."""
    room.commit({".gitattributes": ATTRIBUTES, "a.bin": room.store.add(BIG)})

    async def test() -> None:
        [oid] = room.store.upstream
        wrong = room.store.place / room.repo.name / oid[:2] / oid
        wrong.parent.mkdir(parents=True)
        wrong.write_bytes(BIG[::-1])
        unpack(await room.tar(), tmp_path / "guest")

    run(room, test)
    assert (tmp_path / "guest" / "a.bin").read_bytes() == BIG


@pytest.mark.slow
def test_a_store_that_always_has_wrong_content_ends_in_an_error(room: LfsRoom) -> None:
    """Not in a loop of downloads."""
    room.commit({".gitattributes": ATTRIBUTES, "a.bin": room.store.add(BIG)})
    [oid] = room.store.upstream
    room.store.upstream[oid] = BIG[::-1]

    async def test() -> None:
        with pytest.raises(NoSnapshot, match="has changed on disk"):
            await room.tar()

    run(room, test)
    assert len(room.store.fetches) == lfs_ahead.MOST_LOSSES + 1


def test_large_sizes_are_as_git_has_them(tmp_path: Path) -> None:
    """The index has 32 bits for a size, and never 0 for a file that has content."""
    git("init", "--quiet", cwd=tmp_path)
    for name in ("a", "b", "c"):
        (tmp_path / name).write_text(name)
    git("add", ".", cwd=tmp_path)
    index, _ = normalise_index((tmp_path / ".git" / "index").read_bytes(), {"a": 2**32, "b": 2**32 + 5})
    (tmp_path / ".git" / "index").write_bytes(index)
    sizes = [line.split()[1] for line in git("ls-files", "--debug", cwd=tmp_path).splitlines() if "size:" in line]
    assert sizes == [str(2**31), "5", "1"]


@pytest.mark.slow
def test_pointers_are_the_default(tmp_path: Path) -> None:
    """Nothing is fetched for them."""
    room = LfsRoom(tmp_path / "room", lfs="pointers")
    room.commit({".gitattributes": ATTRIBUTES, "a.bin": room.store.add(SMALL)})

    async def test() -> None:
        guest = unpack(await room.tar(), tmp_path / "guest")
        assert (guest / "a.bin").read_bytes() == pointer_of(SMALL)

    run(room, test)
    room.close()
    assert room.store.fetches == [] and room.snapshots.complaints() == []
