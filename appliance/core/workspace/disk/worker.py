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
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from appliance.core.errors import GitmirrorError
from appliance.core.process.atomic_file import write_atomically
from appliance.core.units import format_size
from appliance.core.workspace.consolidation import MOST_PACKS
from appliance.core.workspace.disk import last_listing
from appliance.core.workspace.disk.assemble import Workspace, repository, write_tree_drive
from appliance.core.workspace.disk.checkout import LONGEST_TARGET, check_out, conversions, refuse_hostile_names
from appliance.core.workspace.disk.generation import Generation
from appliance.core.workspace.disk.header import BLOCK
from appliance.core.workspace.disk.history import (
    dropped,
    is_reached,
    merge_packs,
    pack_history,
    pack_objects,
    packs_to_merge,
    store_pack,
    tags_on,
)
from appliance.core.workspace.disk.images import BEGUN, LAYOUT_VERSION, SCRATCH, DiskForm, DiskImage, DiskPlace
from appliance.core.workspace.disk.index_file import write_index
from appliance.core.workspace.disk.mirror_reader import GITLINK, LINK, TREE, MirrorReader, TreeEntry
from appliance.core.workspace.disk.order import DiskOrder
from appliance.core.workspace.refs import Tag, packed_refs

log = logging.getLogger(__name__)

MOST_MEMORY = 2 * 2**30
"""Bytes for the worker and for each git that it starts. A repository of 100 kB can have a tree of 10^9 paths."""
WORTH_REMEMBERING = 5000
"""Entries from which on the listing of a tree is kept for the next build."""
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
        self.reader = MirrorReader(mirror, self.scratch)
        self.refs: list[Tag] = []
        self.entries: list[TreeEntry] = []
        self.converted: dict[bytes, bytes] = {}
        self.keys: dict[bytes, None] = {}
        self.last: last_listing.LastListing | None = None
        """What the last build of this branch in this generation knew."""

    def run(self) -> DiskImage:
        """Builds the image, or finds it built. Raises GitmirrorError, OSError, sqlite3.Error."""
        try:
            order = self.order
            if len(order.commit) != 40:
                raise GitmirrorError(f"cannot build a disk of {order.repo}: its object ids are not SHA-1")
            self.refs = tags_on(self.reader, order.commit) if order.history == "full" else []
            name = self._name()
            current = self._current()
            if current is not None and (image := self._built(current, name)):
                return image
            self.entries = self._listed(current)
            self.converted = conversions(self.reader, order.commit, self.entries)
            self.keys = self._keys()
            if current is not None and not self._is_worn(current):
                with self._opened(current) as generation:
                    return self._build(generation, current, name)
            self.last = None
            return self._begin(name)
        finally:
            shutil.rmtree(self.scratch, ignore_errors=True)

    def _listed(self, current: int | None) -> list[TreeEntry]:
        """The listing of the commit's tree, with names that git does not refuse."""
        if current is not None:
            place = last_listing.place_of(self.place.generation(current), self.order.branch)
            self.last = last_listing.load(place)
        if self.last is None:
            entries = new = self.reader.listing(self.order.commit)
        else:
            changes = last_listing.changes_since(self.reader, self.last.commit, self.order.commit)
            entries, new = last_listing.apply(self.last.entries, changes)
        refuse_hostile_names(new)
        return entries

    # -- which generation ---------------------------------------------------------------------------------------------

    def _facts(self) -> dict[str, str]:
        order = self.order
        return {
            "version": str(LAYOUT_VERSION), "url": order.url, "visibility": order.visibility, "history": order.history
        }  # fmt: skip

    def _current(self) -> int | None:
        """The newest generation, if this order may go into it."""
        numbers = self.place.generations()
        if not numbers:
            return None
        try:
            with self._opened(numbers[-1]) as generation:
                fits = all(generation.fact(key) == value for key, value in self._facts().items())
                if fits and generation.is_whole() and dropped(self.reader, generation.packed()) is None:
                    return numbers[-1]
        except (OSError, sqlite3.Error, LookupError, TypeError, ValueError) as error:
            log.warning("beginning anew, because generation %d cannot be read: %s", numbers[-1], error)
        return None

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
            keys = set(self.keys)
            for commit in {image.commit for image in self.place.images() if image.generation == number}:
                with contextlib.suppress(GitmirrorError):
                    keys |= {oid for _, oid, _ in self.reader.listing(commit)}
            if generation.end > 2 * _blocks(generation, generation.find(keys)) + SLACK:
                return True
            generation.commit(facts={"unworn": str(generation.end)})
            return False

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
        what = packed_refs(order.branch, order.commit, self.refs) + f"{order.form} {order.repo}".encode()
        return f"{readable}-{order.commit[:12]}-{hashlib.sha256(what).hexdigest()[:12]}.img"

    def _built(self, number: int, name: str) -> DiskImage | None:
        for image in self.place.images():
            if (image.generation, image.name) == (number, name):
                return image
        return None

    def _build(self, generation: Generation, number: int, name: str) -> DiskImage:
        order = self.order
        extents = self._store_contents(generation)
        self._store_history(generation, extents)
        links = [oid for mode, oid, _ in self.entries if mode == LINK]
        targets = {oid: target or b"" for oid, target in self.reader.whole(links, LONGEST_TARGET).items()}
        workspace = Workspace(self.entries, extents, self.converted, targets)
        tree = bytes.fromhex(self.reader.tree_of(order.commit))
        tip = None
        if order.history == "tip":
            tip = self.reader.run("cat-file", "commit", order.commit)
        workspace.root.entries[b".git"] = repository(
            order.repo, order.url, order.branch, order.commit,
            refs=packed_refs(order.branch, order.commit, self.refs), index=write_index(tree, workspace.index),
            packs=generation.packs(), tip=tip,
        )  # fmt: skip
        workspace.index.clear()
        path = generation.directory / "images" / name
        unfinished = path.with_suffix(".new")
        unfinished.unlink(missing_ok=True)
        size, data_size = write_tree_drive(
            unfinished, workspace.root, generation, order.form, self.scratch, repo=order.repo, commit=order.commit
        )
        unfinished.rename(path)
        image = DiskImage(
            order.repo, order.url, order.branch, order.commit, order.form, order.history, order.visibility, number,
            name, size, data_size, _digest(path), time.time(),
        )  # fmt: skip
        write_atomically(path.with_suffix(".json"), self.place.describe(image), 0o640)
        _sync(path.parent)
        if len(self.entries) >= WORTH_REMEMBERING:
            place = last_listing.place_of(generation.directory, order.branch)
            last_listing.store(place, last_listing.LastListing(order.commit, self.entries, extents))
        return image

    def _keys(self) -> dict[bytes, None]:
        """The catalogue's keys of all files, in their order."""
        if not self.converted:
            return {oid: None for mode, oid, _ in self.entries if mode not in (TREE, LINK, GITLINK)}
        converted = self.converted
        files = (entry for entry in self.entries if entry[0] not in (TREE, LINK, GITLINK))
        return {converted.get(path, oid): None for _, oid, path in files}

    def _store_contents(self, generation: Generation) -> dict[bytes, tuple[int, int]]:
        """Adds to the blob file what it lacks. Returns where the contents with each of `keys` are."""
        found = last_listing.contents_of(self.last.extents, self.keys) if self.last is not None else {}
        missing = self.keys.keys() - found.keys()
        found |= generation.find(missing)
        missing -= found.keys()
        paths = {path: key for path, key in self.converted.items() if key in missing}
        missing -= set(paths.values())
        plain = [oid for oid in self.keys if oid in missing] if missing else []
        for oid, _, pieces in self.reader.contents(plain) if plain else ():
            extent = generation.add(oid, pieces)
            found[oid] = (extent.block, extent.size)
        for key, file in check_out(self.reader, paths):
            if key not in found:
                extent = generation.add(key, _read(file))
                found[key] = (extent.block, extent.size)
        return found

    def _store_history(self, generation: Generation, extents: Mapping[bytes, tuple[int, int]]) -> None:
        """Adds the packs that this image needs, and commits everything."""
        order, reader, known = self.order, self.reader, generation.packed()
        ref, recorded = f"refs/heads/{order.branch}", set(known)
        before = [oid for name, oid in known if name == ref]
        packed = {ref: order.commit, **{tag.ref: tag.oid for tag in self.refs}}
        if any(is_reached(reader, order.commit, oid) for oid in before):
            # An older commit was ordered, or the same. What the branch had since stays on record.
            del packed[ref]
        packed = {name: oid for name, oid in packed.items() if (name, oid) not in recorded}
        # What the new tip does not reach stays on record too, to be noticed when upstream drops it.
        superseded = [(ref, oid) for oid in before if ref in packed and is_reached(reader, oid, order.commit)]
        if order.history == "full":
            new = pack_history(reader, generation, packed.values()) if packed else None
        else:
            new = pack_objects(reader, self._objects_of_tip(before[-1] if before else None))
        packs = [store_pack(generation, new)] if new else []
        needed = _blocks(generation, extents) + sum(pack.blocks + idx.blocks for _, pack, idx in packs)
        generation.commit(facts={"needed": str(needed)}, packs=packs, packed=packed, superseded=superseded)
        if order.history == "full":
            old = packs_to_merge(generation.packs())
            merged = merge_packs(reader, generation, old) if old else None
        else:
            old = generation.packs() if len(generation.packs()) >= MOST_PACKS else []
            merged = pack_objects(reader, self._objects_of_all_tips(generation)) if old else None
        if merged is not None:
            generation.commit(packs=[store_pack(generation, merged)], replaced=[pack.id for pack in old])

    def _objects_of_tip(self, before: str | None) -> Iterator[str]:
        """The trees and blobs of the commit, or those that its branch's last image did not have."""
        commit = self.order.commit
        if before is None:
            yield from self._objects_in(commit, self.entries)
        elif before != commit:
            yield self.reader.tree_of(commit)
            changed = self.reader.run("diff-tree", "-r", "-t", "--raw", "-z", "--no-renames", before, commit)
            fields = [field.split(b" ") for field in changed.split(b"\0") if field.startswith(b":")]
            yield from dict.fromkeys(field[3].decode() for field in fields if field[1] not in (b"160000", b"000000"))

    def _objects_of_all_tips(self, generation: Generation) -> dict[str, None]:
        """The trees and blobs of the ordered commit, and of the tips of all branches in the generation."""
        tips = {self.order.commit, *(oid for ref, oid in generation.packed() if ref.startswith("refs/heads/"))}
        return {oid: None for tip in tips for oid in self._objects_in(tip, self.reader.listing(tip))}

    def _objects_in(self, commit: str, entries: Iterable[TreeEntry]) -> Iterator[str]:
        yield self.reader.tree_of(commit)
        yield from dict.fromkeys(oid.hex() for mode, oid, _ in entries if mode != GITLINK)


def _blocks(generation: Generation, extents: Mapping[bytes, tuple[int, int]]) -> int:
    """How many blocks of the blob file these contents and the packs of a new image take."""
    packs = sum(pack.pack.blocks + pack.idx.blocks for pack in generation.packs())
    return packs + sum(-(-size // BLOCK) for _, size in extents.values())


def _read(file: Path) -> Iterator[bytes]:
    with file.open("rb", buffering=0) as opened:
        yield from iter(lambda: opened.read(2**20), b"")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def main(orders: TextIO, answers: TextIO) -> int:
    """Builds the one order in `orders`. Writes the image as JSON, or an object with `error` and `hint`.

    Returns the exit code.
    """
    # No reference cycles are created here, and each collection would scan the growing tree.
    gc.disable()
    resource.setrlimit(resource.RLIMIT_DATA, (MOST_MEMORY, MOST_MEMORY))
    order: dict[str, Any] = json.load(orders)
    place, mirror = DiskPlace(Path(order.pop("place"))), Path(order.pop("mirror"))
    wanted = DiskOrder(**order | {"form": DiskForm(order["form"])})
    try:
        answer = asdict(Build(place, mirror, wanted).run())
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
