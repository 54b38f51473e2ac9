"""Remembers the listing of a branch's last image, so that the next build asks git only for what changed since.

Listing a tree of 80,000 files, checking its names and looking its contents up takes half of a build. The file is only a
memory: without it, or if a byte of it is wrong, the build lists the tree as it does the first time.
"""

from __future__ import annotations

import contextlib
import hashlib
import marshal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from appliance.core.workspace.disk.mirror_reader import TREE, MirrorReader, TreeEntry

_DIGEST = 32
_VERSION = f"1 {sys.version}".encode()
"""Python's own format may change with its version."""


class LastListing(NamedTuple):
    """The tree of `commit`, and where the contents of its files are."""

    commit: str
    entries: list[TreeEntry]
    extents: dict[bytes, tuple[int, int]]


def place_of(generation: Path, branch: str) -> Path:
    """The file for a branch in the directory of a generation."""
    name = branch.encode("utf-8", "surrogateescape")
    return generation / f"listing-{hashlib.sha256(name).hexdigest()[:16]}"


def load(path: Path) -> LastListing | None:
    """What was stored there, or None if there is nothing of use."""
    with contextlib.suppress(OSError, ValueError, EOFError, TypeError):
        data = path.read_bytes()
        digest, body = data[:_DIGEST], memoryview(data)[_DIGEST:]
        if hashlib.sha256(_VERSION + body).digest() == digest:
            return LastListing(*marshal.loads(body))
    return None


def store(path: Path, listing: LastListing) -> None:
    """Stores a listing in place of the last one. Raises OSError."""
    body = marshal.dumps(tuple(listing))
    unfinished = path.with_suffix(".new")
    unfinished.write_bytes(hashlib.sha256(_VERSION + body).digest() + body)
    unfinished.rename(path)


class TreeChanges(NamedTuple):
    """What a commit has that another one had not: entries by path, None for those that are gone."""

    files: dict[bytes, TreeEntry | None]
    trees: dict[bytes, TreeEntry | None]


def changes_since(reader: MirrorReader, before: str, commit: str) -> TreeChanges:
    """What `git diff-tree` tells about two commits. Raises GitmirrorError."""
    changes = TreeChanges({}, {})
    fields = reader.run("diff-tree", "-r", "-t", "-z", "--raw", "--no-renames", before, commit).split(b"\0")
    for head, path in zip(fields[::2], fields[1::2], strict=False):
        old_mode, mode, _, oid, _ = head[1:].split(b" ")
        if old_mode != b"000000":
            _kind(changes, int(old_mode, 8))[path] = None
        if mode != b"000000":
            number = int(mode, 8)
            _kind(changes, number)[path] = (number, bytes.fromhex(oid.decode()), path)
    return changes


def _kind(changes: TreeChanges, mode: int) -> dict[bytes, TreeEntry | None]:
    return changes.trees if mode == TREE else changes.files


def apply(entries: list[TreeEntry], changes: TreeChanges) -> tuple[list[TreeEntry], list[TreeEntry]]:
    """The listing after the changes, in the order of `MirrorReader.listing`, and the entries that are new in it."""
    files, trees = changes
    kept = [entry for entry in entries if entry[2] not in (trees if entry[0] == TREE else files)]
    new = [entry for entry in [*trees.values(), *files.values()] if entry is not None]
    return sorted(kept + new, key=_order), sorted(new, key=_order)


def _order(entry: TreeEntry) -> bytes:
    """git sorts a directory as if its name ended in a slash."""
    return entry[2] + b"/" if entry[0] == TREE else entry[2]


def contents_of(known: Mapping[bytes, tuple[int, int]], keys: Mapping[bytes, None]) -> dict[bytes, tuple[int, int]]:
    """Those of the known contents that are still of use."""
    return {key: known[key] for key in keys if key in known}
