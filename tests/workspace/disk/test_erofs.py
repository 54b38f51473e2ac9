"""What the writer of EROFS images writes, read back by a reader of its own."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.core.errors import GitmirrorError
from appliance.core.workspace.disk import erofs
from appliance.core.workspace.disk.erofs import DataFile, Directory, Link, OwnFile, write_image
from tests.support.erofs_reader import Image, crc32c, read_image
from tests.workspace.disk.trees import TIME, UUID, Data, Own, Symlink, Tree, expected, write

SMALL: Tree = {
    b"a.c": Data(b"int a;\n", 11),
    b"a": {b"x": Data(b"x" * 4096, 12, True), b"empty": Data(b"", 13), b"none": {}},
    b"a-b": Symlink(b"a/x", 14),
    b".git": {b"HEAD": Own(b"ref: refs/heads/main\n", 15), b"index": Own(bytes(range(256)) * 90, 16)},
    b"zz": {b"deep": {b"er": Data(b"y" * 4097, 17)}},
    b"\xff\xfe": Data(b"bytes", 18),
}

names = st.one_of(
    st.sampled_from([b"a", b"a.c", b"a-b", b"a0", b".git", b"!", b"-", b".a", b"..."]),
    st.binary(min_size=1, max_size=12),
    st.binary(min_size=240, max_size=255),
).map(lambda name: name.replace(b"/", b"_").replace(b"\0", b"^"))
times = st.integers(0, 1 << 33)
sizes = st.one_of(st.integers(0, 40), st.sampled_from([4031, 4032, 4033, 4064, 4095, 4096, 4097, 8192, 8200, 12287]))
contents = st.builds(lambda size, seed: (b"%d," % seed * size)[:size], sizes, st.integers(0, 9))
targets = st.one_of(
    st.binary(min_size=1, max_size=30), st.sampled_from([b"t" * size for size in (4031, 4032, 4033, 4095)])
)
leaves = st.one_of(
    st.builds(Data, contents, times, st.booleans()),
    st.builds(Own, contents, times),
    st.builds(Symlink, targets.map(lambda target: target.replace(b"\0", b"0")), times),
)
trees = st.recursive(
    st.dictionaries(names.filter(lambda name: name not in (b".", b"..")), leaves, max_size=40),
    lambda inner: st.dictionaries(
        names.filter(lambda name: name not in (b".", b"..")), st.one_of(leaves, inner), max_size=8
    ),
    max_leaves=30,
)


@pytest.mark.parametrize("single", [False, True])
def test_a_small_tree_reads_back(tmp_path: Path, single: bool) -> None:
    """Everything is found with its mode, mtime and contents, on two drives and on one."""
    drives = write(SMALL, tmp_path, single=single)
    assert read_image(drives.tree, drives.data) == expected(SMALL)
    assert drives.size.inodes == len(expected(SMALL))
    assert drives.size.metadata % 4096 == 0


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(tree=trees, single=st.booleans())
def test_any_tree_reads_back(tree: Tree, single: bool) -> None:
    """Any names, any contents, inline or in blocks, and nothing overlaps."""
    with tempfile.TemporaryDirectory() as directory:
        drives = write(tree, Path(directory), single=single)
        assert read_image(drives.tree, drives.data) == expected(tree)


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 251), min_size=1, max_size=120),
    before=st.integers(0, 70),
    links=st.booleans(),
)
def test_directories_of_every_size_read_back(lengths: list[int], before: int, links: bool) -> None:
    """Whether the entries fill a block, or the rest of one, to the byte or not."""
    tree: Tree = {b"%d" % number: Data(b"") for number in range(before)}
    tree[b"d"] = {b"%04d" % number + b"n" * length: Data(b"") for number, length in enumerate(lengths)}
    tree[b"e"] = {b"f": {}, b"g": Symlink(b"h") if links else {}}
    with tempfile.TemporaryDirectory() as directory:
        drives = write(tree, Path(directory))
        assert read_image(drives.tree, drives.data) == expected(tree)


@pytest.mark.slow
def test_a_directory_that_fills_blocks_to_the_byte(tmp_path: Path) -> None:
    """From a few bytes less than one, two or three blocks to a few more."""
    for blocks in (1, 2, 3):
        for spare in (*range(-2, 40), 63, 64):
            tree: Tree = {}
            left = blocks * 4096 - 27 - spare
            while left > 12 + 200:
                name = b"%03d" % len(tree) + b"x" * 97
                tree[name] = Data(b"")
                left -= 12 + len(name)
            tree[b"y" * (left - 12)] = Data(b"")
            drives = write(tree, tmp_path)
            assert read_image(drives.tree, drives.data) == expected(tree)


def test_inodes_lie_as_git_walks_its_index(tmp_path: Path) -> None:
    """A cold `git status` reads forwards: by whole paths, `.git` behind everything else, the root first."""
    tree: Tree = SMALL | {b".gita": Data(b"1"), b".git0": {b"x": Data(b"2")}, b"~": Data(b"3")}
    drives = write(tree, tmp_path)
    assert drives.data
    with drives.tree.open("rb") as file, drives.data.open("rb") as data:
        image = Image(file, data)
        paths = [path for path, found in image.paths().items() if isinstance(found.content, bytes)]
        nids = [inode.nid for inode in image.inodes]
        numbers = [inode.number for inode in image.inodes]
    own = [path for path in paths if path.startswith(b".git/")]
    assert paths == sorted(set(paths) - set(own)) + own
    assert nids == sorted(nids) and nids[0] == image.root_nid == 1
    assert numbers == list(range(1, len(nids) + 1))


def test_what_the_superblock_says(tmp_path: Path) -> None:
    """Label, UUID, time, and where the second device is seen."""
    drives = write(SMALL, tmp_path)
    assert drives.data
    with drives.tree.open("rb") as file, drives.data.open("rb") as data:
        image = Image(file, data)
    assert (image.label, image.uuid, image.build_time, image.tag) == (b"a label", UUID, TIME, b"d1")
    assert image.blocks * 4096 == drives.tree.stat().st_size == drives.size.metadata
    assert image.data_blocks * 4096 == drives.data.stat().st_size
    assert image.data_at == drives.size.data_at == 1 << 24


def test_the_second_device_is_seen_behind_an_image_of_any_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An image of more than `LEAST_MAPPED` blocks would take 64 GiB, so the constant is small here."""
    monkeypatch.setattr(erofs, "LEAST_MAPPED", 1)
    drives = write(SMALL, tmp_path)
    assert drives.size.data_at == 8 > drives.size.metadata // 4096
    assert read_image(drives.tree, drives.data) == expected(SMALL)


def test_small_files_of_the_image_lie_behind_their_inodes(tmp_path: Path) -> None:
    """Up to what fits in one block with the inode; so do directories."""
    tree: Tree = {b"a": Own(b"a" * 4032), b"b": Own(b"b" * 4033), b"c": {b"n" * 200 + b"%d" % n: {} for n in range(18)}}
    drives = write(tree, tmp_path)
    assert drives.data
    with drives.tree.open("rb") as file, drives.data.open("rb") as data:
        image = Image(file, data)
        found = dict(zip(image.paths(), image.inodes, strict=True))
    assert [found[name].layout for name in (b"a", b"b", b"c")] == [2, 0, 2]
    assert found[b"c"].size == 18 * 213 + 8 * 1 + 2 * 12 + 3


@pytest.mark.slow
@pytest.mark.parametrize(("subdirectories", "length"), [(65_533, 32), (65_534, 64)])
def test_directories_with_more_links_than_16_bits_have_larger_inodes(
    tmp_path: Path, subdirectories: int, length: int
) -> None:
    """A directory has a link from itself, one from above, and one from each directory below it."""
    tree: Tree = {b"many": {b"%d" % number: {} for number in range(subdirectories)}}
    drives = write(tree, tmp_path, single=True)
    with drives.tree.open("rb") as file:
        image = Image(file)
        assert image.paths() == expected(tree)
    assert (image.inodes[1].length, image.inodes[1].links) == (length, subdirectories + 2)


def test_one_drive_counts_its_data(tmp_path: Path) -> None:
    """The data area follows the metadata in the same file."""
    drives = write(SMALL, tmp_path, single=True)
    with drives.tree.open("rb") as file:
        image = Image(file)
    assert image.blocks * 4096 == drives.tree.stat().st_size > drives.size.metadata
    assert drives.size.data_at * 4096 == drives.size.metadata


def test_the_first_kilobyte_is_not_covered_by_the_checksum(tmp_path: Path) -> None:
    """So the header can be written into it later. The checksum is CRC-32C: its check value is 0xE3069283."""
    assert crc32c(b"123456789") ^ 0xFFFFFFFF == 0xE3069283
    assert write(SMALL, tmp_path).tree.read_bytes()[:1024] == bytes(1024)


def test_the_same_tree_gives_the_same_bytes(tmp_path: Path) -> None:
    """Whatever the order in which its entries were added, and also from nodes that were written before."""

    def image(root: Directory) -> bytes:
        file = io.BytesIO()
        write_image(file, root, label=b"", uuid=UUID, build_time=1, data_blocks=9, data_tag=b"t")
        return file.getvalue()

    def tree(names: list[bytes]) -> Directory:
        root = Directory({name: DataFile(1, 2, 3, False) for name in names})
        root.entries[b"d"] = Directory({b"own": OwnFile(b"x" * 9999, 4), b"link": Link(b"t", 5)})
        return root

    root = tree([b"a", b"b", b"c"])
    assert image(root) == image(root) == image(tree([b"c", b"a", b"b"]))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (b"n" * 256, "a name of 256 bytes"),
        (b"", "empty name"),
        (b".", "'d/.'"),
        (b"..", r"'d/..'"),
        (b"a/b", "slash"),
        (b"a\0b", r"a\x00b"),
        (b"\x1b[2J" + b"n" * 256, r"\x1b[2J"),
    ],
)
def test_names_that_linux_cannot_have_are_refused(name: bytes, said: str) -> None:
    """The message has the path, escaped."""
    root = Directory({b"d": Directory({b"good": Directory(), name: OwnFile(b"", 1)})})
    with pytest.raises(GitmirrorError) as caught:
        write_image(io.BytesIO(), root, label=b"", uuid=UUID, build_time=1, data_blocks=0, data_tag=None)
    assert said in caught.value.message and caught.value.message.isprintable()


@pytest.mark.parametrize("target", [b"", b"t" * 4096, b"t\0u"])
def test_links_that_linux_cannot_have_are_refused(target: bytes) -> None:
    """Targets that are empty, too long, or would be cut."""
    root = Directory({b"d": Directory({b"link": Link(target, 1)})})
    with pytest.raises(GitmirrorError, match="'d/link'"):
        write_image(io.BytesIO(), root, label=b"", uuid=UUID, build_time=1, data_blocks=0, data_tag=None)


def test_more_data_than_addresses_is_refused() -> None:
    """EROFS has 32 bits for a block, and all ones is none of them."""
    most = 0xFFFFFFFF - (1 << 24)
    root = Directory({b"f": DataFile(most - 1, 4096, 1, False)})
    write_image(io.BytesIO(), root, label=b"", uuid=UUID, build_time=1, data_blocks=most, data_tag=b"t")
    with pytest.raises(GitmirrorError, match="block addresses"):
        write_image(io.BytesIO(), root, label=b"", uuid=UUID, build_time=1, data_blocks=most + 1, data_tag=b"t")


def test_a_file_beyond_the_data_is_refused() -> None:
    """A guest would find out only when it reads the file."""
    root = Directory({b"f": DataFile(2, 4097, 1, False)})
    write_image(io.BytesIO(), root, label=b"", uuid=UUID, build_time=1, data_blocks=4, data_tag=b"t")
    with pytest.raises(GitmirrorError, match="not within the data area"):
        write_image(io.BytesIO(), root, label=b"", uuid=UUID, build_time=1, data_blocks=3, data_tag=b"t")
