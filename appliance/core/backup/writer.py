"""Makes one backup: the database, then what each mirror has recorded since the previous backup."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any

from appliance import __version__
from appliance.core.backup.attached_files import back_up_attachments
from appliance.core.backup.bundles import bases_of, present, reachable, write_bundle
from appliance.core.backup.database_copy import copied, has_event, head_of_copy, reading, require_whole
from appliance.core.backup.directory import BackupDirectory, seconds_of
from appliance.core.backup.manifest import HISTORY, TURNS, Bundle, Manifest, RepositoryBackup
from appliance.core.backup.recordings import RECORDED, Logged, logged, recorded_on_disk, recorded_refs
from appliance.core.errors import GitmirrorError
from appliance.core.git.command import GitError
from appliance.core.git.mirror import MARK, Mirror
from appliance.core.git.mirror_locks import MirrorLocks
from appliance.core.git.mirrors import mirrors_on_disk
from appliance.core.layout import Layout
from appliance.core.store.stores import Stores
from appliance.core.units import rfc3339

log = logging.getLogger(__name__)

MOST_BUNDLES = 400
"""A repository with more bundles than this gets new ones, because restoring runs git once for each bundle."""


@dataclass
class BackupReport:
    """What one backup did. Restoring it reads `bytes` bytes, of which `written` were new in the directory.

    `problems` describe which repositories could not be read. Their part of earlier backups is kept.
    """

    to: str
    at: str = ""
    bytes: int = 0
    written: int = 0
    files: int = 0
    removed: int = 0
    repositories: int = 0
    turns: int = 0
    problems: list[str] = field(default_factory=list)

    def document(self) -> dict[str, Any]:
        """For `--json`."""
        return dict(vars(self))


@dataclass(frozen=True)
class BackupWriter:
    """Backs up the state directory at `layout`, whose owner this process is. `mirror_of` finds mirrors by name."""

    layout: Layout
    mirror_of: Callable[[str], Mirror]
    locks: MirrorLocks

    async def write(self, to: Path) -> BackupReport:
        """Makes a backup in the directory `to`, which is created if it is missing.

        Raises GitmirrorError, and then leaves earlier backups valid.
        """
        try:
            return await self._write(BackupDirectory(to))
        except OSError as error:
            hint = "check that its disk is mounted, writable and not full; earlier backups are not affected"
            if error.errno == errno.EROFS:
                hint = f"the service may not write there: `systemctl edit gitmirror`, [Service], ReadWritePaths=-{to}"
            raise GitmirrorError(
                f"the backup to {to} failed: {error.strerror or error} ({error.filename or to})", hint=hint
            ) from error

    async def _write(self, directory: BackupDirectory) -> BackupReport:
        await asyncio.to_thread(directory.open, create=True)
        before = await asyncio.to_thread(directory.newest)
        stamp = await asyncio.to_thread(directory.stamp)
        report = BackupReport(str(directory.path))
        # The database first and the refs afterwards, because a turn's ref exists before the log calls the turn applied.
        with ExitStack() as stack:
            copy = await asyncio.to_thread(stack.enter_context, copied(self.layout))
            # The first backup of a day verifies the whole log, which takes seconds; the others verify only what is new.
            is_first = before is None or before.at[:10] != rfc3339(seconds_of(stamp))[:10]
            verified = None if before is None or is_first else before.head
            await asyncio.to_thread(require_whole, copy, self.layout, directory.path, verified)
            stores = await asyncio.to_thread(stack.enter_context, reading(copy))
            await asyncio.to_thread(_require_same_log, directory, before, stores)
            head = await asyncio.to_thread(head_of_copy, stores)
            repositories = await self._repositories(directory, stamp, before, stores, report)
            attached = await asyncio.to_thread(stores.details.recorded_attachments)
            attachments = await asyncio.to_thread(
                back_up_attachments, directory, self.layout, attached, report.problems
            )
            stores.database.close()
            database = await asyncio.to_thread(directory.copy, copy.database, f"databases/{stamp}.db")
            told = None
            if copy.audit_head.exists():
                told = await asyncio.to_thread(directory.copy, copy.audit_head, f"databases/{stamp}.audit-head")
        at = rfc3339(seconds_of(stamp))
        manifest = Manifest(at, __version__, head, database, told, repositories, attachments)
        await asyncio.to_thread(directory.add, stamp, manifest)
        known = before.files() if before else {}
        added = [file for path, file in manifest.files().items() if path not in known]
        report.at, report.bytes, report.repositories = at, manifest.size, len(repositories)
        report.written, report.files = sum(file.size for file in added), len(added)
        report.turns = sum(
            len([ref for ref in each.refs if ref.startswith(RECORDED[2])]) for each in repositories.values()
        )
        report.removed = await asyncio.to_thread(directory.tidy)
        return report

    async def _repositories(
        self,
        directory: BackupDirectory,
        stamp: str,
        before: Manifest | None,
        stores: Stores,
        report: BackupReport,
    ) -> dict[str, RepositoryBackup]:
        log_of = await asyncio.to_thread(logged, stores)
        earlier = before.repositories if before else {}
        urls = {repo.name: repo.url for repo in await asyncio.to_thread(stores.registry.all)}
        on_disk = await asyncio.to_thread(lambda: list(mirrors_on_disk(self.layout)))
        found = {}
        for name in sorted({*on_disk, *log_of}):
            work = _Repository(
                name, self.mirror_of(name), directory, stamp, urls.get(name), log_of.get(name, Logged()), stores
            )
            try:
                async with self.locks.shared(name):
                    backed_up = await work.back_up(earlier.get(name), report)
            except GitmirrorError as error:
                backed_up = earlier.get(name)
                report.problems.append(
                    f"{name} could not be backed up; its part of the previous backup is kept: {error.message}"
                )
            if backed_up is not None:
                found[name] = backed_up
        for problem in report.problems:
            log.error("%s", problem)
        return found


@dataclass(frozen=True)
class _Repository:
    """One repository of one backup."""

    name: str
    mirror: Mirror
    directory: BackupDirectory
    stamp: str
    url: str | None
    log: Logged
    stores: Stores

    async def back_up(self, before: RepositoryBackup | None, report: BackupReport) -> RepositoryBackup | None:
        """Returns the repository's manifest entry, or None if it has no recordings. Raises GitmirrorError, OSError."""
        is_there = await asyncio.to_thread(self._is_there)
        in_mirror = await asyncio.to_thread(self._recorded_in_mirror) if is_there else {}
        refs = await asyncio.to_thread(recorded_refs, self.stores, self.name, self.log, in_mirror)
        if not refs:
            return None
        chain = before.bundles if before else ()
        whole = await asyncio.to_thread(lambda: tuple(takewhile(lambda bundle: self.directory.has(bundle.file), chain)))
        if whole != chain:
            report.problems.append(
                f"{self.name}: {chain[len(whole)].file.path} is missing or cut off; it is written again"
            )
            chain = whole
        wanted, held = set(refs.values()), {oid for bundle in chain for oid in bundle.holds}
        if not wanted <= held or worth_keeping(chain, wanted) != chain:
            # git runs only from here on, because running it in each of a thousand mirrors without new turns would take
            # minutes.
            refs, chain = await self._extended(refs, chain, held, is_there, report)
        if not chain:
            return None
        mark = before.fetched_with_credential if before else None
        if is_there:
            mark = await asyncio.to_thread(self._mark)
        return RepositoryBackup(await self._url(before), mark, refs, chain)

    async def _extended(
        self,
        refs: dict[str, str],
        chain: tuple[Bundle, ...],
        held: set[str],
        is_there: bool,
        report: BackupReport,
    ) -> tuple[dict[str, str], tuple[Bundle, ...]]:
        """Writes what no bundle holds yet; returns the refs that can be restored, and all bundles."""
        here = await present(self.mirror, refs.values()) if is_there else set()
        if chain and here.issuperset(refs.values()):
            chain = worth_keeping(chain, set(refs.values()))
            held = {oid for bundle in chain for oid in bundle.holds}
        lost = {ref: oid for ref, oid in refs.items() if oid not in here and oid not in held}
        if lost:
            count, one = len(set(lost.values())), min(lost)
            report.problems.append(
                f"{self.name}: the mirror lacks {count} recorded commits, among them the commit of {one}"
            )
            refs = {ref: oid for ref, oid in refs.items() if ref not in lost}
        new = {ref: oid for ref, oid in refs.items() if oid not in held}
        try:
            added = await self._new_bundles(new, held)
        except GitError as error:
            # One damaged turn must not prevent the backup of the others.
            whole_ones = await reachable(self.mirror, set(new.values()))
            damaged = {ref for ref, oid in new.items() if oid not in whole_ones}
            if not damaged:
                raise
            some = ", ".join(sorted(damaged)[:5])
            report.problems.append(f"{self.name}: {some}: damaged objects cannot be backed up: {error.message}")
            refs = {ref: oid for ref, oid in refs.items() if ref not in damaged}
            added = await self._new_bundles({ref: oid for ref, oid in new.items() if ref not in damaged}, held)
        return refs, (*chain, *added)

    async def _new_bundles(self, refs: Mapping[str, str], held: Iterable[str]) -> list[Bundle]:
        """Writes bundles of what no bundle holds yet: first the upstream's history below the turns, then the turns."""
        if not refs:
            return []
        found, held = [], set(held)
        bases = await bases_of(self.mirror, set(refs.values())) - held
        if bases:
            named = {f"refs/gitmirror/history/{oid}": oid for oid in bases}
            found.append(await write_bundle(self.mirror, self.directory, self._path(HISTORY), HISTORY, named, held))
            held |= bases
        turns = {ref: oid for ref, oid in refs.items() if oid not in held}
        if turns:
            found.append(await write_bundle(self.mirror, self.directory, self._path(TURNS), TURNS, turns, held))
        return found

    def _path(self, kind: str) -> str:
        return f"bundles/{self.name}/{self.stamp}-{kind}.bundle"

    async def _url(self, before: RepositoryBackup | None) -> str:
        """Returns the upstream from the registry, or that of a repository that was removed but not purged."""
        if self.url is not None:
            return self.url
        output = await self.mirror.git.run("config", "--get", "remote.origin.url", cwd=self.mirror.path, deadline=60.0)
        return os.fsdecode(output.stdout).strip() or (before.url if before else "")

    def _recorded_in_mirror(self) -> dict[str, str]:
        try:
            return recorded_on_disk(self.mirror.path)
        except OSError as error:
            raise GitmirrorError(f"its refs cannot be read: {error.strerror}") from error

    def _is_there(self) -> bool:
        try:
            return self.mirror.is_there()
        except OSError as error:
            raise GitmirrorError(f"its mirror cannot be read: {error.strerror}") from error

    def _mark(self) -> str | None:
        try:
            return (self.mirror.path / MARK).read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise GitmirrorError(f"its mirror cannot be read: {error.strerror}") from error


def worth_keeping(chain: tuple[Bundle, ...], wanted: set[str]) -> tuple[Bundle, ...]:
    """Returns which bundles are kept: always the first ones, without a gap. Pure.

    All are kept, unless more than half of their turns (by bytes) belong to sessions that are gone, or there are too
    many bundles. Then only the first is kept, if it is the upstream's history: it is the largest and seldom outdated.
    """
    turns = [bundle for bundle in chain if bundle.kind == TURNS]
    gone = sum(bundle.file.size * len(set(bundle.holds) - wanted) / len(bundle.holds) for bundle in turns)
    if len(chain) <= MOST_BUNDLES and gone * 2 <= sum(bundle.file.size for bundle in turns):
        return chain
    return chain[:1] if chain[0].kind == HISTORY else ()


def _require_same_log(directory: BackupDirectory, before: Manifest | None, stores: Stores) -> None:
    """Raises GitmirrorError if the newest backup is of another log, because tidying would remove its only copy."""
    if before is not None and not has_event(stores, before.head):
        raise GitmirrorError(
            f"{directory.path} holds backups of another node, or of an audit log with events that this one lacks",
            hint="back up to another directory; the existing backups stay as they are",
        )
