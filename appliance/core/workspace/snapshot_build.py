"""Builds the ready workspace of one branch tip: a complete checkout at depth 1, as one tar.

Real git makes the checkout, so that attributes, line endings and symbolic links are right. The tree of the previous tip
is kept and updated, so that after a small commit git touches only what changed.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from appliance.core.errors import GitmirrorError
from appliance.core.git.command import Git, GitError
from appliance.core.git.mirror import Mirror
from appliance.core.process.atomic_file import write_atomically
from appliance.core.process.checked_file import CheckedFile, Identity
from appliance.core.workspace.config import workspace_config
from appliance.core.workspace.git_index import UnknownIndex, normalise_index
from appliance.core.workspace.tar import write_tar

log = logging.getLogger(__name__)

BUILD_DEADLINE = 1800.0
LAYOUT_VERSION = 4
"""Increased when the content of a tar changes for the same commit; tars of an older version are rebuilt."""
DIGEST_LENGTH = 16
"""Hex digits of a tar's SHA-256 in its ETag."""


@dataclass(frozen=True)
class Snapshot:
    """An existing tar: the `commit` and `branch` of the checkout, the file's `etag` and its `size` in bytes.

    `url` is the upstream, which is the `origin` of the checkout.
    """

    url: str
    branch: str
    commit: str
    etag: str
    size: int
    file: str
    version: int = LAYOUT_VERSION


class SnapshotPlace:
    """The files of one branch's snapshot below `directory`: the tar, its description, and the tree it is built from."""

    def __init__(self, directory: Path, branch: str) -> None:
        # A branch name may have slashes and any bytes, and may be longer than a file name can be. The digest is unique.
        name = branch.encode("utf-8", "surrogateescape")
        readable = "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "_" for c in branch[:60])
        self.directory = directory / f"b-{readable}-{hashlib.sha256(name).hexdigest()[:16]}"
        self.branch = branch
        self.tar: CheckedFile | None = None
        """The tar that was loaded or built last."""

    @property
    def description(self) -> Path:
        """The file that names the current tar; replacing it switches to another tar."""
        return self.directory / "snapshot.json"

    @property
    def work(self) -> Path:
        """The tree and repository that the tar is built from."""
        return self.directory / "work"

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
            if (snapshot.version, snapshot.url, snapshot.branch) != (LAYOUT_VERSION, url, self.branch):
                return None
            digest = snapshot.etag[-DIGEST_LENGTH:]
            if snapshot.etag != _etag(snapshot.commit, digest):
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

    def remove_others(self, snapshot: Snapshot) -> None:
        """Unlinks every tar but that of `snapshot`; transfers that have one open still finish. Raises OSError."""
        for old in self.directory.glob("*.tar"):
            if old.name != snapshot.file:
                old.unlink()

    def path(self, snapshot: Snapshot) -> Path:
        """The tar of a snapshot."""
        return self.directory / snapshot.file


async def build_snapshot(place: SnapshotPlace, mirror: Mirror, git: Git, url: str, commit: str) -> Snapshot:
    """Builds the tar of `commit` on the place's branch and makes it current. Raises GitmirrorError.

    The previous tar stays until `remove_others`, because somebody may be about to open it.
    """
    try:
        kept = place.work.exists()
        try:
            repository = await _bring_forward(place, mirror, git, commit)
        except (GitError, OSError) as error:
            if not kept:
                raise
            # Start over, because a new tree does not depend on whatever broke the old one.
            log.warning("rebuilding the tree of %s at %s from scratch: %s", place.branch, place.directory.name, error)
            await asyncio.to_thread(shutil.rmtree, place.work)
            repository = await _bring_forward(place, mirror, git, commit)
        packing = asyncio.ensure_future(asyncio.to_thread(_pack, place, repository, url, commit))
        try:
            return await asyncio.shield(packing)
        except asyncio.CancelledError:
            # A thread cannot be stopped, and the next step may remove the directory that it writes to.
            await asyncio.wait([packing])
            raise
    except (OSError, UnknownIndex) as error:
        raise GitmirrorError(f"the snapshot of {place.branch} cannot be written: {error}") from error


async def _bring_forward(place: SnapshotPlace, mirror: Mirror, git: Git, commit: str) -> Path:
    """Updates the working tree to `commit`, or creates it; returns its repository."""
    tree, repository = place.work / "tree", place.work / "repository"

    async def run(*words: str) -> None:
        where = (f"--git-dir={repository}", f"--work-tree={tree}")
        await git.run(*_HARMLESS, *where, *words, cwd=tree, deadline=BUILD_DEADLINE)

    async def resolve(ref: str) -> str:
        output = await git.run(
            f"--git-dir={repository}", "for-each-ref", "--format=%(objectname)", ref, cwd=tree, deadline=60
        )
        return output.stdout.decode().strip()

    async def changed(before: str, pathspec: str) -> bool:
        words = ("diff-tree", "-r", "--name-only", before, commit, "--", pathspec)
        output = await git.run(f"--git-dir={repository}", *words, cwd=tree, deadline=BUILD_DEADLINE)
        return bool(output.stdout)

    if place.unfinished.exists() or not (repository / "HEAD").exists():
        if place.work.exists():
            await asyncio.to_thread(shutil.rmtree, place.work)
        place.work.mkdir(parents=True)
    place.unfinished.touch()
    tree.mkdir(exist_ok=True)
    if not repository.exists():
        await git.run("init", "--quiet", "--bare", "--template=", str(repository), cwd=place.work, deadline=60)
    # Fetch by id, not by name, because the branch may move meanwhile.
    before = await resolve("refs/heads/snapshot")
    await run(
        "fetch", "--quiet", "--depth=1", "--no-tags", "--no-write-fetch-head", "--update-shallow", "--force",
        f"file://{mirror.path}", f"{commit}:refs/heads/snapshot",
    )  # fmt: skip
    if before and await changed(before, ":(glob)**/.gitattributes"):
        # git applies new attributes only to the files that it writes, so all files must be written again.
        await asyncio.to_thread(shutil.rmtree, tree)
        tree.mkdir()
        (repository / "index").unlink(missing_ok=True)
    await run("read-tree", "--reset", "-u", commit)
    # Keep exactly the tip's objects, in one pack, and drop those that only the previous tip had.
    (repository / "shallow").write_text(f"{commit}\n")
    await run("repack", "-a", "-d", "--quiet", "--no-write-bitmap-index")
    await run("prune", "--expire=now")
    place.unfinished.unlink()
    return repository


_HARMLESS = (
    "-c", "core.hooksPath=/dev/null",
    "-c", "core.fsmonitor=false",
    "-c", "core.attributesFile=/dev/null",
    "-c", "submodule.recurse=false",
    "-c", "fetch.recurseSubmodules=false",
    "-c", "fetch.unpackLimit=1",
    "-c", "index.version=2",
    "-c", "index.threads=1",
    "-c", "index.sparse=false",
    "-c", "core.splitIndex=false",
    "-c", "core.untrackedCache=false",
    "-c", "core.logAllRefUpdates=false",
    "-c", "pack.writeReverseIndex=false",
)  # fmt: skip
"""A tree may be hostile, so hooks, fsmonitor and submodules are off. Filters run only if a config names them, and none
does."""


def _pack(place: SnapshotPlace, repository: Path, url: str, commit: str) -> Snapshot:
    """Builds the guest's `.git`, archives it with the tree, and makes the tar current. Raises OSError, UnknownIndex."""
    guest = place.work / "guest"
    shutil.rmtree(guest, ignore_errors=True)
    (guest / "objects" / "info").mkdir(parents=True)
    (guest / "refs" / "tags").mkdir(parents=True)
    (guest / "info").mkdir()
    (guest / "hooks").mkdir()
    branch = place.branch
    _write(guest / "HEAD", f"ref: refs/heads/{branch}\n")
    _write(guest / "config", workspace_config(url, branch))
    _write(guest / "shallow", f"{commit}\n")
    _write(guest / "info" / "exclude", "")
    refs = sorted([f"refs/heads/{branch}", f"refs/remotes/origin/{branch}"])
    lines = "".join(f"{commit} {ref}\n" for ref in refs)
    _write(guest / "packed-refs", f"# pack-refs with: peeled fully-peeled sorted \n{lines}")
    (guest / "refs" / "heads").mkdir()
    (guest / "objects" / "pack").mkdir()
    for pack in (repository / "objects" / "pack").iterdir():
        if pack.suffix in (".pack", ".idx"):
            os.link(pack, guest / "objects" / "pack" / pack.name)
    index, times = normalise_index((repository / "index").read_bytes())
    (guest / "index").write_bytes(index)
    growing = place.directory / "growing.tar"
    digest = write_tar(place.work / "tree", times, guest, growing)
    size = growing.stat().st_size
    etag = _etag(commit, digest)
    snapshot = Snapshot(url, branch, commit, etag, size, f"{etag}.tar")
    path = place.path(snapshot)
    growing.rename(path)
    place.tar = CheckedFile(path, Identity.of(path.stat()), digest)
    write_atomically(place.description, json.dumps(asdict(snapshot)))
    shutil.rmtree(guest, ignore_errors=True)
    return snapshot


def _etag(commit: str, digest: str) -> str:
    return f"{commit}-{digest[:DIGEST_LENGTH]}"


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", errors="surrogateescape")
