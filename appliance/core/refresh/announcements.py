"""Refs that webhooks announced: looked for until the mirror has them, since upstreams announce before they serve."""

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
"""Seconds after a refresh that did not bring what was announced; then it is left to the schedule."""
MOST_REFS = 100
"""Announced refs of one repository that are looked for; of more the oldest are left to the schedule."""

Begin = Callable[[Coroutine[Any, Any, None], str], object]


@dataclass
class _Expected:
    """What one repository is said to have, with how often it was looked for. One timer or one look at a time."""

    refs: dict[Announcement, int]
    timer: asyncio.TimerHandle | None = None
    looking: bool = False


class Announcements:
    """Has repositories refreshed, and again until what was announced is there."""

    def __init__(self, scheduler: Scheduler, mirror_of: Callable[[str], Mirror], begin: Begin) -> None:
        self._scheduler = scheduler
        self._mirror_of = mirror_of
        self._begin = begin
        self._expected: dict[int, _Expected] = {}

    def take(self, repo: Repo, announcement: Announcement | None) -> None:
        """A webhook came: the repository is refreshed at once; however many come, once now and once after."""
        if not self._scheduler.nudge(repo) or announcement is None:
            return
        refs = self._expected.setdefault(repo.id, _Expected({})).refs
        # A later word on the same ref is the one that counts.
        for older in [each for each in refs if each.ref == announcement.ref]:
            del refs[older]
        refs[announcement] = 0
        while len(refs) > MOST_REFS:
            del refs[next(iter(refs))]

    def refreshed(self, event: RefreshEnded) -> None:
        """A refresh may have brought what was announced."""
        repo = event.repo
        expected = self._expected.get(repo.id)
        # With another one asked for, this one began before the last announcement and says nothing about it.
        if expected is None or expected.looking or self._scheduler.is_asked(repo.id):
            return
        expected.looking = True
        self._begin(self._look(repo, expected), f"look for what {repo.name} announced")

    async def _look(self, repo: Repo, expected: _Expected) -> None:
        try:
            looked_for = list(expected.refs)
            for announcement in await self._missing(repo, looked_for):
                if announcement in expected.refs:
                    expected.refs[announcement] += 1
                    looked_for.remove(announcement)
            for brought in looked_for:
                expected.refs.pop(brought, None)
            for given_up in [each for each, tries in expected.refs.items() if tries > len(RETRY_AFTER)]:
                del expected.refs[given_up]
                log.warning("%s: %s was announced and does not come; left to the schedule", repo.name, given_up.ref)
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
            refs = await mirror.local_refs(*(each.ref for each in announced))
        except GitmirrorError as error:
            log.warning("%s: what was announced cannot be looked for: %s", repo.name, error.message)
            return announced
        return [each for each in announced if not await _is_there(mirror, refs.get(each.ref), each)]


async def _is_there(mirror: Mirror, has: str | None, announced: Announcement) -> bool:
    """Whether a ref at `has` is what was announced, or has moved on from it."""
    if announced.oid is None or has is None:
        return announced.oid is None and has is None
    if announced.oid in ("", has):
        return True
    # Where the push found it, it has not moved, also when the commit is here: it is pushed back to an old one.
    return has != announced.before and await has_object(mirror, announced.oid)
