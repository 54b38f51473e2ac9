"""Puts submodules into a snapshot, as `git submodule update --init --recursive` leaves them (gitsubmodules(7)).

Each has a directory below the branch's working directory, with a tree that all shapes of the branch share, and packs of
its own in each shape. Both are brought forward from tip to tip like those of the workspace itself.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import shutil
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from appliance.core.git.command import Git, GitError
from appliance.core.git.mirror import Mirror
from appliance.core.text import escape
from appliance.core.workspace.git_index import normalise_index
from appliance.core.workspace.history import History
from appliance.core.workspace.lfs_files import Contents
from appliance.core.workspace.module_files import active_config, default_branch, git_file, module_config, module_refs
from appliance.core.workspace.refs import Tag
from appliance.core.workspace.snapshot_packs import SnapshotPacks
from appliance.core.workspace.snapshot_place import Snapshot, SnapshotPlace
from appliance.core.workspace.submodules import Submodule
from appliance.core.workspace.tar import TarPart

log = logging.getLogger(__name__)

DEADLINE = 300.0

Checkout = Callable[[Path, Mirror, Git, str], Awaitable[Path]]
"""Brings the tree below a directory to a commit of a mirror, and returns its repository."""


@dataclass(frozen=True)
class WantedModules:
    """The submodules of one snapshot, parents before children.

    `history(submodule, directory)` is how much of its history one has; `directory` may keep what was measured.
    `known` are the paths of all submodules that the tip has, with those that this snapshot lacks.
    """

    modules: Sequence[Submodule] = ()
    mirror_of: Callable[[str], Mirror] | None = None
    history: Callable[[Submodule, Path], Awaitable[History]] | None = None
    known: Iterable[str] = ()

    def are_in(self, snapshot: Snapshot) -> bool:
        """Whether a snapshot has exactly these."""
        return [tuple(each) for each in snapshot.modules] == [each.noted for each in self.modules]


NO_MODULES = WantedModules()


@dataclass(frozen=True)
class Branches:
    """The branches of a submodule's mirror that are in its history. `head` is the mirror's default branch, or empty."""

    tips: dict[str, str]
    head: str


@dataclass(frozen=True)
class PreparedModule:
    """A submodule whose tree and packs are on disk."""

    module: Submodule
    work: Path
    repository: Path
    packs: SnapshotPacks
    kept: Path
    history: History
    branches: Branches
    tags: Sequence[Tag]


async def prepare_modules(
    place: SnapshotPlace, wanted: WantedModules, git: Git, checkout: Checkout
) -> list[PreparedModule]:
    """Brings the trees and packs of the submodules forward, and removes those that are gone. Raises OSError."""
    trees, packs = place.work / "modules", place.module_packs
    here = {_key(module.path) for module in wanted.modules}
    known = here | {_key(path) for path in wanted.known}
    await asyncio.to_thread(_keep_only, trees, known)
    await asyncio.to_thread(_keep_only, packs, here)
    prepared: list[PreparedModule] = []
    lost: list[str] = []
    for module in wanted.modules:
        if any(module.path.startswith(f"{path}/") for path in lost):
            continue
        try:
            try:
                prepared.append(await _prepare(trees, packs, module, wanted, git, checkout))
            except GitError:
                # Start over, because a new tree and new packs do not depend on whatever broke the old ones.
                await asyncio.to_thread(_remove, trees / _key(module.path), packs / _key(module.path))
                prepared.append(await _prepare(trees, packs, module, wanted, git, checkout))
        except GitError as error:
            # The workspace is worth having without it.
            lost.append(module.path)
            log.warning("%s: the submodule %s stays empty: %s", place.directory, escape(module.path), error)
    return prepared


def _remove(*directories: Path) -> None:
    for directory in directories:
        shutil.rmtree(directory, ignore_errors=True)


async def _prepare(
    trees: Path, packs: Path, module: Submodule, wanted: WantedModules, git: Git, checkout: Checkout
) -> PreparedModule:
    assert wanted.mirror_of is not None and wanted.history is not None
    mirror, key = wanted.mirror_of(module.repo.name), _key(module.path)
    work, kept = trees / key, packs / key
    source = f"{module.repo.id}\n"
    for directory in (work, kept):
        # Another repository at this path has nothing that could be brought forward.
        if not (directory / "source").exists() or (directory / "source").read_text() != source:
            await asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True)
            directory.mkdir(parents=True)
            (directory / "source").write_text(source)
    repository = await checkout(work / "checkout", mirror, git, module.commit)
    history = await wanted.history(module, work)
    made = SnapshotPacks(kept / str(history), history, mirror, git)
    await asyncio.to_thread(_keep_only, kept, {"source", str(history)})
    tags = await made.bring_forward(module.commit)
    branches = await _branches(mirror, git, module.commit, history)
    return PreparedModule(module, work / "checkout", repository, made, kept / str(history), history, branches, tags)


async def _branches(mirror: Mirror, git: Git, commit: str, history: History) -> Branches:
    """The branches whose tips the packs have. Raises GitError."""
    which = f"--points-at={commit}" if history is History.TIP else f"--merged={commit}"
    words = ("for-each-ref", which, "--format=%(objectname) %(refname:lstrip=2)", "refs/heads")
    output = (await git.run(*words, cwd=mirror.path, deadline=DEADLINE)).stdout
    lines = output.decode("utf-8", "surrogateescape").split("\n")
    tips = {name: oid for oid, _, name in (line.partition(" ") for line in lines) if name}
    return Branches(tips, default_branch(mirror.path, tips))


def module_part(prepared: PreparedModule, modules: Sequence[Submodule], contents: Contents) -> TarPart:
    """Writes the `.git` of a submodule and returns what goes into the tar. `modules` are all in the tar.

    `contents` are its LFS files that are in place.

    Raises OSError, UnknownIndex, DamagedPacks.
    """
    module, packs = prepared.module, prepared.packs
    packs.verify()
    guest = prepared.work / "guest"
    shutil.rmtree(guest, ignore_errors=True)
    for directory in (
        "objects/info",
        "objects/pack",
        "refs/heads",
        "refs/remotes/origin",
        "refs/tags",
        "info",
        "hooks",
    ):
        (guest / directory).mkdir(parents=True)
    is_partial = prepared.history is History.TREES
    branches = prepared.branches
    text = module_config(module, branches.head, partial=is_partial) + active_config(module.git, modules)
    _write(guest / "config", text)
    _write(guest / "HEAD", f"{module.commit}\n")
    if prepared.history is History.TIP:
        _write(guest / "shallow", f"{module.commit}\n")
    _write(guest / "info" / "exclude", "")
    (guest / "packed-refs").write_bytes(module_refs(branches.tips, branches.head, prepared.tags))
    if branches.head:
        _write(guest / "refs" / "remotes" / "origin" / "HEAD", f"ref: refs/remotes/origin/{branches.head}\n")
    for name in packs.files():
        target = guest / "objects" / name
        target.parent.mkdir(exist_ok=True)
        os.link(prepared.kept / "objects" / name, target)
        if name.suffix == ".pack" and is_partial:
            _write(target.with_suffix(".promisor"), "")
    index, times = normalise_index((prepared.repository / "index").read_bytes(), contents.sizes)
    (guest / "index").write_bytes(index)
    tree = prepared.work / "tree"
    _write(tree / ".git", git_file(module))
    return TarPart(tree, times, guest, top=module.path, git=module.git, contents=contents.files)


def _key(path: str) -> str:
    return hashlib.sha256(path.encode("utf-8", "surrogateescape")).hexdigest()[:32]


def _keep_only(directory: Path, names: Iterable[str]) -> None:
    for entry in list(directory.iterdir()) if directory.is_dir() else ():
        if entry.name not in names:
            shutil.rmtree(entry, ignore_errors=True)


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", errors="surrogateescape")
