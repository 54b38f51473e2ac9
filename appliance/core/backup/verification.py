"""Proves that backups can be restored: reads every file, opens each database, and unpacks every bundle."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from appliance.core.backup.bundles import set_refs, unbundle
from appliance.core.backup.database_copy import fault_of_copy
from appliance.core.backup.directory import BackupDirectory
from appliance.core.backup.manifest import Manifest, RepositoryBackup
from appliance.core.backup.scratch import git_below, side_by_side
from appliance.core.errors import GitmirrorError
from appliance.core.git.command import Git
from appliance.core.git.mirror import Mirror
from appliance.core.layout import Layout


@dataclass
class VerifyReport:
    """What was verified. Each of `faults` names a file below the directory and what is wrong with it."""

    directory: str
    backups: int = 0
    files: int = 0
    bytes: int = 0
    newest: str | None = None
    faults: list[dict[str, str]] = field(default_factory=list)

    def add(self, path: str, fault: str) -> None:
        """Notes a fault."""
        self.faults.append({"path": path, "fault": fault})

    def document(self) -> dict[str, Any]:
        """For `--json`."""
        return dict(vars(self))


def verify_backups(path: Path) -> VerifyReport:
    """Verifies all backups in a directory, which is not changed. Raises GitmirrorError if it holds none."""
    directory, report = BackupDirectory(path), VerifyReport(str(path))
    try:
        directory.open(create=False)
        names = directory.names()
        if not names:
            raise GitmirrorError(f"{path} holds no backup", hint="name the directory that `backup` wrote to")
        with tempfile.TemporaryDirectory(prefix="gitmirror-verify-") as scratch:
            _verify(directory, names, Layout(Path(scratch)), report)
    except OSError as error:
        raise GitmirrorError(f"{path} cannot be verified: {error.strerror} ({error.filename})") from error
    return report


def _verify(directory: BackupDirectory, names: Sequence[str], scratch: Layout, report: VerifyReport) -> None:
    manifests: list[Manifest] = []
    for name in names:
        try:
            manifests.append(directory.read(name))
        except GitmirrorError as error:
            report.add(f"manifests/{name}", error.message)
    report.backups = len(manifests)
    report.newest = manifests[-1].at if manifests else None
    files = {path: file for manifest in manifests for path, file in manifest.files().items()}
    report.files, report.bytes = len(files), sum(file.size for file in files.values())
    damaged = set()
    for path, file in sorted(files.items()):
        if fault := directory.fault_of(file):
            damaged.add(path)
            report.add(path, fault)
    for manifest in manifests:
        if manifest.database.path not in damaged and (fault := _fault_of_database(directory, manifest, scratch)):
            report.add(manifest.database.path, fault)
    asyncio.run(_unpack_all(directory, manifests, damaged, scratch, report))


def _fault_of_database(directory: BackupDirectory, manifest: Manifest, scratch: Layout) -> str | None:
    """Checks a copy of a database, because SQLite writes files beside one that it opens, and returns what is wrong."""
    scratch.database.unlink(missing_ok=True)
    scratch.audit_head.unlink(missing_ok=True)
    shutil.copyfile(directory.path / manifest.database.path, scratch.database)
    if manifest.audit_head is not None and (directory.path / manifest.audit_head.path).exists():
        shutil.copyfile(directory.path / manifest.audit_head.path, scratch.audit_head)
    return fault_of_copy(scratch)


async def _unpack_all(
    directory: BackupDirectory, manifests: Sequence[Manifest], damaged: set[str], scratch: Layout, report: VerifyReport
) -> None:
    """Unpacks every bundle once, and sets the refs of every backup."""
    names = sorted({name for manifest in manifests for name in manifest.repositories})
    with git_below(scratch) as git:

        async def one(name: str) -> None:
            stages = [
                _Stage(manifest.at, manifest.repositories[name])
                for manifest in manifests
                if name in manifest.repositories and not _files(manifest.repositories[name]) & damaged
            ]
            for chain in _chains(stages):
                await _unpack(directory, name, chain, git, scratch, report)

        await side_by_side(names, one)
    report.faults.sort(key=lambda fault: fault["path"])


class _Stage(NamedTuple):
    """One repository in the backup of the time `at`."""

    at: str
    backup: RepositoryBackup


def _files(backup: RepositoryBackup) -> set[str]:
    return {bundle.file.path for bundle in backup.bundles}


def _chains(stages: Sequence[_Stage]) -> list[list[_Stage]]:
    """Groups backups whose bundles are a prefix of another's bundles, the longest list first. Pure."""
    chains: list[list[_Stage]] = []
    for stage in sorted(stages, key=lambda stage: len(stage.backup.bundles), reverse=True):
        bundles = stage.backup.bundles
        for chain in chains:
            if chain[0].backup.bundles[: len(bundles)] == bundles:
                chain.append(stage)
                break
        else:
            chains.append([stage])
    return chains


async def _unpack(
    directory: BackupDirectory,
    name: str,
    chain: Sequence[_Stage],
    git: Git,
    scratch: Layout,
    report: VerifyReport,
) -> None:
    """Unpacks the bundles of the longest of `chain`, and sets the refs of each."""
    repository = Mirror(scratch.mirror(name), git)
    path, proved = "", list[Mapping[str, str]]()
    try:
        await repository.initialise("")
        for bundle in chain[0].backup.bundles:
            path = bundle.file.path
            await unbundle(repository, directory.path / path)
        for at, backup in chain:
            if backup.refs in proved:
                continue
            proved.append(backup.refs)
            # Drop the refs that exist first, because one session's name may be a directory in another's ref.
            await repository.update_refs([f"delete {ref}\n" for ref in await repository.local_refs("refs/")])
            try:
                await set_refs(repository, backup.refs)
            except GitmirrorError as error:
                path = backup.bundles[-1].file.path
                report.add(path, f"{name} as of {at} cannot be restored from it: {error.message}")
    except GitmirrorError as error:
        report.add(path, f"{name} cannot be restored from it: {error.message}")
    finally:
        await asyncio.to_thread(shutil.rmtree, repository.path, ignore_errors=True)
