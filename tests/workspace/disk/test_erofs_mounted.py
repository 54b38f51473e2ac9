"""What fsck.erofs says of written images, and what the kernel makes of them when they are mounted."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest

from appliance.core.workspace.disk.erofs import DataFile, Directory, write_image
from appliance.core.workspace.disk.header import header
from tests.support.drives import mounted, needs_mount
from tests.support.erofs_reader import read_image
from tests.workspace.disk.test_erofs import SMALL
from tests.workspace.disk.trees import UUID, Data, Drives, Own, Symlink, Tree, expected, on_disk, write

needs_fsck = pytest.mark.skipif(shutil.which("fsck.erofs") is None, reason="fsck.erofs is not installed")

LONG: Tree = {
    b"n" * 255: Data(b"long"),
    b"\x01\x02\xff" * 85: {b"m" * 255: Symlink(b"t" * 4095), b"s": Symlink(b"t" * 4032)},
    b"own": Own(b"o" * 4032),
    b"whole": Own(b"w" * 4033),
    b"big": Own(bytes(range(256)) * 4001),
    b"exact": Own(b"e" * 8192),
}


def deep(depth: int) -> Tree:
    """A chain of directories with a file in each."""
    tree: Tree = {}
    for level in range(depth):
        tree = {b"d": tree, b"file": Data(b"%d" % level, 100 + level)}
    return tree


def scattered(seed: int, nodes: int) -> Tree:
    """A tree of directories of all sizes, with names of any bytes, files of some sizes and links."""
    pick = random.Random(seed)
    directories: list[Tree] = [{}]
    for _ in range(nodes):
        name = pick.randbytes(min(255, int(pick.paretovariate(0.7)))).replace(b"/", b"|").replace(b"\0", b" ")
        if name in (b".", b".."):
            continue
        size = pick.choice((0, 1, pick.randrange(300), 4032, 4096, 9000))
        value: Tree | Data | Own | Symlink = pick.choice(
            ({}, Data(b"d" * size, pick.randrange(1 << 31), pick.random() < 0.5), Own(b"o" * size), Symlink(name))
        )
        # One that is chosen often becomes large.
        into = directories[int(len(directories) * pick.random() ** 4)]
        if into.setdefault(name, value) is value and isinstance(value, dict):
            directories.append(value)
    return directories[0]


def fsck(drives: Drives) -> None:
    """Asserts that fsck.erofs has nothing to say."""
    # On one drive it reads contents too. erofs-utils 1.5 looks for those of a second one on the first.
    options = [f"--device={drives.data}"] if drives.data else ["--extract"]
    result = subprocess.run(["fsck.erofs", *options, str(drives.tree)], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, ""), result


TREES = {
    "small": SMALL,
    "empty": {},
    "long names": LONG,
    "deep": deep(200),
    "scattered": scattered(1, 1000),
    "otherwise": scattered(2, 1000),
}


@pytest.mark.parametrize("single", [False, True], ids=["two drives", "one drive"])
@pytest.mark.parametrize("name", TREES)
@needs_fsck
def test_fsck_finds_nothing(tmp_path: Path, name: str, single: bool) -> None:
    """Another implementation's reader agrees."""
    fsck(write(TREES[name], tmp_path, single=single))


@pytest.mark.parametrize("single", [False, True], ids=["two drives", "one drive"])
@pytest.mark.parametrize("name", TREES)
@needs_mount
def test_the_kernel_finds_all(tmp_path: Path, name: str, single: bool) -> None:
    """Each path, looked up by its name, with its mode, owner, links, mtime and contents."""
    drives = write(TREES[name], tmp_path, single=single)
    with mounted(drives.tree, drives.data) as top:
        assert on_disk(top) == expected(TREES[name])


@needs_mount
def test_a_header_changes_nothing(tmp_path: Path) -> None:
    """The text in the first kilobyte is written when the image is complete, and no checksum covers it."""
    drives = write(SMALL, tmp_path)
    with drives.tree.open("r+b") as file:
        file.write(header({"role": "tree", "format": "erofs"}))
    if shutil.which("fsck.erofs"):
        fsck(drives)
    with mounted(drives.tree, drives.data) as top:
        assert on_disk(top) == expected(SMALL)


@needs_mount
def test_data_that_is_cut_fails_and_data_that_grew_does_not(tmp_path: Path) -> None:
    """The kernel does not compare the size of the data drive when it mounts; later tips append to it."""
    drives = write({b"first": Data(b"1" * 4096), b"second": Data(b"2" * 4096)}, tmp_path)
    assert drives.data
    whole = drives.data.read_bytes()
    drives.data.write_bytes(whole + b"more" * 4096)
    with mounted(drives.tree, drives.data) as top:
        assert (top / "second").read_bytes() == b"2" * 4096
    drives.data.write_bytes(whole[:-4096])
    with mounted(drives.tree, drives.data) as top:
        assert (top / "first").read_bytes() == b"1" * 4096
        with pytest.raises(OSError, match="Input/output"):
            (top / "second").read_bytes()


@needs_mount
def test_a_changed_superblock_is_refused_by_the_kernel(tmp_path: Path) -> None:
    """The kernel verifies the checksum, so a mount is a check of the first block; nothing of the mount stays."""
    drives = write(SMALL, tmp_path)
    with drives.tree.open("r+b") as file:
        file.seek(1024 + 64)
        file.write(b"another label")
    with pytest.raises(subprocess.CalledProcessError), mounted(drives.tree, drives.data):
        pass
    loops = subprocess.run(["losetup", "--all"], check=True, capture_output=True, text=True).stdout
    assert str(tmp_path) not in loops


@pytest.mark.parametrize(
    ("count", "directories"), [(20_000, False), pytest.param(66_000, True, marks=pytest.mark.slow)]
)
@needs_mount
def test_many_entries_in_one_directory(tmp_path: Path, count: int, directories: bool) -> None:
    """More than 65,535 subdirectories need more links than a compact inode has."""
    tree: Tree = {b"many": {b"name%d" % number: {} if directories else Own(b"", number) for number in range(count)}}
    drives = write(tree, tmp_path)
    if shutil.which("fsck.erofs"):
        fsck(drives)
    assert read_image(drives.tree, drives.data) == expected(tree)
    with mounted(drives.tree, drives.data) as top:
        assert on_disk(top) == expected(tree)


@pytest.mark.parametrize("single", [False, True], ids=["two drives", "one drive"])
@needs_mount
def test_a_file_of_more_than_4_gib(tmp_path: Path, single: bool) -> None:
    """Its size and its addresses need more than 32 bits of bytes. The file has holes, so it takes no room."""
    size = (4 << 30) + 5000
    blocks = 1 - (-size // 4096) + 1
    root = Directory({b"big": DataFile(1, size, 3, True), b"next": DataFile(blocks - 1, 4, 4, False)})
    tree, data = tmp_path / "tree", tmp_path / "data"
    with tree.open("wb") as file:
        tag = None if single else b"t"
        image = write_image(file, root, label=b"", uuid=UUID, build_time=5, data_blocks=blocks, data_tag=tag)
    begin = image.metadata if single else 0
    with (tree if single else data).open("r+b" if single else "wb") as file:
        for at, text in ((4096, b"first"), (4096 + size - 4, b"last"), ((blocks - 1) * 4096, b"next")):
            file.seek(begin + at)
            file.write(text)
        file.truncate(begin + blocks * 4096)
    with mounted(tree, None if single else data) as top, (top / "big").open("rb") as big:
        assert os.fstat(big.fileno()).st_size == size
        assert big.read(5) == b"first"
        assert big.seek(size - 4) and big.read() == b"last"
        assert (top / "next").read_bytes() == b"next"
