"""Builds the ready workspace of one branch tip: a complete checkout at depth 1, as one tar.

Made by real git, so that attributes, line endings and symbolic links are as a checkout has them. What was built for the
tip before is kept and brought forward: after a small commit git touches only what changed.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from appliance.core.errors import GitmirrorError
from appliance.core.git.command import Git, GitError, write_atomically
from appliance.core.git.mirror import Mirror
from appliance.core.workspace.git_index import UnknownIndex, normalise_index
from appliance.core.workspace.tar import write_tar

log = logging.getLogger(__name__)

BUILD_DEADLINE = 1800.0
LAYOUT_VERSION = 3
"""Raised when what is in a tar changes for the same commit: tars of an older version are built again."""


@dataclass(frozen=True)
class Snapshot:
    """A tar that is there: `commit` and `branch` of the checkout, `etag` of this very file, its `size` in bytes.

    `url` is the upstream that its `origin` is.
    """

    url: str
    branch: str
    commit: str
    etag: str
    size: int
    file: str
    version: int = LAYOUT_VERSION


class SnapshotPlace:
    """Where the snapshot of one branch lives, below `directory`: the tar, its description, the tree it is made of."""

    def __init__(self, directory: Path, branch: str) -> None:
        # A branch name has slashes, any bytes, and more of them than a file name may: a digest tells two apart.
        name = branch.encode("utf-8", "surrogateescape")
        readable = "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "_" for c in branch[:60])
        self.directory = directory / f"b-{readable}-{hashlib.sha256(name).hexdigest()[:16]}"
        self.branch = branch

    @property
    def description(self) -> Path:
        """Which tar is current; replacing it is what switches."""
        return self.directory / "snapshot.json"

    @property
    def work(self) -> Path:
        """The tree and repository that the tar is made of."""
        return self.directory / "work"

    @property
    def unfinished(self) -> Path:
        """There while the tree is being brought forward: one that a kill left so is not built upon."""
        return self.work / "unfinished"

    def load(self, url: str) -> Snapshot | None:
        """The snapshot that is there, of this upstream and whole: every byte is read. None when there is none."""
        try:
            snapshot = Snapshot(**json.loads(self.description.read_text(encoding="utf-8")))
            if (snapshot.version, snapshot.url, snapshot.branch) != (LAYOUT_VERSION, url, self.branch):
                return None
            with self.path(snapshot).open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except (OSError, ValueError, TypeError):
            return None
        return snapshot if snapshot.etag == _etag(snapshot.commit, digest) else None

    def remove_others(self, snapshot: Snapshot) -> None:
        """Unlinks every tar but that of `snapshot`: whoever is being sent one keeps it to its end. Raises OSError."""
        for old in self.directory.glob("*.tar"):
            if old.name != snapshot.file:
                old.unlink()

    def path(self, snapshot: Snapshot) -> Path:
        """The tar of a snapshot."""
        return self.directory / snapshot.file


async def build_snapshot(place: SnapshotPlace, mirror: Mirror, git: Git, url: str, commit: str) -> Snapshot:
    """Builds the tar of `commit` on the place's branch and makes it current. Raises GitmirrorError.

    The tar before stays beside it until `remove_others`: it may just be about to be opened.
    """
    try:
        kept = place.work.exists()
        try:
            repository = await _bring_forward(place, mirror, git, commit)
        except (GitError, OSError) as error:
            if not kept:
                raise
            # Whatever broke it, a tree made anew does not depend on it.
            log.warning("the tree of %s at %s is made anew: %s", place.branch, place.directory.name, error)
            await asyncio.to_thread(shutil.rmtree, place.work)
            repository = await _bring_forward(place, mirror, git, commit)
        packing = asyncio.ensure_future(asyncio.to_thread(_pack, place, repository, url, commit))
        try:
            return await asyncio.shield(packing)
        except asyncio.CancelledError:
            # A thread cannot be stopped, and what comes next may remove the directory it writes to.
            await asyncio.wait([packing])
            raise
    except (OSError, UnknownIndex) as error:
        raise GitmirrorError(f"the snapshot of {place.branch} cannot be written: {error}") from error


async def _bring_forward(place: SnapshotPlace, mirror: Mirror, git: Git, commit: str) -> Path:
    """The working tree at `commit`, from the one before when there is one; returns its repository."""
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
    # By id, not by name: the branch may move meanwhile.
    before = await resolve("refs/heads/snapshot")
    await run(
        "fetch", "--quiet", "--depth=1", "--no-tags", "--no-write-fetch-head", "--update-shallow", "--force",
        f"file://{mirror.path}", f"{commit}:refs/heads/snapshot",
    )  # fmt: skip
    if before and await changed(before, ":(glob)**/.gitattributes"):
        # git applies new attributes to the files it writes, and leaves the others as the old ones had them.
        await asyncio.to_thread(shutil.rmtree, tree)
        tree.mkdir()
        (repository / "index").unlink(missing_ok=True)
    await run("read-tree", "--reset", "-u", commit)
    # Exactly the tip's objects, in one pack; what the tip before had alone goes.
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
"""A tree may be hostile: no hook, fsmonitor or submodule. Filters run only when a config names them, and none does."""


def workspace_config(url: str, branch: str) -> str:
    """The config of the workspace in the guest: `origin` is the upstream, fetched for this branch."""
    quoted_url, quoted = (text.replace("\\", "\\\\").replace('"', '\\"') for text in (url, branch))
    return f"""\
[core]
\trepositoryformatversion = 0
\tfilemode = true
\tbare = false
\tlogallrefupdates = true
\tcheckStat = minimal
\ttrustctime = false
[remote "origin"]
\turl = "{quoted_url}"
\tfetch = "+refs/heads/{quoted}:refs/remotes/origin/{quoted}"
[branch "{quoted}"]
\tremote = origin
\tmerge = "refs/heads/{quoted}"
"""


def _pack(place: SnapshotPlace, repository: Path, url: str, commit: str) -> Snapshot:
    """Lays out the guest's `.git` beside the tree, archives both, and switches over. Raises OSError, UnknownIndex."""
    guest = place.work / "guest"
    shutil.rmtree(guest, ignore_errors=True)
    (guest / "objects" / "info").mkdir(parents=True)
    (guest / "refs" / "tags").mkdir(parents=True)
    (guest / "info").mkdir()
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
    growing.rename(place.path(snapshot))
    write_atomically(place.description, json.dumps(asdict(snapshot)))
    shutil.rmtree(guest, ignore_errors=True)
    return snapshot


def _etag(commit: str, digest: str) -> str:
    return f"{commit}-{digest[:16]}"


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", errors="surrogateescape")
