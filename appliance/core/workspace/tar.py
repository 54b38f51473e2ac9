"""Writes trees on disk as one tar with a stable order, owner 0:0, and times independent of this machine."""

from __future__ import annotations

import hashlib
import os
import stat
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from appliance.core.errors import GitmirrorError
from appliance.core.workspace.times import FIXED_TIME, INDEX_TIME


class _Hashing:
    """A writable file that hashes everything written to it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.digest = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        return self._file.write(data)


class ContentLost(GitmirrorError):
    """A file of `TarPart.contents` is no longer there, or is not what its name says; then it was removed."""


@dataclass(frozen=True)
class TarPart:
    """A working tree and its repository on disk, and where they are in the workspace.

    `times` maps the path of each file and link below `tree` to its mtime. `top` is where the tree is, `git` where the
    repository is: a submodule has `libs/x` and `.git/modules/x`. `contents` are files that take the place of files of
    the tree, by path; the name of each is its SHA-256 in hex, as in the store of LFS objects.
    """

    tree: Path
    times: Mapping[str, int]
    repository: Path
    top: str = ""
    git: str = ".git"
    contents: Mapping[str, Path] = field(default_factory=dict)


def write_tar(parts: Sequence[TarPart], tar: Path) -> str:
    """Archives the parts into the new file `tar`, synced; returns its SHA-256 in hex.

    Repositories come first, the workspace's own before those of submodules. Symbolic links are archived, never
    followed. Raises ContentLost, OSError.
    """
    with tar.open("wb", buffering=2**20) as file:
        hashing = _Hashing(file)
        # GNU format, because both GNU tar and busybox support its long names; times are whole seconds anyway.
        with tarfile.open(fileobj=hashing, mode="w|", format=tarfile.GNU_FORMAT, bufsize=2**18) as archive:  # type: ignore[call-overload]
            for part in parts:
                for path, name in _entries(part.repository, part.git):
                    _add(archive, path, name, INDEX_TIME if name == f"{part.git}/index" else FIXED_TIME)
            for part in parts:
                _add_tree(archive, part)
        file.flush()
        os.fsync(file.fileno())
    return hashing.digest.hexdigest()


def _add_tree(archive: tarfile.TarFile, part: TarPart) -> None:
    skipped = len(f"{part.top}/") if part.top else 0
    for path, name in _entries(part.tree, part.top):
        if name == part.top:
            # The tree of the part above has this directory.
            continue
        inside = name[skipped:]
        mtime, content = part.times.get(inside, FIXED_TIME), part.contents.get(inside)
        if content is None:
            _add(archive, path, name, mtime)
        else:
            _add_content(archive, path, content, name, mtime)


def _entries(top: Path, prefix: str) -> Iterator[tuple[str, str]]:
    """Every path below `top` with its name in the tar, sorted by bytes, each directory before its content."""
    if prefix:
        yield str(top), prefix
    pending = [(str(top), prefix)]
    while pending:
        directory, name = pending.pop()
        below = []
        with os.scandir(directory) as found:
            for entry in sorted(found, key=lambda entry: os.fsencode(entry.name)):
                inside = f"{name}/{entry.name}" if name else entry.name
                yield entry.path, inside
                if entry.is_dir(follow_symlinks=False):
                    below.append((entry.path, inside))
        pending += reversed(below)


def _add(archive: tarfile.TarFile, path: str, name: str, mtime: int) -> None:
    status = os.lstat(path)
    entry = tarfile.TarInfo(name)
    entry.mtime = mtime
    if stat.S_ISDIR(status.st_mode):
        entry.type, entry.mode = tarfile.DIRTYPE, 0o755
        archive.addfile(entry)
    elif stat.S_ISLNK(status.st_mode):
        entry.type, entry.mode, entry.linkname = tarfile.SYMTYPE, 0o777, os.readlink(path)
        archive.addfile(entry)
    elif stat.S_ISREG(status.st_mode):
        entry.size, entry.mode = status.st_size, 0o755 if status.st_mode & 0o100 else 0o644
        if name.startswith(".git/objects/"):
            # git makes objects read-only.
            entry.mode = 0o444
        with open(path, "rb") as file:
            archive.addfile(entry, file)


class _HashedReading:
    """A readable file that hashes everything read from it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.digest = hashlib.sha256()

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        self.digest.update(data)
        return data


def _add_content(archive: tarfile.TarFile, path: str, content: Path, name: str, mtime: int) -> None:
    """Archives `content` as the file at `path`, whose mode it gets."""
    entry = tarfile.TarInfo(name)
    entry.mtime, entry.mode = mtime, 0o755 if os.lstat(path).st_mode & 0o100 else 0o644
    try:
        file = content.open("rb", buffering=0)
    except FileNotFoundError as error:
        raise ContentLost(f"the LFS object {content.name} was removed meanwhile") from error
    with file:
        entry.size = os.fstat(file.fileno()).st_size
        reading = _HashedReading(file)
        archive.addfile(entry, reading)  # type: ignore[arg-type]
    if reading.digest.hexdigest() != content.name:
        # A tar may be served for weeks, and its readers would take the file for right.
        content.unlink(missing_ok=True)
        raise ContentLost(f"the LFS object {content.name} has changed on disk, and was removed")
