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
from dataclasses import asdict
from pathlib import Path

from appliance.core.errors import GitmirrorError
from appliance.core.git.command import Git, GitError
from appliance.core.git.mirror import Mirror
from appliance.core.lfs.pointers import Pointer
from appliance.core.process.atomic_file import write_atomically
from appliance.core.process.checked_file import CheckedFile, Identity
from appliance.core.workspace.cone import cone_of, patterns
from appliance.core.workspace.config import workspace_config
from appliance.core.workspace.git_index import UnknownIndex, normalise_index
from appliance.core.workspace.history import History
from appliance.core.workspace.lfs_files import Choice, Chosen, Contents, LfsFiles, find_lfs_files
from appliance.core.workspace.module_files import active_config
from appliance.core.workspace.refs import Tag, packed_refs
from appliance.core.workspace.snapshot_modules import (
    NO_MODULES,
    PreparedModule,
    WantedModules,
    module_part,
    prepare_modules,
)
from appliance.core.workspace.snapshot_packs import DamagedPacks, SnapshotPacks
from appliance.core.workspace.snapshot_place import UNFINISHED, Snapshot, SnapshotPlace, etag_of
from appliance.core.workspace.sparse_index import leave_out
from appliance.core.workspace.tar import TarPart, write_tar

log = logging.getLogger(__name__)

BUILD_DEADLINE = 1800.0


async def build_snapshot(
    place: SnapshotPlace,
    mirror: Mirror,
    git: Git,
    url: str,
    commit: str,
    modules: WantedModules = NO_MODULES,
    choose: Choice | None = None,
) -> Snapshot:
    """Builds the tar of `commit` on the place's branch and makes it current. Raises GitmirrorError.

    It has the submodules that `modules` wants, except those whose mirrors cannot be read. `choose` decides which LFS
    files of a shape with content are in place; the tar is not built if it raises NotYet.
    The previous tar stays until `remove_others`, because somebody may be about to open it. Builds of one branch, in
    any shape, run one at a time.
    """
    try:
        kept = place.work.exists() or place.packs.exists()
        try:
            return await _build(place, mirror, git, url, commit, modules, choose)
        except (GitError, DamagedPacks, UnknownIndex, OSError) as error:
            if not kept:
                raise
            # Start over, because a new tree and new packs do not depend on whatever broke the old ones.
            log.warning("building %s at %s from scratch: %s", place.branch, place.directory, error)
            await asyncio.to_thread(_remove, place.work, place.packs, place.module_packs)
            return await _build(place, mirror, git, url, commit, modules, choose, alone=True)
    except (OSError, UnknownIndex) as error:
        raise GitmirrorError(f"the snapshot of {place.branch} cannot be written: {error}") from error


def _remove(*directories: Path) -> None:
    for directory in directories:
        if directory.exists():
            shutil.rmtree(directory)


async def _build(
    place: SnapshotPlace,
    mirror: Mirror,
    git: Git,
    url: str,
    commit: str,
    modules: WantedModules,
    choose: Choice | None,
    *,
    alone: bool = False,
) -> Snapshot:
    """`alone` takes over nothing from other shapes, whose packs may be what is damaged."""
    place.directory.mkdir(parents=True, exist_ok=True)
    repository = await _bring_forward(place.work, mirror, git, commit)
    prepared = await prepare_modules(place, modules, git, _bring_forward)
    chosen = Chosen([Contents()] * (1 + len(prepared)))
    if place.shape.content and choose is not None:
        cone = cone_of(place.shape.only)
        files = {path: each for path, each in (await _lfs_files(place.work, git)).items() if path in cone}
        inside = [LfsFiles(await _lfs_files(each.work, git), each.module.repo) for each in prepared]
        chosen = await choose([LfsFiles(files), *inside])
    others = [] if alone else place.other_packs()
    packs = SnapshotPacks(place.packs, place.shape.history, mirror, git, place.shape.only, others)
    tags = await packs.bring_forward(commit)
    words = (place, repository, packs, tags, url, commit, prepared, chosen)
    packing = asyncio.ensure_future(asyncio.to_thread(_pack, *words))
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


async def _lfs_files(work: Path, git: Git) -> dict[str, Pointer]:
    """The LFS files of what is checked out below `work`, by path."""
    tree = work / "tree"

    async def run(*words: str) -> bytes:
        where = (f"--git-dir={work / 'repository'}", f"--work-tree={tree}")
        return (await git.run(*_HARMLESS, *where, *words, cwd=tree, deadline=BUILD_DEADLINE)).stdout

    return await find_lfs_files(run, tree)


def _pack(
    place: SnapshotPlace,
    repository: Path,
    packs: SnapshotPacks,
    tags: Sequence[Tag],
    url: str,
    commit: str,
    prepared: Sequence[PreparedModule],
    chosen: Chosen,
) -> Snapshot:
    """Builds the guest's `.git`, archives it with the tree, and makes the tar current.

    Raises OSError, UnknownIndex, DamagedPacks, ContentLost.
    """
    packs.verify()
    guest = place.work / "guest"
    shutil.rmtree(guest, ignore_errors=True)
    for directory in ("objects/info", "objects/pack", "refs/heads", "refs/tags", "info", "hooks"):
        (guest / directory).mkdir(parents=True)
    branch = place.branch
    _write(guest / "HEAD", f"ref: refs/heads/{branch}\n")
    only = place.shape.only
    _write(guest / "config", workspace_config(url, branch, partial=place.shape.is_partial, sparse=bool(only)))
    if only:
        (guest / "info" / "sparse-checkout").write_bytes(patterns(only))
    inside = [each.module for each in prepared]
    with (guest / "config").open("a", encoding="utf-8", errors="surrogateescape") as config:
        config.write(active_config(".git", inside))
    if place.shape.history is History.TIP:
        _write(guest / "shallow", f"{commit}\n")
    _write(guest / "info" / "exclude", "")
    (guest / "packed-refs").write_bytes(packed_refs(branch, commit, tags))
    for name in packs.files():
        target = guest / "objects" / name
        target.parent.mkdir(exist_ok=True)
        os.link(place.packs / "objects" / name, target)
        if name.suffix == ".pack" and place.shape.is_partial:
            # What the objects of such a pack refer to need not be there.
            _write(target.with_suffix(".promisor"), "")
    content, *contents = chosen.trees
    index, times = normalise_index((repository / "index").read_bytes(), content.sizes)
    there = None
    if only:
        index, there, place.left_out = leave_out(index, only)
    (guest / "index").write_bytes(index)
    growing = place.directory / "growing.tar"
    submodules = [module_part(each, inside, theirs) for each, theirs in zip(prepared, contents, strict=True)]
    part = TarPart(place.work / "tree", times, guest, contents=content.files, only=there)
    digest = write_tar([part, *submodules], growing)
    size = growing.stat().st_size
    etag = etag_of(commit, digest)
    snapshot = Snapshot(
        url, branch, commit, etag, size, f"{etag}.tar", place.shape.history, place.shape.key,
        lfs_files=chosen.total, lfs_pointers=chosen.pointers, lfs_bytes=chosen.bytes,
        modules=tuple(each.noted for each in inside),
    )  # fmt: skip
    path = place.path(snapshot)
    growing.rename(path)
    place.tar = CheckedFile(path, Identity.of(path.stat()), digest)
    write_atomically(place.description, json.dumps(asdict(snapshot)))
    shutil.rmtree(guest, ignore_errors=True)
    return snapshot


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", errors="surrogateescape")
