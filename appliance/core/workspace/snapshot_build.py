"""Builds the ready workspace of one branch tip: a complete checkout with its history, as one tar.

Real git makes the checkout, so that attributes, line endings and symbolic links are right. The tree of the previous tip
is kept and updated, so that after a small commit git touches only what changed.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from appliance.core.errors import GitmirrorError
from appliance.core.git.command import Git, GitError
from appliance.core.git.mirror import Mirror
from appliance.core.process.atomic_file import write_atomically
from appliance.core.process.checked_file import CheckedFile, Identity
from appliance.core.workspace.config import workspace_config
from appliance.core.workspace.git_index import UnknownIndex, normalise_index
from appliance.core.workspace.history import History
from appliance.core.workspace.refs import Tag, packed_refs
from appliance.core.workspace.snapshot_modules import (
    NO_MODULES,
    PreparedModule,
    WantedModules,
    active_config,
    children_of,
    module_part,
    prepare_modules,
)
from appliance.core.workspace.snapshot_packs import DamagedPacks, SnapshotPacks
from appliance.core.workspace.snapshot_place import UNFINISHED, Snapshot, SnapshotPlace, etag_of
from appliance.core.workspace.tar import TarPart, write_tar

log = logging.getLogger(__name__)

BUILD_DEADLINE = 1800.0


async def build_snapshot(
    place: SnapshotPlace, mirror: Mirror, git: Git, url: str, commit: str, modules: WantedModules = NO_MODULES
) -> Snapshot:
    """Builds the tar of `commit` on the place's branch and makes it current. Raises GitmirrorError.

    It has the submodules that `modules` wants, except those whose mirrors cannot be read.
    The previous tar stays until `remove_others`, because somebody may be about to open it. Builds of one branch, in
    any shape, run one at a time.
    """
    try:
        kept = place.work.exists() or place.packs.exists()
        try:
            return await _build(place, mirror, git, url, commit, modules)
        except (GitError, DamagedPacks, UnknownIndex, OSError) as error:
            if not kept:
                raise
            # Start over, because a new tree and new packs do not depend on whatever broke the old ones.
            log.warning("building %s at %s from scratch: %s", place.branch, place.directory, error)
            await asyncio.to_thread(_remove, place.work, place.packs, place.module_packs)
            return await _build(place, mirror, git, url, commit, modules)
    except (OSError, UnknownIndex) as error:
        raise GitmirrorError(f"the snapshot of {place.branch} cannot be written: {error}") from error


def _remove(*directories: Path) -> None:
    for directory in directories:
        if directory.exists():
            shutil.rmtree(directory)


async def _build(
    place: SnapshotPlace, mirror: Mirror, git: Git, url: str, commit: str, modules: WantedModules
) -> Snapshot:
    place.directory.mkdir(parents=True, exist_ok=True)
    repository = await _bring_forward(place.work, mirror, git, commit)
    prepared = await prepare_modules(place, modules, git, _bring_forward)
    packs = SnapshotPacks(place.packs, place.shape.history, mirror, git)
    tags = await packs.bring_forward(commit)
    packing = asyncio.ensure_future(asyncio.to_thread(_pack, place, repository, packs, tags, url, commit, prepared))
    try:
        return await asyncio.shield(packing)
    except asyncio.CancelledError:
        # A thread cannot be stopped, and the next step may remove the directory that it writes to.
        await asyncio.wait([packing])
        raise


async def _bring_forward(work: Path, mirror: Mirror, git: Git, commit: str) -> Path:
    """Updates the tree below `work` to `commit`, or creates it; returns its repository, which reads the mirror's."""
    tree, repository, unfinished = work / "tree", work / "repository", work / UNFINISHED

    async def run(*words: str) -> bytes:
        where = (f"--git-dir={repository}", f"--work-tree={tree}")
        return (await git.run(*_HARMLESS, *where, *words, cwd=tree, deadline=BUILD_DEADLINE)).stdout

    if unfinished.exists() or not (repository / "HEAD").exists():
        if work.exists():
            await asyncio.to_thread(shutil.rmtree, work)
        work.mkdir(parents=True)
    head = repository / "checked-out"
    before = head.read_text() if head.exists() else ""
    if before == commit and tree.exists():
        return repository
    unfinished.touch()
    tree.mkdir(exist_ok=True)
    if not repository.exists():
        await git.run("init", "--quiet", "--bare", "--template=", str(repository), cwd=work, deadline=60)
    quoted = str(mirror.path / "objects").replace("\\", "\\\\").replace('"', '\\"')
    (repository / "objects" / "info").mkdir(exist_ok=True)
    (repository / "objects" / "info" / "alternates").write_text(f'"{quoted}"\n', errors="surrogateescape")
    if before:
        pathspec = ":(glob)**/.gitattributes"
        try:
            changed = bool(await run("diff-tree", "-r", "--name-only", before, commit, "--", pathspec))
        except GitError:
            # The mirror no longer has the old tip, which was rewritten.
            changed = True
        if changed:
            # git applies new attributes only to the files that it writes, so all files must be written again.
            await asyncio.to_thread(shutil.rmtree, tree)
            tree.mkdir()
            (repository / "index").unlink(missing_ok=True)
    await run("read-tree", "--reset", "-u", commit)
    head.write_text(commit)
    unfinished.unlink()
    return repository


_HARMLESS = (
    "-c", "core.hooksPath=/dev/null",
    "-c", "core.fsmonitor=false",
    "-c", "core.attributesFile=/dev/null",
    "-c", "submodule.recurse=false",
    "-c", "index.version=2",
    "-c", "index.threads=1",
    "-c", "index.sparse=false",
    "-c", "core.splitIndex=false",
    "-c", "core.untrackedCache=false",
    "-c", "core.logAllRefUpdates=false",
)  # fmt: skip
"""A tree may be hostile, so hooks, fsmonitor and submodules are off. Filters run only if a config names them, and none
does."""


def _pack(
    place: SnapshotPlace,
    repository: Path,
    packs: SnapshotPacks,
    tags: Sequence[Tag],
    url: str,
    commit: str,
    prepared: Sequence[PreparedModule],
) -> Snapshot:
    """Builds the guest's `.git`, archives it with the tree, and makes the tar current.

    Raises OSError, UnknownIndex, DamagedPacks.
    """
    packs.verify()
    guest = place.work / "guest"
    shutil.rmtree(guest, ignore_errors=True)
    for directory in ("objects/info", "objects/pack", "refs/heads", "refs/tags", "info", "hooks"):
        (guest / directory).mkdir(parents=True)
    branch = place.branch
    _write(guest / "HEAD", f"ref: refs/heads/{branch}\n")
    _write(guest / "config", workspace_config(url, branch, partial=place.shape.history is History.TREES))
    inside = [each.module for each in prepared]
    with (guest / "config").open("a", encoding="utf-8", errors="surrogateescape") as config:
        config.write(active_config(children_of(".git", inside)))
    if place.shape.history is History.TIP:
        _write(guest / "shallow", f"{commit}\n")
    _write(guest / "info" / "exclude", "")
    (guest / "packed-refs").write_bytes(packed_refs(branch, commit, tags))
    for name in packs.files():
        target = guest / "objects" / name
        target.parent.mkdir(exist_ok=True)
        os.link(place.packs / "objects" / name, target)
        if name.suffix == ".pack" and place.shape.history is History.TREES:
            # What the objects of such a pack refer to need not be there.
            _write(target.with_suffix(".promisor"), "")
    index, times = normalise_index((repository / "index").read_bytes())
    (guest / "index").write_bytes(index)
    growing = place.directory / "growing.tar"
    submodules = [module_part(each, children_of(each.module.git, inside)) for each in prepared]
    digest = write_tar([TarPart(place.work / "tree", times, guest), *submodules], growing)
    size = growing.stat().st_size
    etag = etag_of(commit, digest)
    snapshot = Snapshot(url, branch, commit, etag, size, f"{etag}.tar", place.shape.history, place.shape.key)
    snapshot = replace(snapshot, modules=tuple(each.noted for each in inside))
    path = place.path(snapshot)
    growing.rename(path)
    place.tar = CheckedFile(path, Identity.of(path.stat()), digest)
    write_atomically(place.description, json.dumps(asdict(snapshot)))
    shutil.rmtree(guest, ignore_errors=True)
    return snapshot


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", errors="surrogateescape")
