"""Inspects and heals one mirror, and derives its health columns: the same for `serve` and for a command without it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from appliance.core.errors import GitmirrorError
from appliance.core.git.mirror import Mirror
from appliance.core.git.mirrors import Mirrors
from appliance.core.integrity.healing import Healer, Healing
from appliance.core.integrity.inspection import Inspection, inspect, look
from appliance.core.integrity.recorded_refs import RecordedRefs, recorded_refs
from appliance.core.models import Health, Repo
from appliance.core.recording.policy import AGENTS
from appliance.core.recording.turns import ARCHIVE, TURNS
from appliance.core.store.database import StoreError
from appliance.core.store.stores import Stores
from appliance.core.text import storable

log = logging.getLogger(__name__)

LOST = "could not be healed: its commit is lost"
QUIET_WITHIN = 60.0
"""Seconds to wait for a moment without pushes in which to look at a mirror."""


@dataclass(frozen=True)
class Examination:
    """A finished inspection: when it began (Unix seconds), how long it took (seconds), and what it found."""

    repo: Repo
    full: bool
    started_at: float
    seconds: float
    found: Inspection

    def columns(self) -> dict[str, Any]:
        """The columns of Health that follow from it."""
        columns: dict[str, Any] = {"damage": _damage(self.found), "inspected_at": self.started_at}
        if self.full and self.found.damage is None:
            columns["verified_whole_at"] = self.started_at
        return columns

    def document(self) -> dict[str, Any]:
        """What `verify --json` prints for it."""
        return {
            "repo": self.repo.name,
            "whole": self.found.damage is None,
            "full": self.full,
            "seconds": round(self.seconds, 3),
            "damage": _damage(self.found),
            "faults": [storable(fault) for fault in self.found.faults],
            "lost": lost_documents(self.found.lost_refs),
            "error": None,
        }


class Examiner:
    """Examines the mirrors of a node, and heals them with `healer`. `stores` hold what was recorded."""

    def __init__(self, mirrors: Mirrors, stores: Stores, healer: Healer) -> None:
        self._mirrors = mirrors
        self._stores = stores
        self._healer = healer

    async def look(self, repo: Repo) -> Inspection:
        """Looks for lost refs. Raises GitmirrorError if that is not possible now.

        A push or the end of a session changes the refs first and the database afterwards. So a loss counts only if it
        is seen while no push is under way.
        """
        found = await look(self._mirrors(repo.name), await self._recorded(repo))
        if found.damage is None:
            return found
        return await self._look_alone(repo)

    async def _look_alone(self, repo: Repo) -> Inspection:
        async with contextlib.AsyncExitStack() as stack:
            try:
                async with asyncio.timeout(QUIET_WITHIN):
                    await stack.enter_async_context(self._mirrors.locks.exclusive(repo.name))
            except TimeoutError:
                raise GitmirrorError(f"{repo.name} cannot be compared with the database while a push runs") from None
            return await look(self._mirrors(repo.name), await self._recorded(repo))

    async def inspect(self, repo: Repo, *, full: bool) -> Examination:
        """Has git check the objects of a mirror, at low priority. Raises GitmirrorError if that is not possible now."""
        started_at, start = time.time(), time.monotonic()
        found = await self._inspect(repo, full)
        if found.lost_refs and (await self._look_alone(repo)).damage is None:
            found = await self._inspect(repo, full)
        return Examination(repo, full, started_at, time.monotonic() - start, found)

    async def _inspect(self, repo: Repo, full: bool) -> Inspection:
        # A repack would remove packs while git reads them, which looks like damage. Fetches and pushes only add.
        async with self._mirrors.locks.shared(repo.name):
            mirror = self._mirrors(repo.name)
            gentle = Mirror(mirror.path, mirror.git.gently())
            return await inspect(gentle, await self._recorded(repo), full=full)

    async def heal(self, repo: Repo, found: Inspection) -> tuple[Healing, bool]:
        """Heals a damaged mirror, and notes in the audit log what could not be saved; returns whether that was new.

        Raises GitmirrorError.
        """
        healing = await self._healer.heal(repo, found)
        for done in healing.done:
            log.warning("%s: %s", repo.name, storable(done))
        is_news = bool(healing.lost)
        if healing.lost:
            try:
                is_news = await asyncio.to_thread(self._note, repo.name, healing.lost)
            except StoreError as error:
                log.error("%s: what is lost cannot be logged: %s", repo.name, error.message)
        return healing, is_news

    def _note(self, repo: str, lost: Mapping[str, str]) -> bool:
        sessions = self._stores.sessions
        of_turn = {
            f"{TURNS}{turn.id}": turn.session
            for session in sessions.all(repo)
            for turn in sessions.turns(repo, session["session"])
        }
        named = [
            (ref, of_turn.get(ref) or ref.removeprefix(AGENTS).removeprefix(ARCHIVE), oid) for ref, oid in lost.items()
        ]
        return self._stores.audit.note_losses(repo, named, LOST)

    async def _recorded(self, repo: Repo) -> RecordedRefs:
        return await asyncio.to_thread(recorded_refs, self._stores, repo.name)


def require_cloned(repo: Repo, health: Health) -> None:
    """Raises GitmirrorError for a mirror that was never complete, which cannot be damaged."""
    if not health.cloned:
        raise GitmirrorError(
            f"{repo.name} was not cloned yet", hint="`status` says why; there is nothing to inspect before"
        )


def healed_columns(healing: Healing, at: float) -> dict[str, Any]:
    """The columns of Health after a heal that ended at `at` (Unix seconds)."""
    damage = None if healing.whole else storable(healing.remaining or "the mirror could not be healed")
    return {"damage": damage, "inspected_at": at}


def healing_document(repo: str, healing: Healing | None) -> dict[str, Any]:
    """What `heal --json` prints. `healing` is None if the mirror was not damaged."""
    return {
        "repo": repo,
        "whole": healing is None or healing.whole,
        "done": [storable(done) for done in healing.done] if healing else [],
        "lost": lost_documents(healing.lost) if healing else [],
        "evidence": str(healing.evidence) if healing and healing.evidence else None,
        "damage": healed_columns(healing, 0.0)["damage"] if healing else None,
    }


def failed_document(repo: str, full: bool, error: GitmirrorError) -> dict[str, Any]:
    """What `verify --json` prints for a mirror that could not be inspected. That is not damage."""
    keys: dict[str, Any] = {
        "repo": repo,
        "whole": None,
        "full": full,
        "seconds": None,
        "damage": None,
        "faults": [],
        "lost": [],
    }
    return keys | {"error": error.message}


def lost_documents(lost: Mapping[str, str]) -> list[dict[str, str]]:
    """Lost recordings as `{ref, commit}`."""
    return [{"ref": storable(ref), "commit": commit} for ref, commit in lost.items()]


def _damage(found: Inspection) -> str | None:
    return None if found.damage is None else storable(found.damage)
