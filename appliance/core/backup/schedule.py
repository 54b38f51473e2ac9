"""Makes a backup every `[backup] every` while `serve` runs, and reports how it went."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from appliance.core.backup.directory import BackupDirectory
from appliance.core.backup.proof import last_proof
from appliance.core.backup.writer import BackupReport, BackupWriter
from appliance.core.config.settings import BackupConfig
from appliance.core.errors import GitmirrorError, UsageError
from appliance.core.git.mirror import Mirror
from appliance.core.git.mirrors import Mirrors
from appliance.core.process.endurance import EXPECTED, Endurance
from appliance.core.text import escape
from appliance.core.units import format_duration, rfc3339

log = logging.getLogger(__name__)

LOOK_EVERY = 1.0
"""Seconds until a changed setting is noticed."""
RETRY = 300.0
"""Seconds after which a backup that failed is tried again, or `every` if that is less."""


def newest_backup(to: str) -> float | None:
    """Returns when the newest backup in a directory was made, in Unix seconds. Raises GitmirrorError."""
    directory = BackupDirectory(Path(to))
    try:
        directory.open(create=False)
        newest = directory.newest()
    except OSError as error:
        raise GitmirrorError(f"the backups in {to} cannot be read: {error.strerror}") from error
    return newest.seconds if newest else None


def is_late(made: float, every: float) -> bool:
    """Whether the next backup is overdue, when the last one was made at `made` (Unix seconds)."""
    return time.time() - made > 2 * every + RETRY


class Backups:
    """Makes the backups of one `serve` by its current `settings`, one at a time and at low priority."""

    def __init__(self, mirrors: Mirrors, settings: Callable[[], BackupConfig]) -> None:
        git = mirrors.git.gently()
        self._layout = mirrors.layout
        self._writer = BackupWriter(
            mirrors.layout, lambda name: Mirror(mirrors.layout.mirror(name), git), mirrors.locks
        )
        self._settings = settings
        self._one_at_a_time = asyncio.Lock()
        self._known = ""
        """The directory that `_at` and `_error` refer to."""
        self._at: float | None = None
        self._bytes: int | None = None
        self._error: str | None = None
        self._due = 0.0
        self._began: float | None = None

    async def run(self) -> None:
        """Makes backups until it is cancelled."""
        endurance = Endurance(log, "the backup")
        while True:
            to, every = self._settings().to, self._settings().every
            if to:
                with endurance.over(to):
                    await self._pass(to, every)
            await asyncio.sleep(LOOK_EVERY)

    async def make(self, to: str | None) -> BackupReport:
        """Makes a backup now, to `to` or to the configured directory, which is created if it is missing.

        `to` must be an absolute path, because the caller's working directory is not this process's. Raises
        GitmirrorError.
        """
        chosen = to or self._settings().to
        if not chosen:
            raise no_directory()
        if not chosen.startswith("/"):
            raise UsageError(
                f"the directory {escape(chosen)} of the backup is not an absolute path",
                hint="name it from the root on, such as /mnt/backup/node1",
            )
        return await self._make(chosen)

    def document(self) -> dict[str, Any] | None:
        """Returns `backup` of `status --json`: the last success, error and proof; None if there is no setting."""
        to = self._settings().to
        if not to:
            return None
        is_known = self._known == to
        at = self._at if is_known else None
        return {
            "to": to,
            "at": None if at is None else rfc3339(at),
            "age": None if at is None else round(max(0.0, time.time() - at), 3),
            "bytes": self._bytes if is_known else None,
            "error": self._error if is_known else None,
            **last_proof(self._layout, to),
        }

    def gauges(self) -> Iterator[tuple[str, str, float]]:
        """The gauges for /metrics; none without the setting. Without any backup, the age is infinite."""
        to = self._settings().to
        if to and self._known == to:
            age = math.inf if self._at is None else max(0.0, time.time() - self._at)
            yield "backup_age_seconds", "Seconds since the last backup was made.", age
            yield "backup_failing", "1 if the last try to make a backup failed.", self._error is not None

    def trouble(self) -> str | None:
        """Returns the warning for `status` if backups fail or one hangs."""
        found = self.document()
        if found is None:
            return None
        since = f"the last one is of {found['at']}" if found["at"] else "there is none yet"
        if found["error"]:
            return f"backups to {found['to']} fail, and {since}: {found['error']}"
        every = self._settings().every
        if self._began is not None and time.monotonic() - self._began > max(every, RETRY):
            taken = format_duration(time.monotonic() - self._began)
            return f"a backup to {found['to']} has taken {taken} so far, and {since}; does its disk answer?"
        return None

    async def _pass(self, to: str, every: float) -> None:
        if self._known != to:
            await self._look_at(to, every)
        # A shorter `every` applies at once, a longer one after the next backup.
        self._due = min(self._due, time.monotonic() + every)
        if time.monotonic() >= self._due:
            self._due = time.monotonic() + min(RETRY, every)
            await self._make(to)
            self._due = time.monotonic() + every

    async def _look_at(self, to: str, every: float) -> None:
        """Reads when the newest backup in a directory was made, so that a restart does not make one too early."""
        self._began, self._known, self._error, self._due = time.monotonic(), to, None, time.monotonic()
        self._at = self._bytes = None
        try:
            newest = await asyncio.to_thread(BackupDirectory(Path(to)).newest)
        finally:
            self._began = None
        if newest is not None:
            self._at, self._bytes = newest.seconds, newest.size
            self._due += max(0.0, newest.seconds + every - time.time())

    async def _make(self, to: str) -> BackupReport:
        async with self._one_at_a_time:
            self._began = time.monotonic()
            try:
                report = await self._writer.write(Path(to))
            except EXPECTED as error:
                if to == self._settings().to:
                    hint = f" ({error.hint})" if isinstance(error, GitmirrorError) and error.hint else ""
                    self._known, self._error = to, f"{error}{hint}"
                raise
            finally:
                self._began = None
            if to == self._settings().to:
                self._known, self._error = to, "; ".join(report.problems) or None
                self._at, self._bytes = datetime.fromisoformat(report.at).timestamp(), report.bytes
            log.info("backup to %s: %d bytes in %d new files", to, report.written, report.files)
            return report


def no_directory() -> GitmirrorError:
    """Returns the error for a backup without a directory."""
    return GitmirrorError(
        "no backup directory is configured",
        hint='name one: `backup DIR`, or [backup] to = "/mnt/backup/node1"',
        exit_code=2,
    )
