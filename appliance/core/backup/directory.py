"""The directory of backups. It works on NFS and rclone mounts: no locks, no links, no rename across directories.

    manifests/STAMP-HASH.json       one per backup
    databases/STAMP.db              and STAMP.audit-head beside it
    bundles/OWNER/REPO/STAMP-KIND.bundle
    attachments/OWNER/REPO/SHA256

A file is written under a temporary name, synced, renamed in its directory, and read back.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType

from appliance.core.backup.manifest import Manifest, StoredFile, decode, name_of
from appliance.core.errors import GitmirrorError

NEWEST_KEPT = 24
"""How many of the newest backups are kept whatever their age: one day of hourly backups."""
DAYS_KEPT = 30
"""The last backup of each day is kept for this many days before the newest one."""

_STAMP = "%Y%m%dT%H%M%S.%fZ"
_MANIFEST = re.compile(r"(\d{8}T\d{6}\.\d{6}Z)-[0-9a-f]{16}\.json")
_OURS = (
    re.compile(r"manifests/\d{8}T\d{6}\.\d{6}Z-[0-9a-f]{16}\.json"),
    re.compile(r"databases/\d{8}T\d{6}\.\d{6}Z\.(db|audit-head)"),
    re.compile(r"bundles/[^/]+/[^/]+/\d{8}T\d{6}\.\d{6}Z-(history|turns)\.bundle"),
    re.compile(r"attachments/[^/]+/[^/]+/[0-9a-f]{64}"),
)
_TEMPORARY = re.compile(r"\.(?P<name>[^/]+)\.new")
_PIECE = 2**20


class NewFile:
    """A file that is being written under a temporary name, and is `path` at the end. Its directory is created.

    As a context manager it is committed at the end, or discarded after an error. All methods raise OSError.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._temporary = path.with_name(f".{path.name}.new")
        path.parent.mkdir(parents=True, exist_ok=True)
        self.file = self._temporary.open("wb", buffering=0)

    def write(self, content: bytes) -> None:
        """Appends all of `content`."""
        view = memoryview(content)
        while view:
            view = view[self.file.write(view) :]

    def commit(self) -> None:
        """Syncs the file and puts it in place."""
        os.fsync(self.file.fileno())
        self.file.close()
        self._temporary.rename(self._path)

    def discard(self) -> None:
        """Removes what was written; never raises."""
        with contextlib.suppress(OSError):
            self.file.close()
        with contextlib.suppress(OSError):
            self._temporary.unlink()

    def __enter__(self) -> NewFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.discard()
            return
        try:
            self.commit()
        except OSError:
            self.discard()
            raise


class BackupDirectory:
    """The backups below `path`. Every method may raise OSError, and may block, because the disk may be slow."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def open(self, *, create: bool) -> None:
        """Checks that the directory exists. Raises GitmirrorError.

        With `create` it is created, but not its parents, so that nothing is written where no disk is mounted.
        """
        try:
            if create:
                self.path.mkdir(exist_ok=True)
            if not self.path.is_dir():
                raise NotADirectoryError(20, "it is not a directory", str(self.path))
        except OSError as error:
            why = "it does not exist" if isinstance(error, FileNotFoundError) else error.strerror
            raise GitmirrorError(
                f"the backup directory {self.path} cannot be used: {why}",
                hint="check that its disk is mounted, that it belongs to the user that runs gitmirror, and that the "
                "service may write there (ReadWritePaths=)",
            ) from error

    # What is there

    def names(self) -> list[str]:
        """Returns the file names of all manifests, oldest first, including damaged ones."""
        with contextlib.suppress(FileNotFoundError):
            return sorted(name for name in os.listdir(self.path / "manifests") if _MANIFEST.fullmatch(name))
        return []

    def read(self, name: str) -> Manifest:
        """Reads the manifest in the file `name`. Raises GitmirrorError if it is damaged."""
        return decode(name, (self.path / "manifests" / name).read_bytes())

    def newest(self) -> Manifest | None:
        """Returns the newest backup with an undamaged manifest, or None."""
        for name in reversed(self.names()):
            with contextlib.suppress(GitmirrorError):
                return self.read(name)
        return None

    def has(self, file: StoredFile) -> bool:
        """Returns whether a file exists with the right size, without reading it."""
        try:
            return (self.path / file.path).stat().st_size == file.size
        except FileNotFoundError:
            return False

    def fault_of(self, file: StoredFile) -> str | None:
        """Reads all of a file and returns what is wrong with it; None if it is as it was written."""
        try:
            size, sha256 = digest(self.path / file.path)
        except FileNotFoundError:
            return "it is missing"
        except OSError as error:
            return f"it cannot be read: {error.strerror}"
        if size != file.size:
            return f"it has {size} bytes instead of {file.size}"
        return None if sha256 == file.sha256 else "its content has changed"

    def require(self, files: Iterable[StoredFile], at: str) -> None:
        """Reads files of the backup of `at`. Raises GitmirrorError if one is not as it was written."""
        for file in files:
            if fault := self.fault_of(file):
                raise GitmirrorError(
                    f"the backup of {at} cannot be restored: {file.path}: {fault}",
                    hint="restore an earlier one with --before TIME; `backup verify` names everything that is damaged",
                )

    # Writing

    def stamp(self) -> str:
        """Returns the time for a new backup: now, but after the newest existing one, so that names sort by age."""
        now = datetime.now(UTC)
        if names := self.names():
            now = max(now, _moment(names[-1]) + timedelta(microseconds=1))
        return now.strftime(_STAMP)

    def begin(self, path: str) -> NewFile:
        """Starts a new file below the directory, which takes its name once it is committed."""
        return NewFile(self.path / path)

    def write(self, path: str, content: bytes) -> StoredFile:
        """Writes a small file and reads it back. Raises GitmirrorError."""
        with self.begin(path) as new:
            new.write(content)
        return self._read_back(path, len(content), hashlib.sha256(content).hexdigest())

    def copy(self, source: Path, path: str) -> StoredFile:
        """Copies a file of this machine and reads it back. Raises GitmirrorError."""
        expected, size = hashlib.sha256(), 0
        with source.open("rb") as reading, self.begin(path) as new:
            while piece := reading.read(_PIECE):
                new.write(piece)
                expected.update(piece)
                size += len(piece)
        return self._read_back(path, size, expected.hexdigest())

    def add(self, stamp: str, manifest: Manifest) -> None:
        """Writes the manifest, which makes the backup count. Raises GitmirrorError."""
        content = manifest.encode()
        self.write(f"manifests/{name_of(stamp, content)}", content)

    def _read_back(self, path: str, size: int, sha256: str) -> StoredFile:
        found = digest(self.path / path)
        if found != (size, sha256):
            raise GitmirrorError(
                f"{self.path / path} does not have the content that was written to it",
                hint="check the disk of the backup directory",
            )
        return StoredFile(path, size, sha256)

    # Removing

    def tidy(self) -> int:
        """Removes old manifests and files that no manifest names, and returns the number of removed files.

        It removes only files with names that backups use. While a manifest that would stay is damaged, it
        removes only old manifests and temporary files, because nobody knows which files the damaged one names.
        """
        names = self.names()
        kept = kept_names(names)
        doomed = [f"manifests/{name}" for name in names if name not in kept]
        needed, damaged = set(), False
        for name in kept:
            try:
                needed |= set(self.read(name).files())
            except GitmirrorError:
                damaged = True
        # The manifests go first: a kill in between leaves files without a manifest, never a manifest without files.
        for path in doomed:
            (self.path / path).unlink(missing_ok=True)
        for path in self._present():
            directory, _, last = path.rpartition("/")
            temporary = _TEMPORARY.fullmatch(last)
            is_ours = any(each.fullmatch(f"{directory}/{temporary['name']}" if temporary else path) for each in _OURS)
            unneeded = path not in needed and not path.startswith("manifests/") and not damaged
            if is_ours and (temporary or unneeded):
                (self.path / path).unlink(missing_ok=True)
                doomed.append(path)
        self._remove_empty()
        return len(doomed)

    def _present(self) -> list[str]:
        found = []
        for top in ("manifests", "databases", "bundles", "attachments"):
            for directory, _, files in os.walk(self.path / top):
                found += [str(Path(directory, name).relative_to(self.path)) for name in files]
        return found

    def _remove_empty(self) -> None:
        tops = (self.path / "bundles", self.path / "attachments")
        for directory in sorted((found for top in tops for found in top.glob("*/*")), reverse=True):
            for each in (directory, directory.parent):
                with contextlib.suppress(OSError):
                    each.rmdir()


def kept_names(names: list[str]) -> set[str]:
    """Returns which manifests are kept: the newest ones, and the last of each day before them. Pure."""
    if not names:
        return set()
    oldest = _moment(names[-1]) - timedelta(days=DAYS_KEPT)
    last_of_day = {name[:8]: name for name in sorted(names) if _moment(name) >= oldest}
    return set(sorted(names)[-NEWEST_KEPT:]) | set(last_of_day.values())


def _moment(name: str) -> datetime:
    return datetime.strptime(name.partition("-")[0], _STAMP).replace(tzinfo=UTC)


def seconds_of(stamp: str) -> float:
    """Converts a stamp to Unix seconds."""
    return _moment(stamp).timestamp()


def digest(path: Path, piece_read: Callable[[bytes], None] = lambda piece: None) -> tuple[int, str]:
    """Returns the size and the SHA-256 of a file; `piece_read` gets its content piece by piece. Raises OSError."""
    found, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            found.update(piece)
            piece_read(piece)
            size += len(piece)
            # Lets the threads that serve guests run between two pieces.
            time.sleep(0)
    return size, found.hexdigest()
