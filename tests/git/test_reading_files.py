"""Files are read at a ref with their exact bytes, whatever their names and sizes; so are directories and submodules."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from appliance.core.errors import NotFound, TooLarge, UsageError
from appliance.core.git.command import GitError
from appliance.core.git.mirror import Mirror
from appliance.core.git.reading import MOST_ENTRIES, FileAtRef, open_file
from appliance.core.text import storable
from tests.git.lab import Lab
from tests.git.reads import counting, left_early, plain, stored, whole
from tests.support.generate import ODD_NAMES, create_repository
from tests.support.gitutil import git, git_bytes, wait_until

PEOPLE = b"author A <a@b> 7 +0000\ncommitter B <b@c> 8 +0000\n"
NAMES = [
    *(b"caf\xe9", b"line\nend", b":(top)x", b":/x", b"*", b"a*b", b"[a]", b"back\\slash", b"\x01", b'"q"', b"-n"),
    *(b"--", b" ", b"HEAD", "näive ☃".encode(), b"x" * 255),
]


@pytest.fixture
def mirror(lab: Lab, widgets_bare: Path) -> Mirror:
    """A mirror of the generated repository."""
    lab.refresh(lab.repo(widgets_bare))
    return lab.mirror()


@pytest.fixture
def bare(lab: Lab, tmp_path: Path) -> Mirror:
    """An empty repository."""
    return Mirror(create_repository(tmp_path / "odd.git"), lab.git)


def plant(mirror: Mirror, *entries: tuple[bytes, str, bytes]) -> str:
    """Commit a tree of (mode, oid, name) to main; return the commit."""
    # Made as bytes, because mktree refuses what other programs write.
    ordered = sorted(entries, key=lambda entry: entry[2] + (b"/" if entry[0] == b"40000" else b""))
    tree = stored(mirror.path, "tree", b"".join(b"%s %s\0%s" % (m, n, bytes.fromhex(o)) for m, o, n in ordered))
    made = stored(mirror.path, "commit", b"tree %s\n%s\nMade\n" % (tree.encode(), PEOPLE))
    git("update-ref", "refs/heads/main", made, cwd=mirror.path)
    return made


async def read(mirror: Mirror, ref: str | None, path: str) -> tuple[FileAtRef, bytes]:
    """A file and its content."""
    found = await open_file(mirror, ref, path)
    assert isinstance(found, FileAtRef)
    return found, await whole(found.chunks)


async def told(mirror: Mirror, ref: str | None, path: str) -> dict[str, Any]:
    """The document of what is no file."""
    found = await open_file(mirror, ref, path)
    assert isinstance(found, dict)
    return found


@pytest.mark.slow
def test_every_file_of_a_tree(lab: Lab, mirror: Mirror) -> None:
    """Content, size, mode and kind; git's own listing is the measure."""
    tip = git("rev-parse", "main", cwd=mirror.path)
    listing = plain(mirror.path, "ls-tree", "-r", "-l", "-z", "main").split(b"\0")[:-1]
    seen = set()
    odd_or_new = [each for each in listing if each.startswith((b"100755", b"120000"))] + listing[::12]
    odd_or_new += [each for each in listing if each.partition(b"\t")[2].decode() in ODD_NAMES]
    for record in odd_or_new:
        facts, _, name = record.partition(b"\t")
        mode, _, oid, size = facts.decode().split()
        file, content = lab.run(read(mirror, "main", name.decode()))
        assert (file.oid, file.size, file.mode, file.commit) == (oid, int(size), mode, tip)
        assert content == plain(mirror.path, "cat-file", "blob", oid)
        seen.add((file.mode, file.kind))
    assert seen == {("100644", "file"), ("100755", "executable"), ("120000", "symlink")}


def test_a_file_takes_few_processes(lab: Lab, mirror: Mirror) -> None:
    """Finding the ref, its commit and the entry, then the content."""
    assert counting(lab, lambda: read(mirror, "main", "README.md")) == 4


def test_an_empty_file(lab: Lab, mirror: Mirror) -> None:
    """It has no chunk."""
    file, content = lab.run(read(mirror, "main", "src/common/__init__.py"))
    assert (file.size, content) == (0, b"")


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_any_bytes_and_no_pattern(lab: Lab, bare: Mirror, name: bytes) -> None:
    """Beside a file that a pattern would match."""
    right, wrong = stored(bare.path, "blob", name), stored(bare.path, "blob", b"wrong")
    directory = stored(bare.path, "tree", b"100644 %s\0%s" % (name, bytes.fromhex(right)))
    plant(bare, (b"100644", right, name), (b"100644", wrong, b"aab"), (b"40000", directory, b"0"))
    for path in (os.fsdecode(name), f"0/{os.fsdecode(name)}"):
        assert lab.run(read(bare, None, path))[1] == name
    listing = lab.run(told(bare, "main", "0"))
    assert [each["name"] for each in listing["entries"]] == [storable(os.fsdecode(name))]


@pytest.mark.parametrize(
    "path",
    [
        *("nothing", "README.md/x", "src/nothing", "/README.md", "./README.md", "src/../README.md", "..", "."),
        *("src//server", "readme.md", "*", "READ*", ":/README.md", ":(top)README.md", "a\0b", "\ud800", "-"),
        *("x" * 70_000, "x/" * 4000 + "x"),
    ],
)  # fmt: skip
def test_a_path_that_no_tree_has(lab: Lab, mirror: Mirror, path: str) -> None:
    """It is not found. git would normalise some of these."""
    with pytest.raises(NotFound, match="no file"):
        lab.run(open_file(mirror, "main", path))


def test_the_ref_is_looked_up_as_for_commits(lab: Lab, mirror: Mirror) -> None:
    """An unknown one is not found, an expression is refused, an older one has older files."""
    with pytest.raises(NotFound):
        lab.run(open_file(mirror, "nothing", "README.md"))
    with pytest.raises(UsageError):
        lab.run(open_file(mirror, "main:README.md", ""))
    oldest = git("rev-list", "--max-parents=0", "main", cwd=mirror.path)
    file, content = lab.run(read(mirror, oldest, "README.md"))
    assert (file.commit, content) == (oldest, plain(mirror.path, "cat-file", "blob", f"{oldest}:README.md"))


@pytest.mark.parametrize("path", ["", "/", "src", "src/", "docs", "src/server"])
def test_a_directory_is_listed(lab: Lab, mirror: Mirror, path: str) -> None:
    """As `git ls-tree` lists it."""
    tree = f"main:{path.strip('/')}"
    expected = []
    for record in plain(mirror.path, "ls-tree", "-l", "-z", tree).split(b"\0")[:-1]:
        facts, _, name = record.decode().partition("\t")
        mode, kind, oid, size = facts.split()
        kinds = {"100644": "file", "100755": "executable", "120000": "symlink", "040000": "directory"}
        entry = {"name": name, "mode": mode, "kind": kinds[mode], "oid": oid}
        expected.append(entry | {"size": int(size) if kind == "blob" else None})
    assert lab.run(told(mirror, "main", path)) == {
        "kind": "directory",
        "mode": "040000",
        "oid": git("rev-parse", tree, cwd=mirror.path),
        "commit": git("rev-parse", "main", cwd=mirror.path),
        "entries": expected,
    }


def test_a_submodule_is_told_by_its_commit(lab: Lab, bare: Mirror) -> None:
    """Nothing is below it here, and in a listing it has no size."""
    made = plant(bare, (b"160000", "c" * 40, b"sub"), (b"100644", stored(bare.path, "blob", b"x"), b"file"))
    expected = {"kind": "submodule", "mode": "160000", "oid": "c" * 40, "commit": made}
    assert lab.run(told(bare, "main", "sub")) == expected
    entries = {each["name"]: each for each in lab.run(told(bare, "main", ""))["entries"]}
    assert entries["sub"] == {"name": "sub", "mode": "160000", "kind": "submodule", "oid": "c" * 40, "size": None}
    with pytest.raises(NotFound):
        lab.run(open_file(bare, "main", "sub/x"))


def test_a_directory_has_a_limit(lab: Lab, bare: Mirror) -> None:
    """Ten thousand entries are listed; of more, the limit is named, and the files are still read."""
    blob = stored(bare.path, "blob", b"x")
    entries = [(b"100644", blob, b"file-%05d" % number) for number in range(MOST_ENTRIES + 1)]
    fits = plant(bare, *entries[:-1])
    plant(bare, *entries)
    assert len(lab.run(told(bare, fits, ""))["entries"]) == MOST_ENTRIES
    with pytest.raises(TooLarge, match="10,000 entries") as raised:
        lab.run(open_file(bare, "main", ""))
    assert raised.value.hint and raised.value.exit_code == 1
    assert lab.run(read(bare, "main", "file-10000"))[1] == b"x"
    assert lab.running == 0


def large_blob(bare: Mirror, tmp_path: Path, size: int, *, packed: bool) -> str:
    """Store a blob of zeros as a loose object or in a pack."""
    file = tmp_path / "zeros"
    with file.open("wb") as out:
        out.truncate(size)
    limit = "1m" if packed else "4g"
    oid = git("-c", f"core.bigFileThreshold={limit}", "hash-object", "-w", str(file), cwd=bare.path)
    assert len(list(bare.path.glob("objects/pack/*.pack"))) == packed
    plant(bare, (b"100644", oid, b"large"))
    return oid


@pytest.mark.slow
@pytest.mark.parametrize("packed", [False, True])
def test_a_large_file_takes_no_memory(lab: Lab, bare: Mirror, tmp_path: Path, packed: bool) -> None:
    """Neither here nor in git: 128 MiB are read in a few."""
    size = 2**27
    large_blob(bare, tmp_path, size, packed=packed)
    peaks: list[int] = []

    async def drain() -> int:
        found = await open_file(bare, "main", "large")
        assert isinstance(found, FileAtRef)
        total = 0
        async for piece in found.chunks:
            assert len(piece) <= 65536
            if total // 2**23 != (total + len(piece)) // 2**23:
                peaks.extend(map(peak_of, children()))
            total += len(piece)
        return total

    tracemalloc.start()
    try:
        assert lab.run(drain()) == size
        assert tracemalloc.get_traced_memory()[1] < 2 * 2**20
    finally:
        tracemalloc.stop()
    assert len(peaks) >= 15 and max(peaks) < 64 * 2**20


@pytest.mark.slow
def test_a_huge_file_arrives_whole(lab: Lab, bare: Mirror, tmp_path: Path) -> None:
    """Every byte of it, where even git's default `core.bigFileThreshold` (512 MiB) has it streamed."""
    oid = large_blob(bare, tmp_path, 2**29 + 1, packed=True)

    async def digest() -> str:
        found = await open_file(bare, "main", "large")
        assert isinstance(found, FileAtRef)
        sha1 = hashlib.sha1(b"blob %d\0" % found.size)
        async for piece in found.chunks:
            sha1.update(piece)
        return sha1.hexdigest()

    assert lab.run(digest()) == oid


def children() -> list[int]:
    """The children of this process."""
    return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]


def peak_of(pid: int) -> int:
    """The most memory that a process has had, in bytes."""
    match = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(match[1]) * 1024 if match else 0


def test_a_reader_that_leaves_ends_git(lab: Lab, bare: Mirror, tmp_path: Path) -> None:
    """However it leaves: closing, cancelled in a wait, or dropped without a word."""
    large_blob(bare, tmp_path, 2**26, packed=False)

    async def opened() -> FileAtRef:
        found = await open_file(bare, "main", "large")
        assert isinstance(found, FileAtRef)
        assert lab.running == 0, "git starts at the first piece"
        return found

    async def close() -> None:
        assert len(await left_early((await opened()).chunks)) > 0
        assert lab.running == 0

    async def cancel() -> None:
        began = asyncio.Event()

        async def reader(found: FileAtRef) -> None:
            async for _ in found.chunks:
                began.set()

        task = asyncio.create_task(reader(await opened()))
        await began.wait()
        assert lab.running == 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await gone()

    async def drop() -> None:
        found = await opened()
        await anext(found.chunks)
        assert lab.running == 1
        del found
        await gone()

    async def gone() -> None:
        async with asyncio.timeout(30):
            while lab.running:
                await asyncio.sleep(0.01)

    before = set(children())
    for way in (close, cancel, drop):
        lab.run(way())
    wait_until(lambda: set(children()) <= before, message="git is left")


def test_a_damaged_file_is_an_error_and_no_short_file(lab: Lab, bare: Mirror, tmp_path: Path) -> None:
    """What arrived before is not taken for everything."""
    oid = large_blob(bare, tmp_path, 2**22, packed=False)
    file = bare.path / "objects" / oid[:2] / oid[2:]
    data = bytearray(file.read_bytes())
    data[len(data) // 2 :] = bytes(len(data) - len(data) // 2)
    file.chmod(0o644)
    file.write_bytes(data)
    with pytest.raises(GitError, match="cat-file"):
        lab.run(read(bare, "main", "large"))
    assert lab.running == 0


def test_a_missing_file_is_an_error_of_the_mirror(lab: Lab, bare: Mirror) -> None:
    """The tree has it, so it is not `NotFound`; in a listing it has no size."""
    plant(bare, (b"100644", "d" * 40, b"lost"))
    with pytest.raises(GitError, match="missing blob"):
        lab.run(open_file(bare, "main", "lost"))
    assert [each["size"] for each in lab.run(told(bare, "main", ""))["entries"]] == [None]


def test_sha256_repositories_are_read_too(lab: Lab, tmp_path: Path) -> None:
    """Ids are longer there."""
    path = tmp_path / "sha256.git"
    git("init", "--quiet", "--bare", "--object-format=sha256", "--initial-branch=main", str(path))
    code, _, stderr = git_bytes(
        "fast-import", "--quiet", cwd=path,
        input=b"commit refs/heads/main\ncommitter A <a@b> 1 +0000\ndata 1\nx\nM 100644 inline d/f\ndata 2\nhi\n",
    )  # fmt: skip
    assert code == 0, stderr
    file, content = lab.run(read(Mirror(path, lab.git), "main", "d/f"))
    assert (len(file.oid), len(file.commit), content) == (64, 64, b"hi")
