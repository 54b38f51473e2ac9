"""Where the snapshots of one branch are on disk.

The shapes of a branch share one working tree and have a directory each, with the tar, its description and the packs
that the next tar takes over.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from appliance.core.process.checked_file import CheckedFile
from appliance.core.workspace.gzipped import COPY_SUFFIX
from appliance.core.workspace.shape import Shape

LAYOUT_VERSION = 6
"""Increased when the content of a tar changes for the same commit; tars of an older version are rebuilt."""
DIGEST_LENGTH = 16
"""Hex digits of a tar's SHA-256 in its ETag."""
_WORK = "checkout"
_MEASURED = "measured.json"


@dataclass(frozen=True)
class Snapshot:
    """An existing tar: the `commit` and `branch` of the checkout, the file's `etag` and its `size` in bytes.

    `url` is the upstream, which is the `origin` of the checkout. `history` is that of its shape, and `shape` its key.
    With LFS files in place, there are `lfs_files`, of which `lfs_pointers` are pointers, and `lfs_bytes` is what the
    contents of all take.
    """

    url: str
    branch: str
    commit: str
    etag: str
    size: int
    file: str
    history: str
    shape: str
    version: int = LAYOUT_VERSION
    lfs_files: int = 0
    lfs_pointers: int = 0
    lfs_bytes: int = 0


class SnapshotPlace:
    """The files of one branch's snapshot in one shape, below `directory`, which is the repository's."""

    def __init__(self, directory: Path, branch: str, shape: Shape) -> None:
        self.of_branch = directory / branch_directory(branch)
        self.directory = self.of_branch / shape.key
        self.branch = branch
        self.shape = shape
        self.tar: CheckedFile | None = None
        """The tar that was loaded or built last."""

    @property
    def description(self) -> Path:
        """The file that names the current tar; replacing it switches to another tar."""
        return self.directory / "snapshot.json"

    @property
    def packs(self) -> Path:
        """The repository whose packs go into the tar."""
        return self.directory / "packs"

    @property
    def work(self) -> Path:
        """The tree and the index, for all shapes of the branch."""
        return self.of_branch / _WORK

    @property
    def unfinished(self) -> Path:
        """A file that exists while the tree is being updated; a tree that a kill left with it is discarded."""
        return self.work / "unfinished"

    def load(self, url: str) -> Snapshot | None:
        """The existing snapshot if it is of this upstream, otherwise None. Every byte is read.

        Raises NotRight if its tar has changed since it was written.
        """
        try:
            snapshot = Snapshot(**json.loads(self.description.read_text(encoding="utf-8")))
            found = (snapshot.version, snapshot.url, snapshot.branch, snapshot.shape)
            if found != (LAYOUT_VERSION, url, self.branch, self.shape.key):
                return None
            digest = snapshot.etag[-DIGEST_LENGTH:]
            if snapshot.etag != etag_of(snapshot.commit, digest):
                return None
            tar = CheckedFile(self.path(snapshot), None, digest)
            tar.verify()
        except (OSError, ValueError, TypeError):
            return None
        self.tar = tar
        return snapshot

    def distrust(self) -> None:
        """Makes the next build start from scratch, because the disk changed what the last one wrote."""
        with contextlib.suppress(OSError):
            self.unfinished.touch()
        shutil.rmtree(self.packs, ignore_errors=True)

    def remove_others(self, snapshot: Snapshot) -> None:
        """Unlinks every tar but that of `snapshot`, with its gzipped copy; transfers that have one open still finish.

        Raises OSError.
        """
        for old in [*self.directory.glob("*.tar"), *self.directory.glob(f"*.tar{COPY_SUFFIX}")]:
            if old.name not in (snapshot.file, f"{snapshot.file}{COPY_SUFFIX}"):
                old.unlink(missing_ok=True)

    def path(self, snapshot: Snapshot) -> Path:
        """The tar of a snapshot."""
        return self.directory / snapshot.file


def branch_directory(branch: str) -> str:
    """The name of a branch's directory, which is unique.

    A branch name may have slashes and any bytes, and may be longer than a file name can be.
    """
    name = branch.encode("utf-8", "surrogateescape")
    readable = "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "_" for c in branch[:60])
    return f"b-{readable}-{hashlib.sha256(name).hexdigest()[:16]}"


def remove_foreign(directory: Path, shapes: Iterable[Shape]) -> None:
    """Removes from a branch's directory the shapes that are not in `shapes`, and what an older version left."""
    kept = {_WORK, _MEASURED, *(shape.key for shape in shapes)}
    for entry in directory.iterdir() if directory.is_dir() else ():
        if entry.name in kept:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)


def measured_file(directory: Path) -> Path:
    """The file in a branch's directory that has the measured size of its history."""
    return directory / _MEASURED


def etag_of(commit: str, digest: str) -> str:
    """The ETag of the tar of a commit whose SHA-256 in hex is `digest`, or begins with it."""
    return f"{commit}-{digest[:DIGEST_LENGTH]}"
