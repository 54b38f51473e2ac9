"""Proves that backups can be restored: reads every file, opens each database, and unpacks every bundle."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from appliance.core.backup.bundles import set_refs, unbundle
from appliance.core.backup.database_copy import fault_of_copy
from appliance.core.backup.directory import BackupDirectory
from appliance.core.backup.manifest import Bundle, Manifest
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
    """Unpacks the bundles of every backup, the newest first, and each bundle once."""
    names = sorted({name for manifest in manifests for name in manifest.repositories})
    with git_below(scratch) as git:

        async def one(name: str) -> None:
            proved: list[tuple[Bundle, ...]] = []
            for each in (manifest.repositories.get(name) for manifest in reversed(manifests)):
                if each is None or any(chain[: len(each.bundles)] == each.bundles for chain in proved):
                    continue
                if not any(bundle.file.path in damaged for bundle in each.bundles):
                    proved.append(each.bundles)
                    await _unpack(directory, name, each.bundles, each.refs, git, scratch, report)

        await side_by_side(names, one)
    report.faults.sort(key=lambda fault: fault["path"])


async def _unpack(
    directory: BackupDirectory,
    name: str,
    bundles: Sequence[Bundle],
    refs: Mapping[str, str],
    git: Git,
    scratch: Layout,
    report: VerifyReport,
) -> None:
    repository = Mirror(scratch.mirror(name), git)
    path = bundles[0].file.path
    try:
        await repository.initialise("")
        for bundle in bundles:
            path = bundle.file.path
            await unbundle(repository, directory.path / path)
        await set_refs(repository, refs)
    except GitmirrorError as error:
        report.add(path, f"{name} cannot be restored from it: {error.message}")
    finally:
        await asyncio.to_thread(shutil.rmtree, repository.path, ignore_errors=True)
