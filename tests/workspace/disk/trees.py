"""Trees as plain values: written to drives with the writer, and told as they should be found."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from appliance.core.workspace.disk.erofs import DataFile, Directory, ImageSize, Link, Node, OwnFile, write_image
from appliance.core.workspace.disk.erofs_format import BLOCK
from tests.support.erofs_reader import Found

TIME = 1_000_000_000
"""The mtime of directories."""
UUID = bytes(range(16))
TAG = b"d1"


@dataclass(frozen=True)
class Data:
    """A file in the data area."""

    content: bytes
    mtime: int = 7
    executable: bool = False


@dataclass(frozen=True)
class Own:
    """A file in the image."""

    content: bytes
    mtime: int = 8


@dataclass(frozen=True)
class Symlink:
    """A symbolic link."""

    target: bytes
    mtime: int = 9


Tree: TypeAlias = dict[bytes, "Tree | Data | Own | Symlink"]


@dataclass(frozen=True)
class Drives:
    """A tree on disk."""

    tree: Path
    data: Path | None
    size: ImageSize


def nodes_of(tree: Tree, blob: bytearray) -> Directory:
    """The nodes of a tree; contents are added to `blob`."""
    top = Directory()
    todo: list[tuple[Tree, dict[bytes, Node]]] = [(tree, top.entries)]
    while todo:
        model, entries = todo.pop()
        for name, value in model.items():
            if isinstance(value, dict):
                directory = Directory()
                entries[name] = directory
                todo.append((value, directory.entries))
            elif isinstance(value, Data):
                entries[name] = DataFile(len(blob) // BLOCK, len(value.content), value.mtime, value.executable)
                blob += value.content + bytes(-len(value.content) % BLOCK)
            elif isinstance(value, Own):
                entries[name] = OwnFile(value.content, value.mtime)
            else:
                entries[name] = Link(value.target, value.mtime)
    return top


def write(tree: Tree, directory: Path, *, single: bool = False) -> Drives:
    """Writes a tree to drives below `directory`."""
    blob = bytearray() if single else bytearray(b"D" * BLOCK)
    root = nodes_of(tree, blob)
    path, data = directory / "tree", directory / "data"
    with path.open("wb") as file:
        size = write_image(
            file,
            root,
            label=b"a label",
            uuid=UUID,
            build_time=TIME,
            data_blocks=len(blob) // BLOCK,
            data_tag=None if single else TAG,
        )
        assert file.tell() == size.metadata
        if single:
            file.write(blob)
    if single:
        return Drives(path, None, size)
    data.write_bytes(blob)
    return Drives(path, data, size)


def expected(tree: Tree) -> dict[bytes, Found]:
    """What is to be found for a tree, by path."""
    found: dict[bytes, Found] = {}
    todo: list[tuple[bytes, Tree]] = [(b"", tree)]
    while todo:
        path, model = todo.pop()
        found[path] = Found(stat.S_IFDIR | 0o755, TIME, tuple(sorted(model)))
        for name, value in model.items():
            below = path + b"/" + name if path else name
            if isinstance(value, dict):
                todo.append((below, value))
            elif isinstance(value, Data):
                found[below] = Found(stat.S_IFREG | (0o755 if value.executable else 0o644), value.mtime, value.content)
            elif isinstance(value, Own):
                found[below] = Found(stat.S_IFREG | 0o644, value.mtime, value.content)
            else:
                found[below] = Found(stat.S_IFLNK | 0o777, value.mtime, value.target)
    return found


def on_disk(top: Path) -> dict[bytes, Found]:
    """What the kernel says of a mounted tree, by path, each path looked up by its name."""
    found: dict[bytes, Found] = {}
    root = os.fsencode(top)
    todo = [b""]
    while todo:
        path = todo.pop()
        full = root + b"/" + path if path else root
        status = os.lstat(full)
        content: bytes | tuple[bytes, ...]
        if stat.S_ISDIR(status.st_mode):
            names = os.listdir(full)
            todo += [path + b"/" + name if path else name for name in names]
            content = tuple(names)
            assert sorted(names) == names
            subdirectories = sum(entry.is_dir(follow_symlinks=False) for entry in os.scandir(full))
            assert status.st_nlink == 2 + subdirectories
        elif stat.S_ISLNK(status.st_mode):
            content = os.readlink(full)
        else:
            with open(full, "rb") as file:
                content = file.read()
            assert status.st_size == len(content)
        assert (status.st_uid, status.st_gid) == (0, 0) and status.st_mtime_ns % 1_000_000_000 == 0
        found[path] = Found(status.st_mode, int(status.st_mtime), content)
    return found
