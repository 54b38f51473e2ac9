"""Copies every readable object out of damaged repositories, ref by ref, into an undamaged one.

git is good at this: when an object or the base of a delta is damaged, it looks for another copy. But it does not open a
pack that is cut off or damaged at its beginning or end. So git is given a view of the damaged repository with copies of
such packs, in which header and trailer are as the index expects. git then judges each object in between by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import struct
import tempfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from appliance.core.backup.bundles import LONG
from appliance.core.backup.directory import BackupDirectory
from appliance.core.errors import GitmirrorError
from appliance.core.git.command import Git, GitError
from appliance.core.git.mirror import Mirror
from appliance.core.integrity.inspection import is_of_the_machine, those_that_fail
from appliance.core.integrity.mirror_files import has_own_hash, pack_faults

_BEYOND = 2**16
"""Zero bytes after the last offset of an index. git dies at an offset beyond the file, but reports zeros as damage."""
_PLAIN = {
    # Files that git derives may be damaged too, and are not needed here.
    "core.multiPackIndex": "false",
    "core.commitGraph": "false",
    "pack.useBitmaps": "false",
    "pack.readReverseIndex": "false",
    # With fsyncMethod = batch, the objects that unpack-objects wrote would be lost when it dies at the end of a
    # truncated pack.
    "core.fsync": "none",
}


@dataclass
class Sources:
    """Object directories to read from, in order of preference. `scratch` holds views of damaged ones."""

    scratch: Path
    objects: list[Path] = field(default_factory=list)

    async def add_repository(self, path: Path, git: Git) -> None:
        """Adds what can be read of a repository, damaged or gone. Raises OSError, and GitError if git cannot be run."""
        view = self._room("view")
        unreadable = await asyncio.to_thread(_build_view, path / "objects", view)
        self.objects.append(view)
        if unreadable:
            await self._add_streams(unreadable, git)

    async def _add_streams(self, packs: Sequence[Path], git: Git) -> None:
        """Adds packs without a usable index: builds an index, or unpacks the pack up to the first damage."""
        rest = Mirror(self._room("stream"), git)
        await rest.initialise("")
        reading = Mirror(rest.path, _reading(git, self.objects))
        for pack in packs:
            copy = rest.path / "objects" / "pack" / pack.name
            await asyncio.to_thread(_link, pack, copy)
            try:
                await reading.git.run("index-pack", "--no-rev-index", str(copy), cwd=rest.path, deadline=LONG)
            except GitError as error:
                if is_of_the_machine(error):
                    raise
                copy.unlink()
                with pack.open("rb") as source, contextlib.suppress(GitError):
                    await reading.git.run("unpack-objects", "-r", "-q", cwd=rest.path, deadline=LONG, source=source)
        self.objects.append(rest.path / "objects")

    async def add_backup(self, directory: Path, name: str, git: Git) -> str | None:
        """Adds the newest backup of the repository `name`; returns when it was made, or None without a backup.

        Raises OSError, GitError.
        """
        backups = BackupDirectory(directory)
        for manifest_name in reversed(await asyncio.to_thread(backups.names)):
            try:
                manifest = await asyncio.to_thread(backups.read, manifest_name)
            except GitmirrorError:
                continue
            if name not in manifest.repositories:
                continue
            into = Mirror(self._room("backup"), git)
            await into.initialise("")
            for bundle in manifest.repositories[name].bundles:
                # A damaged bundle costs only its own content.
                with contextlib.suppress(GitError):
                    path = directory / bundle.file.path
                    await into.git.run("bundle", "unbundle", str(path), cwd=into.path, deadline=LONG)
            self.objects.append(into.path / "objects")
            return manifest.at
        return None

    def _room(self, name: str) -> Path:
        return self.scratch / f"{name}-{len(self.objects)}"


def _reading(git: Git, objects: Iterable[Path]) -> Git:
    """A runner of git that also reads these object directories."""
    pairs = list(_PLAIN.items())
    environment = {"GIT_CONFIG_COUNT": str(len(pairs))}
    for number, (key, value) in enumerate(pairs):
        environment |= {f"GIT_CONFIG_KEY_{number}": key, f"GIT_CONFIG_VALUE_{number}": value}
    environment["GIT_ALTERNATE_OBJECT_DIRECTORIES"] = ":".join(_quoted(path) for path in objects)
    return Git(git.children, {**git.environment, **environment}, nice=10)


def _quoted(path: Path) -> str:
    """Quotes a path for git's colon-separated list, because it may contain a colon."""
    escaped = str(path).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


@dataclass
class Carrier:
    """Copies objects from `sources` into the undamaged `target`. `held` are objects whose history it already has."""

    target: Mirror
    sources: Sources
    held: set[str]

    async def carry(self, refs: Mapping[str, str]) -> set[str]:
        """Copies everything that `refs` reach; returns the refs for which something cannot be read.

        git computes the hash of each object anew on the way in. Sets no refs. Raises GitError, OSError.
        """
        oids = sorted(set(refs.values()) - self.held)
        failed = await those_that_fail(oids, self._take)
        return {ref for ref, oid in refs.items() if oid in failed}

    async def _take(self, oids: Collection[str]) -> bool:
        """Copies what some objects reach; False if any of it cannot be read.

        git would copy packed objects without reading them, and would not notice that only another copy is undamaged.
        """
        revisions = "".join([*(f"{oid}\n" for oid in oids), *(f"^{oid}\n" for oid in sorted(self.held))]).encode()
        reading = _reading(self.target.git, self.sources.objects)
        try:
            with tempfile.TemporaryFile(dir=self.sources.scratch) as pack:
                await reading.run(
                    "pack-objects", "--revs", "--non-empty", "--no-reuse-object", "--stdout", "--quiet",
                    cwd=self.target.path, deadline=LONG, stdin=revisions, into=pack,
                )  # fmt: skip
                if pack.seek(0, os.SEEK_END):
                    pack.seek(0)
                    await self.target.git.run("index-pack", "--stdin", cwd=self.target.path, deadline=LONG, source=pack)
        except GitError as error:
            if is_of_the_machine(error):
                raise
            return False
        self.held.update(oids)
        return True


def _build_view(objects: Path, view: Path) -> list[Path]:
    """Makes an object directory in which git can open every pack; returns the packs without a usable index."""
    (view / "pack").mkdir(parents=True)
    faults = pack_faults(objects.parent)
    without_index = []
    for entry in _entries(objects):
        if len(entry.name) == 2 and entry.is_dir():
            (view / entry.name).symlink_to(entry.path)
    for entry in _entries(objects / "pack"):
        pack = Path(entry.path)
        if pack.suffix != ".pack":
            continue
        index = pack.with_suffix(".idx")
        if not index.exists() or not has_own_hash(index):
            without_index.append(pack)
            continue
        (view / "pack" / index.name).symlink_to(index)
        if pack in faults:
            _copy_with_right_ends(pack, index, view / "pack" / pack.name)
        else:
            (view / "pack" / pack.name).symlink_to(pack)
    return without_index


def _entries(directory: Path) -> list[os.DirEntry[str]]:
    try:
        return list(os.scandir(directory))
    except (FileNotFoundError, NotADirectoryError):
        return []


def _link(source: Path, target: Path) -> None:
    """The same file under another name, or a copy where the file system has no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _copy_with_right_ends(pack: Path, index: Path, copy: Path) -> None:
    """Copies a pack, with the header and the trailer that its index expects, so that git opens it."""
    shutil.copyfile(pack, copy)
    data = index.read_bytes()
    count, last = _count_and_last_offset(data)
    with copy.open("r+b") as file:
        file.write(b"PACK" + struct.pack(">II", 2, count))
        size = max(file.seek(0, os.SEEK_END), last + _BEYOND)
        file.truncate(size)
        file.seek(size)
        file.write(data[-40:-20])


def _count_and_last_offset(index: bytes) -> tuple[int, int]:
    """How many objects an index lists, and the highest offset among them."""
    if not index.startswith(b"\xfftOc"):
        [count] = struct.unpack_from(">I", index, 1020)
        return count, max((struct.unpack_from(">I", index, 1024 + 24 * n)[0] for n in range(count)), default=0)
    [count] = struct.unpack_from(">I", index, 1028)
    small = 1032 + count * 24
    offsets = struct.unpack_from(f">{count}I", index, small)
    # An offset with the highest bit set is a position in the table of 64-bit offsets.
    large = [offset & 0x7FFFFFFF for offset in offsets if offset & 0x80000000]
    wide = [struct.unpack_from(">Q", index, small + count * 4 + number * 8)[0] for number in large]
    return count, max([0, *(offset for offset in offsets if not offset & 0x80000000), *wide])
