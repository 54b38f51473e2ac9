"""Restores a backup into a state directory: the database, and per repository a mirror that holds its sessions.

Everything is built in `restoring/` below the state directory and moved into place at the end, the database last. The
branches and tags come with the first refresh; until then such a mirror is not served. Turns that the mirrors on disk
hold and the backup lacks are taken over before those mirrors are moved aside. If only the database is restored, the
mirrors stay where they are.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from appliance.core.backup.attached_files import put_attachments_in_place, restore_attachments
from appliance.core.backup.database_copy import fault_of_copy, make_ready, reading
from appliance.core.backup.directory import BackupDirectory
from appliance.core.backup.manifest import Manifest, StoredFile
from appliance.core.backup.mirrors import MirrorRestorer
from appliance.core.errors import GitmirrorError, UsageError
from appliance.core.layout import Layout
from appliance.core.process.owner import claim
from appliance.core.units import rfc3339

_ASIDE = "before-restore-"
"""The prefix of the directories into which restores move what was there before."""
_NOT_USED = frozenset({"run", "restoring", "lost+found"})
"""The entries that a state directory may hold and still count as empty."""
_OF_DATABASE = frozenset(f"gitmirror.db{suffix}" for suffix in ("", "-wal", "-shm", "-journal")) | {"audit-head"}


@dataclass
class RestoreReport:
    """What was restored. The files that were there before are now in `aside`; `skipped` names damaged backups.

    `newer` counts the turns per repository that mirrors hold and the backup lacks; `unread` says which of them could
    not be read. `unregistered` are repositories with turns that the restored registry does not have, and their URLs.
    """

    directory: str
    state: str
    at: str = ""
    repositories: int = 0
    sessions: int = 0
    turns: int = 0
    audit_head: str | None = None
    aside: str | None = None
    skipped: list[str] = field(default_factory=list)
    newer: dict[str, int] = field(default_factory=dict)
    unread: list[str] = field(default_factory=list)
    unregistered: dict[str, str] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        """For `--json`."""
        return dict(vars(self))


def restore(
    path: Path,
    layout: Layout,
    *,
    move_aside: bool,
    before: str | None = None,
    only_database: bool = False,
    listed: frozenset[str] = frozenset(),
) -> RestoreReport:
    """Restores the newest backup in the directory `path` (made at `before`, RFC 3339, or earlier) to `layout`.

    Refuses a state directory that was used, unless `move_aside`. With `only_database`, mirrors that can be read stay.
    `listed` are the repositories that the configuration registers. Raises GitmirrorError, and then leaves the state
    directory as it was.
    """
    directory, report = BackupDirectory(path), RestoreReport(str(path), str(layout.state))
    try:
        directory.open(create=False)
        manifest = _choose(directory, before, report)
        layout.state.mkdir(parents=True, exist_ok=True)
        used = used_entries(layout)
        if used and not move_aside:
            raise was_used(layout, used)
        owned = claim(layout, "restore")
        try:
            building = Layout(layout.state / "restoring")
            shutil.rmtree(building.state, ignore_errors=True)
            registered = _build_database(directory, manifest, building, report) | listed
            mirrors = MirrorRestorer(directory, manifest, building, layout, registered, report)
            asyncio.run(mirrors.restore(stay=only_database))
            restore_attachments(directory, manifest, building, report.skipped)
            # git did not sync what it wrote, and nothing of it counts yet.
            os.sync()
            if only_database:
                replaced = [f"{layout.mirrors.name}/{name}.git" for name in mirrors.replaced]
                used = [*(name for name in used if name in _OF_DATABASE), *replaced]
            if used:
                report.aside = str(move_aside_entries(layout, used))
            put_in_place(building, layout)
        finally:
            owned.release()
    except OSError as error:
        raise GitmirrorError(
            f"{layout.state} cannot be restored from {path}: {error.strerror} ({error.filename})",
            hint="nothing that was there is lost; free disk space, then run it again as the user that runs serve",
        ) from error
    return report


def _choose(directory: BackupDirectory, before: str | None, report: RestoreReport) -> Manifest:
    for name in reversed(directory.names()):
        try:
            manifest = directory.read(name)
        except GitmirrorError as error:
            report.skipped.append(error.message)
            continue
        if before is None or manifest.at <= before:
            return manifest
    which = "" if before is None else f" of {before} or earlier"
    raise GitmirrorError(
        f"{directory.path} holds no undamaged backup{which}",
        hint="`backup verify` lists the backups and what is damaged in them",
    )


def used_entries(layout: Layout) -> list[str]:
    """What shows that a state directory was used; what a restore left does not. Raises OSError."""
    return sorted(name for name in os.listdir(layout.state) if name not in _NOT_USED and not name.startswith(_ASIDE))


def _build_database(
    directory: BackupDirectory, manifest: Manifest, building: Layout, report: RestoreReport
) -> frozenset[str]:
    """Restores the database below `building`; returns the registered repositories. Raises GitmirrorError."""
    building.mirrors.mkdir(parents=True)
    told = [manifest.audit_head] if manifest.audit_head is not None else []
    directory.require([manifest.database, *told], manifest.at)
    _copy(directory, manifest.database, building.database)
    if manifest.audit_head is not None:
        _copy(directory, manifest.audit_head, building.audit_head)
    if fault := fault_of_copy(building):
        raise GitmirrorError(f"the database of the backup of {manifest.at} is damaged: {fault}")
    make_ready(building)
    report.at, report.repositories = manifest.at, len(manifest.repositories)
    with reading(building) as stores:
        sessions = stores.sessions.all()
        report.sessions, report.turns = len(sessions), sum(session["turns"] for session in sessions)
        report.audit_head = stores.audit.head()
        return frozenset(repo.name for repo in stores.registry.all())


def _copy(directory: BackupDirectory, file: StoredFile, to: Path) -> None:
    with (directory.path / file.path).open("rb") as source, to.open("wb") as target:
        shutil.copyfileobj(source, target)


def was_used(layout: Layout, used: Sequence[str]) -> UsageError:
    """The error of a restore into a directory that was used."""
    return UsageError(
        f"{layout.state} was used before: it holds {', '.join(used[:3])}",
        hint="name an empty or absent directory with --state, or move what is there aside with --yes",
    )


def move_aside_entries(layout: Layout, used: Sequence[str]) -> Path:
    """Moves what was there into a subdirectory, because the state directory itself may be a mount point.

    Raises OSError.
    """
    stamp = rfc3339(time.time()).replace(":", "").replace("-", "").replace(".", "")
    aside = layout.state / f"{_ASIDE}{stamp}"
    aside.mkdir()
    for name in used:
        (aside / name).parent.mkdir(parents=True, exist_ok=True)
        (layout.state / name).rename(aside / name)
    return aside


def put_in_place(building: Layout, layout: Layout) -> None:
    """Moves what was built into place, the database last, because a directory without it counts as not restored.

    If it was killed, it can be done again. Raises OSError.
    """
    if layout.mirrors.exists():
        for mirror in building.mirrors.glob("*/*"):
            place = layout.mirrors / mirror.relative_to(building.mirrors)
            place.parent.mkdir(exist_ok=True)
            mirror.rename(place)
    else:
        building.mirrors.rename(layout.mirrors)
    put_attachments_in_place(building, layout)
    if building.audit_head.exists():
        building.audit_head.rename(layout.audit_head)
    building.database.rename(layout.database)
    descriptor = os.open(layout.state, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    shutil.rmtree(building.state, ignore_errors=True)
