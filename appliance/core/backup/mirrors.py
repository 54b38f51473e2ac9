"""Restores the recorded work of every repository: in a new mirror, or in the one that is on disk and can be read."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from appliance.core.backup.bundles import present, set_refs, unbundle
from appliance.core.backup.directory import BackupDirectory
from appliance.core.backup.manifest import Manifest, RepositoryBackup
from appliance.core.backup.recordings import recorded_on_disk
from appliance.core.backup.scratch import git_below, side_by_side
from appliance.core.backup.takeover import merged, newer_than, session_of, take_over
from appliance.core.errors import GitmirrorError
from appliance.core.git.command import Git
from appliance.core.git.mirror import Mirror, is_marked
from appliance.core.git.mirrors import mirrors_on_disk
from appliance.core.layout import Layout
from appliance.core.recording.turns import TURNS


class Notes(Protocol):
    """The part of a report that is about mirrors."""

    newer: dict[str, int]
    unread: list[str]
    unregistered: dict[str, str]


@dataclass
class MirrorRestorer:
    """Restores the mirrors of one backup below `building`, with regard to those that are below `layout` now.

    `registered` are the repositories of the restored registry.
    """

    directory: BackupDirectory
    manifest: Manifest
    building: Layout
    layout: Layout
    registered: frozenset[str]
    notes: Notes
    replaced: list[str] = field(default_factory=list)
    """Repositories whose mirror on disk is to be replaced by a new one."""

    async def restore(self, *, stay: bool) -> None:
        """Restores all of them. With `stay`, a mirror on disk that can be read is completed where it is.

        Raises GitmirrorError when a bundle that is needed is damaged. OSError.
        """
        on_disk = await asyncio.to_thread(self._on_disk)
        with git_below(self.building) as git:

            async def one(name: str) -> None:
                await self._restore(name, git, on_disk.get(name), stay)

            await side_by_side(sorted({*on_disk, *self.manifest.repositories}), one)
        self.notes.unread.sort()

    def _on_disk(self) -> dict[str, dict[str, str]]:
        """The recorded refs of each mirror that can be read."""
        names, found = set(mirrors_on_disk(self.layout)), dict[str, dict[str, str]]()
        for path in sorted(self.layout.mirrors.glob("*/*.git")):
            name = f"{path.parent.name}/{path.stem}"
            try:
                if name not in names:
                    raise FileNotFoundError(2, "it has no HEAD")
                found[name] = recorded_on_disk(path)
            except OSError as error:
                self.notes.unread.append(f"{name}: its mirror cannot be read: {error.strerror}")
        return found

    async def _restore(self, name: str, git: Git, recorded: Mapping[str, str] | None, stay: bool) -> None:
        backup, old = self.manifest.repositories.get(name), Mirror(self.layout.mirror(name), git)
        newer = newer_than(backup.refs if backup else {}, recorded or {})
        if backup is None and not newer.turns and not stay:
            return
        try:
            if backup is None:
                url = await _url_of(old)
                if name not in self.registered:
                    self.notes.unregistered[name] = url
                if not stay:
                    backup = RepositoryBackup(url, None, {}, ())
        except GitmirrorError as error:
            self.notes.unread.append(f"{name}: its mirror cannot be read: {error.message}")
            return
        if recorded is not None and stay and (backup is None or await self._complete(old, backup, recorded)):
            if newer.turns:
                self.notes.newer[name] = len(newer.turns)
            return
        assert backup is not None
        if stay and os.path.lexists(old.path):
            self.replaced.append(name)
        try:
            await self._build(name, git, backup, None if recorded is None else old)
        except GitmirrorError as error:
            raise GitmirrorError(
                f"{name} cannot be restored from the backup of {self.manifest.at}: {error.message}", hint=error.hint
            ) from error

    async def _build(self, name: str, git: Git, backup: RepositoryBackup, old: Mirror | None) -> None:
        """Builds a mirror of recorded work alone, from the backup and from the mirror that it replaces."""
        mirror = Mirror(self.building.mirror(name), git)
        await mirror.initialise(backup.url)
        mirror.await_upstream()
        mark = backup.fetched_with_credential
        if mark is None and is_marked(self.layout.mirror(name)):
            # It was fetched with a credential since the backup, or that cannot be ruled out.
            mark = backup.url
        if mark is not None:
            mirror.mark(mark)
        await self._unbundle_into(mirror, backup)
        if old is None:
            await set_refs(mirror, backup.refs)
            return
        taken, problems = await take_over(old, mirror, backup.refs, self.building.state / "newer")
        if taken:
            self.notes.newer[name] = taken
        self.notes.unread += [f"{name}: {problem}" for problem in problems]

    async def _complete(self, mirror: Mirror, backup: RepositoryBackup, recorded: Mapping[str, str]) -> bool:
        """Adds what a mirror on disk lacks of the backup. Returns False if its objects are damaged."""
        newer = newer_than(backup.refs, recorded)
        sessions = {session_of(ref) for ref in recorded if not ref.startswith(TURNS)}
        wanted = {
            ref: oid
            for ref, oid in merged(backup.refs, newer).items()
            if ref.startswith(TURNS) or session_of(ref) not in sessions
        }
        lines = [f"update {ref} {oid}\n" for ref, oid in sorted(wanted.items()) if recorded.get(ref) != oid]
        try:
            if await present(mirror, backup.refs.values()) != set(backup.refs.values()):
                await self._unbundle_into(mirror, backup)
            await mirror.update_refs(lines)
        except GitmirrorError:
            return False
        return True

    async def _unbundle_into(self, mirror: Mirror, backup: RepositoryBackup) -> None:
        files = [bundle.file for bundle in backup.bundles]
        await asyncio.to_thread(self.directory.require, files, self.manifest.at)
        for file in files:
            await unbundle(mirror, self.directory.path / file.path)


async def _url_of(mirror: Mirror) -> str:
    output = await mirror.git.run("config", "--get", "remote.origin.url", cwd=mirror.path, deadline=60.0)
    return os.fsdecode(output.stdout).strip()
