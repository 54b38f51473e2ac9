"""Checks that the tars of snapshots are unchanged since they were written, and discards those that are not."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator

from appliance.core.models import Repo
from appliance.core.process.checked_file import CHECK_EVERY, CheckedFile, NotRight
from appliance.core.workspace.snapshot_registry import KeptSnapshot, KeptSnapshots

log = logging.getLogger(__name__)


class TarChecks:
    """Checks the tars of the snapshots in `kept`. A wrong tar is no longer current, and the next build replaces it."""

    def __init__(self, kept: KeptSnapshots) -> None:
        self._kept = kept
        self.damaged = 0
        """How many were thrown away because their tar had changed since it was written."""

    def gauges(self) -> Iterator[tuple[str, str, float]]:
        """The current values for /metrics: name, help text, value."""
        yield (
            "damaged_snapshots",
            "Snapshots thrown away because their tar had changed since it was written, since the start.",
            self.damaged,
        )

    async def check_next(self) -> tuple[bool, Repo | None]:
        """Reads the tar whose last check is oldest, if it is due. Raises OSError.

        Returns whether one was due, and the repository whose snapshot is to be rebuilt, if any.
        """
        oldest: tuple[float, Repo, KeptSnapshot, CheckedFile] | None = None
        for known, _, kept in self._kept.all():
            tar = kept.tar if kept.current is not None else None
            if tar is not None and (oldest is None or tar.checked_at < oldest[0]):
                oldest = tar.checked_at, known.repo, kept, tar
        if oldest is None or time.monotonic() - oldest[0] < CHECK_EVERY:
            return False, None
        _, repo, kept, tar = oldest
        return True, None if await self.judge(repo, kept, tar, slowly=True) else repo

    async def judge(self, repo: Repo, kept: KeptSnapshot, tar: CheckedFile, *, slowly: bool) -> bool:
        """Reads a tar and returns whether it is right. Raises OSError."""
        try:
            await (tar.check_slowly() if slowly else tar.check())
        except (FileNotFoundError, NotRight) as error:
            # Every caller that waited for the check gets here, and a build may have replaced the tar in the meantime.
            if kept.tar is tar and kept.current is not None:
                if isinstance(error, NotRight):
                    self.throw_away(repo, kept, error)
                else:
                    log.warning("%s: %s is missing from the disk; rebuilding it", repo.name, kept.current.file)
                    kept.current = None
            return False
        return True

    def throw_away(self, repo: Repo, kept: KeptSnapshot, error: NotRight) -> None:
        """Marks a snapshot as not current, so that the next one is built from scratch."""
        self.damaged += 1
        kept.current = None
        kept.place.distrust()
        log.warning(
            "%s: the snapshot of %s was thrown away, because %s; rebuilding it", repo.name, kept.place.branch, error
        )
