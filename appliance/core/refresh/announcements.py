"""Repeats refreshes until the mirror has what a webhook announced, because upstreams announce before they serve."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from appliance.core.errors import GitmirrorError
from appliance.core.events.facts import RefreshEnded
from appliance.core.git.mirror import Mirror, has_object
from appliance.core.models import Announcement, Repo
from appliance.core.refresh.scheduler import Scheduler

log = logging.getLogger(__name__)

RETRY_AFTER = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Seconds between a refresh that did not bring the announced ref and the next; after that the schedule applies."""
MOST_REFS = 100
"""The most announced refs tracked for one repository; beyond that, the oldest are left to the schedule."""

Begin = Callable[[Coroutine[Any, Any, None], str], object]


@dataclass
class _Expected:
    """Announced refs of one repository, each with its number of checks. At most one timer or check runs at a time."""

    refs: dict[Announcement, int]
    timer: asyncio.TimerHandle | None = None
    looking: bool = False


class Announcements:
    """Refreshes repositories after an announcement, and again until the announced refs have arrived."""

    def __init__(self, scheduler: Scheduler, mirror_of: Callable[[str], Mirror], begin: Begin) -> None:
        self._scheduler = scheduler
        self._mirror_of = mirror_of
        self._begin = begin
        self._expected: dict[int, _Expected] = {}

    def take(self, repo: Repo, announcement: Announcement | None) -> None:
        """Refreshes the repository at once for a webhook. Many webhooks cause one refresh now and one later."""
        if not self._scheduler.nudge(repo) or announcement is None:
            return
        refs = self._expected.setdefault(repo.id, _Expected({})).refs
        # The latest announcement of a ref replaces earlier ones.
        for earlier in [known for known in refs if known.ref == announcement.ref]:
            del refs[earlier]
        refs[announcement] = 0
        while len(refs) > MOST_REFS:
            del refs[next(iter(refs))]

    def refreshed(self, event: RefreshEnded) -> None:
        """Checks for announced refs after a refresh has ended, successfully or not."""
        repo = event.repo
        expected = self._expected.get(repo.id)
        # If another refresh is requested, this one began before the last announcement and proves nothing about it.
        if expected is None or expected.looking or self._scheduler.is_asked(repo.id):
            return
        expected.looking = True
        self._begin(self._look(repo, expected), f"look for announced refs of {repo.name}")

    async def _look(self, repo: Repo, expected: _Expected) -> None:
        try:
            looked_for = list(expected.refs)
            for announcement in await self._missing(repo, looked_for):
                if announcement in expected.refs:
                    expected.refs[announcement] += 1
                    looked_for.remove(announcement)
            for arrived in looked_for:
                expected.refs.pop(arrived, None)
            for given_up in [announced for announced, tries in expected.refs.items() if tries > len(RETRY_AFTER)]:
                del expected.refs[given_up]
                log.warning(
                    "%s: %s was announced but did not arrive; the next scheduled refresh tries again",
                    repo.name,
                    given_up.ref,
                )
        finally:
            expected.looking = False
        if not expected.refs:
            self._expected.pop(repo.id, None)
        elif expected.timer is None:
            delay = RETRY_AFTER[max(0, min(expected.refs.values()) - 1)]
            expected.timer = asyncio.get_running_loop().call_later(delay, self._again, repo, expected)

    def _again(self, repo: Repo, expected: _Expected) -> None:
        expected.timer = None
        if not self._scheduler.nudge(repo):
            self._expected.pop(repo.id, None)

    async def _missing(self, repo: Repo, announced: list[Announcement]) -> list[Announcement]:
        mirror = self._mirror_of(repo.name)
        try:
            refs = await mirror.local_refs(*(announcement.ref for announcement in announced))
        except GitmirrorError as error:
            log.warning("%s: cannot check whether announced refs have arrived: %s", repo.name, error.message)
            return announced
        return [
            announcement
            for announcement in announced
            if not await _has_arrived(mirror, refs.get(announcement.ref), announcement)
        ]


async def _has_arrived(mirror: Mirror, oid: str | None, announced: Announcement) -> bool:
    """Whether a ref at `oid` is at the announced commit, or has moved on from it."""
    if announced.oid is None or oid is None:
        return announced.oid is None and oid is None
    if announced.oid in ("", oid):
        return True
    # A ref still at its value before the push has not moved, even if the mirror has the announced commit: a push may
    # reset a ref to an old commit.
    return oid != announced.before and await has_object(mirror, announced.oid)
