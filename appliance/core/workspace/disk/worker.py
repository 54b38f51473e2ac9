"""Builds one image in a process of its own, which `build` starts.

Plain Python that takes seconds and a hundred megabytes would hold up everything that `serve` does. The order comes as
JSON on stdin. The image's description, or the error, goes to stdout. Existing images survive a kill at any point.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import json
import logging
import os
import resource
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from appliance.core.errors import GitmirrorError
from appliance.core.process.atomic_file import write_atomically
from appliance.core.units import format_size
from appliance.core.workspace.config import kit_config, workspace_config
from appliance.core.workspace.disk.assemble import GitFiles, Workspace, repository, write_tree_drive
from appliance.core.workspace.disk.erofs import Directory
from appliance.core.workspace.disk.generation import OWN, Generation, ImageParts
from appliance.core.workspace.disk.header import BLOCK
from appliance.core.workspace.disk.history import dropped
from appliance.core.workspace.disk.images import BEGUN, LAYOUT_VERSION, SCRATCH, DiskImage, DiskPlace
from appliance.core.workspace.disk.index_file import write_index
from appliance.core.workspace.disk.large_files import find_large_files
from appliance.core.workspace.disk.member import Member
from appliance.core.workspace.disk.mirror_reader import MirrorReader
from appliance.core.workspace.disk.order import DiskOrder, LargeFile, order_of
from appliance.core.workspace.disk.submodules import graft
from appliance.core.workspace.module_files import active_config, default_branch, module_config, module_refs
from appliance.core.workspace.refs import packed_refs

log = logging.getLogger(__name__)

MOST_MEMORY = 2 * 2**30
"""Bytes for the worker and for each git that it starts. A repository of 100 kB can have a tree of 10^9 paths."""
SLACK = 4096
"""Blocks (16 MiB) of a blob file that may be of no use, however small the rest is."""


class Build:
    """The build of one order. `place` is the repository's."""

    def __init__(self, place: DiskPlace, mirror: Path, order: DiskOrder) -> None:
        self.place, self.order = place, order
        self.scratch = place.directory / SCRATCH
        # Builds of a place run one at a time, so this is what killed ones left.
        for left in [self.scratch, *place.directory.glob(f"*{BEGUN}")]:
            shutil.rmtree(left, ignore_errors=True)
        for left in [*place.directory.glob("*/images/*.new"), *place.directory.glob("*/listing-*.new")]:
            left.unlink(missing_ok=True)
        self.scratch.mkdir(parents=True)
        own = MirrorReader(mirror, self.scratch)
        readers = [MirrorReader(Path(module.mirror), self.scratch / str(at)) for at, module in enumerate(order.modules)]
        self.readers = {OWN: own, **{m.repo: reader for m, reader in zip(order.modules, readers, strict=True)}}
        """Reads the mirror of each member of the generation."""
        self.own = Member(
            own, order.commit, order.history,
            name=OWN, ref=f"refs/heads/{order.branch}", memory=order.branch, large=order.large,
        )  # fmt: skip
        self.modules = [
            Member(
                reader, module.commit, order.history,
                name=module.repo, ref=module.path, memory=f"{order.branch}\0{module.path}", large=module.large,
            )
            for module, reader in zip(order.modules, readers, strict=True)
        ]  # fmt: skip

    def run(self) -> DiskImage:
        """Builds the image, or finds it built. Raises GitmirrorError, OSError, sqlite3.Error."""
        try:
            if any(len(member.commit) != 40 for member in self._members):
                raise GitmirrorError(f"cannot build a disk of {self.order.repo}: its object ids are not SHA-1")
            name = self._name()
            current = self._current()
            if current is not None and (image := self._built(current, name)):
                return image
            for member in self._members:
                member.read(None if current is None else self.place.generation(current))
            if current is not None and not self._is_worn(current):
                with self._opened(current) as generation:
                    return self._build(generation, current, name)
            for member in self._members:
                member.forget_last()
            return self._begin(name)
        finally:
            shutil.rmtree(self.scratch, ignore_errors=True)

    @property
    def _members(self) -> list[Member]:
        return [self.own, *self.modules]

    # -- which generation ---------------------------------------------------------------------------------------------

    def _facts(self) -> dict[str, str]:
        order = self.order
        return {
            "version": str(LAYOUT_VERSION), "line": order.line,
            "url": order.url, "visibility": order.visibility, "history": order.history,
        }  # fmt: skip

    def _current(self) -> int | None:
        """The newest generation of the order's line, if this order may go into it."""
        for number in reversed(self.place.generations()):
            try:
                with self._opened(number) as generation:
                    if generation.fact("line") != self.order.line:
                        continue
                    fits = all(generation.fact(key) == value for key, value in self._facts().items())
                    if fits and generation.is_whole() and not self._has_dropped(generation):
                        return number
                    return None
            except (OSError, sqlite3.Error, LookupError, TypeError, ValueError) as error:
                # It may be one of this line. An older one that can be read is not the newest then, and is not used.
                log.warning("beginning anew, because generation %d cannot be read: %s", number, error)
                return None
        return None

    def _has_dropped(self, generation: Generation) -> bool:
        """Whether upstream no longer has what is in a generation; each member is of its own upstream."""
        return any(dropped(reader, generation.packed(name)) for name, reader in self.readers.items())

    def _opened(self, number: int) -> Generation:
        return Generation(self.place.generation(number))

    def _is_worn(self, number: int) -> bool:
        """Whether over half of the blob file belongs to no existing image, nor to the ordered one."""
        with self._opened(number) as generation:
            # What the last image needed is a first guess that costs nothing.
            if generation.end <= 2 * int(generation.fact("needed") or 0) + SLACK:
                return False
            # Looking at every image takes a while, so it is done again only after the file grew by a quarter.
            if generation.end <= int(generation.fact("unworn") or 0) * 5 // 4:
                return False
            keys = {key for member in self._members for key in member.keys}
            commits: set[tuple[str, str]] = set()
            for parts in generation.parts_of(self._images_in(number)):
                commits |= {(member, commit) for member, commit in parts.commits}
                keys |= {bytes.fromhex(key) for key in parts.large}
            for member, commit in commits:
                with contextlib.suppress(GitmirrorError, KeyError):
                    keys |= {oid for _, oid, _ in self.readers[member].listing(commit)}
            if generation.end > 2 * _needed(generation, generation.find(keys)) + SLACK:
                return True
            generation.commit(facts={"unworn": str(generation.end)})
            return False

    def _images_in(self, number: int) -> set[str]:
        return {image.name for image in self.place.images() if image.generation == number}

    def _begin(self, name: str) -> DiskImage:
        """Builds the first image of a new generation, which appears as a whole."""
        number = self.place.next_generation()
        directory = self.place.directory / f"{number}{BEGUN}"
        directory.mkdir(parents=True)
        try:
            with Generation.create(directory, self._facts()) as generation:
                image = self._build(generation, number, name)
        except BaseException:
            shutil.rmtree(directory, ignore_errors=True)
            raise
        directory.rename(self.place.generation(number))
        _sync(self.place.directory)
        return image

    # -- the image ----------------------------------------------------------------------------------------------------

    def _name(self) -> str:
        """The file name of the image: readable, and another for other contents."""
        order = self.order
        readable = "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "_" for c in order.branch[:60])
        what = packed_refs(order.branch, order.commit, self.own.tags) + f"{order.form} {order.repo}".encode()
        if order.modules or order.large:
            modules = [
                (
                    module.path, module.git, module.url, module.commit, module.update, [*map(tuple, member.tags)],
                    sorted(member.branches.items()), default_branch(Path(module.mirror), member.branches),
                    _oids(module.large),
                )
                for module, member in zip(order.modules, self.modules, strict=True)
            ]  # fmt: skip
            what += repr([*modules, _oids(order.large)]).encode("utf-8", "surrogateescape")
        return f"{readable}-{order.commit[:12]}-{hashlib.sha256(what).hexdigest()[:12]}.img"

    def _built(self, number: int, name: str) -> DiskImage | None:
        for image in self.place.images():
            if (image.generation, image.name) == (number, name):
                return image
        return None

    def _build(self, generation: Generation, number: int, name: str) -> DiskImage:
        order = self.order
        for member in self._members:
            member.store_contents(generation)
        for member in self._members:
            member.store_history(generation)
        extents = {key: extent for member in self._members for key, extent in member.extents.items()}
        commits = [[member.name, member.commit] for member in self._members]
        parts = ImageParts(commits, [key.hex() for member in self._members for key in member.large])
        # Before the image appears, because what it has counts as used from then on.
        facts = {"needed": str(_needed(generation, extents))}
        generation.commit(facts=facts, images={name: parts}, kept=self._images_in(number))
        root = self._root(generation)
        path = generation.directory / "images" / name
        unfinished = path.with_suffix(".new")
        unfinished.unlink(missing_ok=True)
        size, data_size = write_tree_drive(
            unfinished, root, generation, order.form, self.scratch, repo=order.repo, commit=order.commit
        )
        unfinished.rename(path)
        image = DiskImage(
            order.repo, order.url, order.branch, order.commit, order.form, order.history, order.visibility, number,
            name, size, data_size, _digest(path), time.time(), order.line,
        )  # fmt: skip
        write_atomically(path.with_suffix(".json"), self.place.describe(image), 0o640)
        _sync(path.parent)
        for member in self._members:
            member.remember(generation.directory)
        return image

    def _root(self, generation: Generation) -> Directory:
        """The whole image: the tree, `.git` beside it, and the submodules in both."""
        order, own = self.order, self.own
        config = workspace_config(order.url, order.branch) + kit_config(order.repo, order.commit)
        config += active_config(".git", order.modules)
        refs = packed_refs(order.branch, order.commit, own.tags)
        workspace = own.workspace()
        files = GitFiles(
            order.commit, f"ref: refs/heads/{order.branch}", config, refs, _index(own, workspace),
            generation.packs(OWN), own.tip(),
        )  # fmt: skip
        workspace.root.entries[b".git"] = repository(files)
        for module, member in zip(order.modules, self.modules, strict=True):
            head = default_branch(Path(module.mirror), member.branches)
            config = module_config(module, head) + active_config(module.git, order.modules)
            refs = module_refs(member.branches, head, member.tags)
            below = member.workspace()
            files = GitFiles(
                module.commit, module.commit, config, refs, _index(member, below),
                generation.packs(member.name), member.tip(), head,
            )  # fmt: skip
            graft(workspace.root, module, below.root, repository(files))
        return workspace.root


def _index(member: Member, workspace: Workspace) -> bytes:
    """The index of a member, whose entries are not needed any more then."""
    index = write_index(member.tree(), workspace.index)
    workspace.index.clear()
    return index


def _oids(files: Iterable[LargeFile]) -> list[tuple[str, str]]:
    """What files with LFS objects add to an image, wherever the objects are on this node."""
    return [(file.path, file.oid) for file in files]


def _needed(generation: Generation, extents: Mapping[bytes, tuple[int, int]]) -> int:
    """How many blocks of the blob file these contents and the packs of new images take."""
    packs = sum(pack.pack.blocks + pack.idx.blocks for pack in generation.packs(None))
    return packs + sum(-(-size // BLOCK) for _, size in extents.values())


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _look(mirror: Path, commit: str) -> dict[str, Any]:
    """The LFS files of a commit: path, object and size of each."""
    with tempfile.TemporaryDirectory() as scratch:
        found = find_large_files(MirrorReader(mirror, Path(scratch)), commit)
    return {"large": [(os.fsdecode(path), pointer.oid, pointer.size) for path, pointer in found]}


def main(orders: TextIO, answers: TextIO) -> int:
    """Builds the one order in `orders`, or finds the LFS files of its commit if it has no place.

    Writes the answer as JSON, or an object with `error` and `hint`. Returns the exit code.
    """
    # No reference cycles are created here, and each collection would scan the growing tree.
    gc.disable()
    resource.setrlimit(resource.RLIMIT_DATA, (MOST_MEMORY, MOST_MEMORY))
    order: dict[str, Any] = json.load(orders)
    place, mirror = order.pop("place", None), Path(order.pop("mirror"))
    try:
        if place is None:
            answer = _look(mirror, order["commit"])
        else:
            answer = asdict(Build(DiskPlace(Path(place)), mirror, order_of(order)).run())
    except GitmirrorError as error:
        answer = {"error": error.message, "hint": error.hint}
    except OSError as error:
        answer = {"error": f"the disk cannot be written: {error.strerror or error}", "hint": ""}
    except MemoryError:
        answer = {"error": f"the disk needs more than {format_size(MOST_MEMORY)} of memory to be built", "hint": ""}
    except (sqlite3.Error, LookupError, TypeError, ValueError) as error:
        answer = {"error": f"the disk cannot be built: {error}", "hint": "see the log of serve"}
    json.dump(answer, answers)
    return 1 if "error" in answer else 0
