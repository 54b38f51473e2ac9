"""Puts an image together: the tree of a commit, the `.git` beside it, and the drive's header in front."""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from appliance.core.errors import GitmirrorError
from appliance.core.text import escape
from appliance.core.workspace.disk.erofs import DataFile, Directory, Link, Node, OwnFile, write_image
from appliance.core.workspace.disk.ext4 import write_ext4
from appliance.core.workspace.disk.generation import Extent, Generation, Pack
from appliance.core.workspace.disk.header import BLOCK, CHECKED_FILES, Cksum, header
from appliance.core.workspace.disk.images import DiskForm
from appliance.core.workspace.disk.index_file import IndexEntry
from appliance.core.workspace.disk.mirror_reader import EXECUTABLE, GITLINK, LINK, REGULAR, TREE, TreeEntry
from appliance.core.workspace.times import FIXED_TIME, INDEX_TIME, file_time

LABEL = b"gitmirror"
_EXECUTABLE_BIT = 0o100
_CHUNK = 2**22


class Workspace:
    """The files of a commit, as nodes of an image and as entries of its index.

    `extents` maps the id of a blob, or the key of what a checkout makes of it, to the first block and the size of the
    contents. `converted` has the keys of the latter, which may be of LFS objects, by path. `targets` maps the id of a
    symbolic link to its target.
    Raises GitmirrorError for a tree that cannot be.
    """

    def __init__(
        self,
        entries: Iterable[TreeEntry],
        extents: Mapping[bytes, tuple[int, int]],
        converted: Mapping[bytes, bytes],
        targets: Mapping[bytes, bytes],
    ) -> None:
        self.root = Directory()
        self.index: list[IndexEntry] = []
        directories: dict[bytes, Directory] = {b"": self.root}
        add = self.index.append
        here, names = None, self.root.entries
        for mode, oid, path in entries:
            if mode == TREE:
                add((TREE, oid, path, 0, 0))
                continue
            cut = path.rfind(b"/")
            directory = path[:cut] if cut > 0 else b""
            if directory != here:
                here, names = directory, (directories.get(directory) or _parent(directories, path)).entries
            when, size = file_time(oid), 0
            node: Node
            if mode == LINK:
                target = targets[oid]
                node, size = Link(target, when), len(target)
            elif mode == GITLINK:
                node, when = Directory(), 0
            else:
                block, size = extents[converted.get(path, oid) if converted else oid]
                # Old trees have other bits, which git ignores.
                mode = EXECUTABLE if mode & _EXECUTABLE_BIT else REGULAR
                node = DataFile(block, size, when, mode == EXECUTABLE)
            if names.setdefault(path[cut + 1 :], node) is not node:
                raise _impossible(path)
            add((mode, oid, path, when, size))


def _parent(directories: dict[bytes, Directory], path: bytes) -> Directory:
    """The directory that `path` is in, made with those above it where they are not there yet."""
    cut = path.rfind(b"/")
    parent = directories[b""]
    at = path.find(b"/")
    while 0 < at <= cut:
        here = path[:at]
        known = directories.get(here)
        if known is None:
            name = here[here.rfind(b"/") + 1 :]
            known = directories[here] = Directory()
            if parent.entries.setdefault(name, known) is not known:
                raise _impossible(here)
        parent = known
        at = path.find(b"/", at + 1)
    return parent


def _impossible(path: bytes) -> GitmirrorError:
    name = escape(path.decode("utf-8", "replace"))
    return GitmirrorError(f"cannot build a disk of this commit: {name} is a file and a directory in its tree")


@dataclass(frozen=True)
class GitFiles:
    """What the git directory of a workspace, or of a submodule in it, has.

    `tip` is the commit's object where the history ends with it, otherwise None. `remote_head` is the default branch of
    the remote, if the clone says it.
    """

    commit: str
    head: str
    config: str
    refs: bytes
    index: bytes
    packs: Sequence[Pack]
    tip: bytes | None
    remote_head: str = ""


def repository(files: GitFiles) -> Directory:
    """A git directory."""
    pack_files: dict[bytes, Node] = {}
    for pack in files.packs:
        name = pack.name.encode()
        pack_files[name + b".pack"] = DataFile(pack.pack.block, pack.pack.size, FIXED_TIME, False)
        pack_files[name + b".idx"] = DataFile(pack.idx.block, pack.idx.size, FIXED_TIME, False)
    objects: dict[bytes, Node] = {b"info": Directory(), b"pack": _directory(pack_files)}
    if files.tip is not None:
        loose = zlib.compress(b"commit %d\0" % len(files.tip) + files.tip, 1)
        objects[files.commit[:2].encode()] = _directory({files.commit[2:].encode(): own_file(loose)})
    refs = _directory({b"heads": Directory(), b"tags": Directory()})
    entries: dict[bytes, Node] = {
        b"HEAD": own_file(f"{files.head}\n"),
        b"config": own_file(files.config),
        b"packed-refs": own_file(files.refs),
        b"info": _directory({b"exclude": own_file("")}),
        b"hooks": Directory(),
        b"refs": refs,
        b"objects": _directory(objects),
        b"index": OwnFile(files.index, INDEX_TIME),
    }
    if files.tip is not None:
        entries[b"shallow"] = own_file(f"{files.commit}\n")
    if files.remote_head:
        remote = _directory({b"HEAD": own_file(f"ref: refs/remotes/origin/{files.remote_head}\n")})
        refs.entries[b"remotes"] = _directory({b"origin": remote})
    return _directory(entries)


def own_file(content: str | bytes) -> OwnFile:
    """A file of a git directory that git does not compare by its time."""
    return OwnFile(content if isinstance(content, bytes) else content.encode("utf-8", "surrogateescape"), FIXED_TIME)


def _directory(entries: dict[bytes, Node]) -> Directory:
    directory = Directory()
    directory.entries.update(entries)
    return directory


def write_tree_drive(
    path: Path, root: Directory, generation: Generation, form: DiskForm, scratch: Path, *, repo: str, commit: str
) -> tuple[int, int]:
    """Writes the tree drive of `root` to the new file `path`, synced. Returns its bytes, and those of data it needs."""
    identity = hashlib.sha256(f"{generation.id} {path.name}".encode()).digest()[:16]
    fields = {"role": "tree", "format": "erofs", "repository": repo, "commit": commit}
    data_size = 0
    if form is DiskForm.EXT4:
        fields["format"] = "ext4"
        size = write_ext4(path, root, generation.data, scratch, identity=identity)
        fields |= {"size": str(size), "git": _check_files(root)}
    else:
        size = _write_erofs(path, root, generation, fields, identity, single=form is DiskForm.SINGLE)
        if form is DiskForm.EROFS:
            data_size = generation.end * BLOCK
            fields["data"] = f"{generation.id} {data_size}"
    with path.open("r+b") as file:
        file.write(header(fields))
        file.flush()
        os.fsync(file.fileno())
    return size, data_size


def _write_erofs(
    path: Path, root: Directory, generation: Generation, fields: dict[str, str], identity: bytes, *, single: bool
) -> int:
    """Writes an EROFS image, and its size and check into `fields`.

    With `single`, the data stands behind the tree in the same file, and no other drive is needed.
    """
    with path.open("x+b") as file:
        extents = _move_together(root) if single else []
        blocks = sum(extent.blocks for extent in extents) if single else generation.end
        tag = None if single else generation.id.encode()
        tree_size = write_image(
            file, root, label=LABEL, uuid=identity, build_time=FIXED_TIME, data_blocks=blocks, data_tag=tag
        ).metadata
        check = _check(file, tree_size)
        if single:
            _copy(generation, extents, file)
    size = tree_size + (blocks * BLOCK if single else 0)
    fields |= {"size": str(size), "check": f"{check} {tree_size - BLOCK}"}
    return size


def _check_files(root: Directory) -> str:
    """What `cksum` prints for the files of `.git` that say what the workspace is."""
    cksum, size, entries = Cksum(), 0, root.entries[b".git"]
    assert isinstance(entries, Directory)
    for name in CHECKED_FILES:
        file = entries.entries[name]
        assert isinstance(file, OwnFile)
        cksum.update(file.content)
        size += len(file.content)
    return f"{cksum.value()} {size}"


def _check(file: BinaryIO, size: int) -> int:
    """What `cksum` says of the file from its second block up to `size`."""
    cksum, left = Cksum(), size - BLOCK
    file.flush()
    file.seek(BLOCK)
    while left:
        piece = file.read(min(left, _CHUNK))
        cksum.update(piece)
        left -= len(piece)
    return cksum.value()


def _move_together(root: Directory) -> list[Extent]:
    """Gives all data files of a tree new blocks, one behind the other from 0 on. Returns where they were, in order."""
    extents: dict[Extent, int] = {}
    free = 0
    for node in _data_files(root):
        extent = Extent(node.block, node.size)
        if extent not in extents:
            extents[extent] = free
            free += extent.blocks
        node.block = extents[extent]
    return list(extents)


def _data_files(directory: Directory) -> Iterator[DataFile]:
    pending = [directory]
    while pending:
        for node in pending.pop().entries.values():
            if isinstance(node, DataFile):
                if node.size:
                    yield node
            elif isinstance(node, Directory):
                pending.append(node)


def _copy(generation: Generation, extents: Iterable[Extent], file: BinaryIO) -> None:
    """Appends these parts of the blob file; the file system shares their blocks where it can."""
    file.seek(0, os.SEEK_END)
    file.flush()
    with generation.data.open("rb") as data:
        for extent in extents:
            at, left = extent.block * BLOCK, extent.blocks * BLOCK
            while left:
                copied = os.copy_file_range(data.fileno(), file.fileno(), left, at)
                if not copied:
                    raise OSError("the blob file is shorter than its catalogue says")
                at, left = at + copied, left - copied
