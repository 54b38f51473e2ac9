"""One repository of an image: the workspace's own, or one that is a submodule in it.

Each is read from its own mirror, and has packs of its own. Contents are shared by all members of a generation.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path

from appliance.core.errors import GitmirrorError
from appliance.core.workspace.consolidation import MOST_PACKS
from appliance.core.workspace.disk import last_listing
from appliance.core.workspace.disk.assemble import Workspace
from appliance.core.workspace.disk.checkout import LONGEST_TARGET, check_out, conversions, refuse_hostile_names
from appliance.core.workspace.disk.generation import Extent, Generation
from appliance.core.workspace.disk.history import (
    is_reached,
    merge_packs,
    pack_history,
    pack_objects,
    packs_to_merge,
    store_pack,
    tags_on,
)
from appliance.core.workspace.disk.mirror_reader import GITLINK, LINK, TREE, MirrorReader, TreeEntry
from appliance.core.workspace.disk.order import LargeFile
from appliance.core.workspace.refs import Tag

WORTH_REMEMBERING = 5000
"""Entries from which on the listing of a tree is kept for the next build."""
_PIECE = 2**20


class Member:
    """The tree and the history of `commit`, as `reader` reads them.

    `name` is what the generation calls the member, and `ref` what the commit is recorded under in it. `memory` names
    the listing that is kept for the next build. `large` are the files whose contents are LFS objects.
    """

    def __init__(
        self,
        reader: MirrorReader,
        commit: str,
        history: str,
        *,
        name: str,
        ref: str,
        memory: str,
        large: Iterable[LargeFile],
    ) -> None:
        self.reader, self.commit, self.name = reader, commit, name
        self._history, self._ref, self._memory = history, ref, memory
        self._large = {os.fsencode(file.path): file for file in large}
        self.entries: list[TreeEntry] = []
        self.keys: dict[bytes, None] = {}
        """The catalogue's keys of all files, in their order."""
        self.extents: dict[bytes, tuple[int, int]] = {}
        self._by_path: dict[bytes, bytes] = {}
        """The keys of the files whose contents are not their blob."""
        self._objects: dict[bytes, LargeFile] = {}
        self._last: last_listing.LastListing | None = None

    @cached_property
    def tags(self) -> list[Tag]:
        """The tags in the history."""
        return tags_on(self.reader, self.commit) if self._history == "full" else []

    @cached_property
    def branches(self) -> dict[str, str]:
        """The branches whose tips are in the history, by name."""
        which = f"--merged={self.commit}" if self._history == "full" else f"--points-at={self.commit}"
        output = self.reader.run("for-each-ref", which, "--format=%(objectname) %(refname:lstrip=2)", "refs/heads")
        lines = (line.partition(" ") for line in output.decode("utf-8", "surrogateescape").split("\n"))
        return {name: oid for oid, _, name in lines if name}

    def read(self, generation: Path | None) -> None:
        """Lists the tree, with names that git does not refuse; `generation` may know an earlier listing."""
        if generation is not None:
            self._last = last_listing.load(last_listing.place_of(generation, self._memory))
        if self._last is None:
            entries = new = self.reader.listing(self.commit)
        else:
            changes = last_listing.changes_since(self.reader, self._last.commit, self.commit)
            entries, new = last_listing.apply(self._last.entries, changes)
        refuse_hostile_names(new)
        self.entries = entries
        self._by_path = conversions(self.reader, self.commit, entries)
        if self._large:
            self._find_large()
        by_path, files = self._by_path, (entry for entry in entries if entry[0] not in (TREE, LINK, GITLINK))
        self.keys = {by_path.get(path, oid): None for _, oid, path in files}

    def _find_large(self) -> None:
        for mode, _, path in self.entries:
            file = self._large.get(path)
            if file is not None and mode not in (TREE, LINK, GITLINK):
                key = large_key(file.oid)
                self._by_path[path], self._objects[key] = key, file

    def forget_last(self) -> None:
        """Takes nothing from an earlier listing, because the generation is a new one."""
        self._last = None

    @property
    def large(self) -> Iterable[bytes]:
        """The keys of the LFS objects."""
        return self._objects

    # -- what goes into the generation --------------------------------------------------------------------------------

    def store_contents(self, generation: Generation) -> None:
        """Adds to the blob file what it lacks of the tree."""
        found = last_listing.contents_of(self._last.extents, self.keys) if self._last is not None else {}
        missing = self.keys.keys() - found.keys()
        found |= generation.find(missing)
        missing -= found.keys()
        paths = {path: key for path, key in self._by_path.items() if key in missing and key not in self._objects}
        objects = [key for key in self._objects if key in missing]
        missing -= {*paths.values(), *objects}
        plain = [oid for oid in self.keys if oid in missing] if missing else []
        for oid, _, pieces in self.reader.contents(plain) if plain else ():
            found[oid] = _plain(generation.add(oid, pieces))
        for key, file in check_out(self.reader, paths):
            if key not in found:
                found[key] = _plain(generation.add(key, _read(file)))
        for key in objects:
            found[key] = _plain(generation.add(key, _read_object(self._objects[key])))
        self.extents = found

    def store_history(self, generation: Generation) -> None:
        """Adds the packs that this image needs, and commits everything."""
        reader, known = self.reader, generation.packed(self.name)
        ref, recorded = self._ref, set(known)
        before = [oid for name, oid in known if name == ref]
        packed = {ref: self.commit, **{tag.ref: tag.oid for tag in self.tags}}
        if any(is_reached(reader, self.commit, oid) for oid in before):
            # An older commit was ordered, or the same. What the branch had since stays on record.
            del packed[ref]
        packed = {name: oid for name, oid in packed.items() if (name, oid) not in recorded}
        # What the new tip does not reach stays on record too, to be noticed when upstream drops it.
        superseded = [(ref, oid) for oid in before if ref in packed and is_reached(reader, oid, self.commit)]
        if self._history == "full":
            new = pack_history(reader, known, packed.values()) if packed else None
        else:
            new = pack_objects(reader, self._objects_of_tip(before[-1] if before else None))
        packs = [store_pack(generation, new)] if new else []
        generation.commit(member=self.name, packs=packs, packed=packed, superseded=superseded)
        own = generation.packs(self.name)
        if self._history == "full":
            old = packs_to_merge(own)
            merged = merge_packs(reader, generation, old) if old else None
        else:
            old = own if len(own) >= MOST_PACKS else []
            merged = pack_objects(reader, self._objects_of_all_tips(generation)) if old else None
        if merged is not None:
            packs, replaced = [store_pack(generation, merged)], [pack.id for pack in old]
            generation.commit(member=self.name, packs=packs, replaced=replaced)

    def _objects_of_tip(self, before: str | None) -> Iterator[str]:
        """The trees and blobs of the commit, or those that its branch's last image did not have."""
        commit = self.commit
        if before is None:
            yield from self._objects_in(commit, self.entries)
        elif before != commit:
            yield self.reader.tree_of(commit)
            changed = self.reader.run("diff-tree", "-r", "-t", "--raw", "-z", "--no-renames", before, commit)
            fields = [field.split(b" ") for field in changed.split(b"\0") if field.startswith(b":")]
            yield from dict.fromkeys(field[3].decode() for field in fields if field[1] not in (b"160000", b"000000"))

    def _objects_of_all_tips(self, generation: Generation) -> dict[str, None]:
        """The trees and blobs of the ordered commit, and of the tips of all branches in the generation."""
        tips = {self.commit, *(oid for ref, oid in generation.packed(self.name) if not ref.startswith("refs/tags/"))}
        return {oid: None for tip in tips for oid in self._objects_in(tip, self.reader.listing(tip))}

    def _objects_in(self, commit: str, entries: Iterable[TreeEntry]) -> Iterator[str]:
        yield self.reader.tree_of(commit)
        yield from dict.fromkeys(oid.hex() for mode, oid, _ in entries if mode != GITLINK)

    # -- the image ----------------------------------------------------------------------------------------------------

    def workspace(self) -> Workspace:
        """The tree as nodes of an image and as entries of its index."""
        links = [oid for mode, oid, _ in self.entries if mode == LINK]
        targets = {oid: target or b"" for oid, target in self.reader.whole(links, LONGEST_TARGET).items()}
        return Workspace(self.entries, self.extents, self._by_path, targets)

    def tree(self) -> bytes:
        """The id of the tree in binary."""
        return bytes.fromhex(self.reader.tree_of(self.commit))

    def tip(self) -> bytes | None:
        """The commit's object where the history ends with it, otherwise None."""
        return self.reader.run("cat-file", "commit", self.commit) if self._history == "tip" else None

    def remember(self, generation: Path) -> None:
        """Keeps the listing of a large tree for the next build. Raises OSError."""
        if len(self.entries) >= WORTH_REMEMBERING:
            listing = last_listing.LastListing(self.commit, self.entries, self.extents)
            last_listing.store(last_listing.place_of(generation, self._memory), listing)


def large_key(oid: str) -> bytes:
    """The catalogue's key of an LFS object, by its SHA-256. No other key is as long and begins like it."""
    return b"sha256:" + bytes.fromhex(oid)


def _plain(extent: Extent) -> tuple[int, int]:
    """A tuple that `last_listing` can store."""
    return extent.block, extent.size


def _read(file: Path) -> Iterator[bytes]:
    with file.open("rb", buffering=0) as opened:
        yield from iter(lambda: opened.read(_PIECE), b"")


def _read_object(file: LargeFile) -> Iterator[bytes]:
    """The contents of an LFS object, which the whole image is built for in vain if they are not its own.

    The object is removed then, so that the next build gets it from upstream again. Raises GitmirrorError.
    """
    path, digest = Path(file.file), hashlib.sha256()
    try:
        for piece in _read(path):
            digest.update(piece)
            yield piece
    except FileNotFoundError:
        raise GitmirrorError(f"LFS object {file.oid} was removed meanwhile", hint="try again") from None
    if digest.hexdigest() != file.oid:
        path.unlink(missing_ok=True)
        raise GitmirrorError(f"LFS object {file.oid} was damaged on this node", hint="try again: it is fetched anew")
