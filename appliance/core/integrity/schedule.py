"""When a mirror is inspected and healed. Pure: the time is passed in, in Unix seconds; nights are in local time."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from datetime import datetime, timedelta

from appliance.core.models import Health, Repo

NIGHT_BEGINS = 1
"""The local hour in which inspections begin."""
NIGHT_LASTS = 5 * 3600.0
"""Seconds over which the inspections of one night are spread, by the names of the repositories."""
AGAIN = 20 * 3600.0
"""Seconds after an inspection until the mirror is due again."""
OVERDUE = 3 * 86400.0
"""Seconds after which an inspection no longer waits for the night, because a node may be off at night."""
WEEK = 7
"""The content of every mirror is inspected once in this many nights."""
WHOLE_OVERDUE = 2 * WEEK * 86400.0
"""Seconds after which the content is inspected on the very next night."""

HEAL_AGAIN = 60.0
"""Seconds until a mirror may be healed a second time within a day. Four times as long after each further heal."""
HEAL_LATEST = 6 * 3600.0
DAY = 86400.0

SUSPECT_AGAIN = 60.0
"""Seconds that the next suspicion of a mirror waits after an unfounded one; four times as long after each further."""
SUSPECT_LATEST = 3600.0
MOST_OF_THE_TIME = 20.0
"""Suspicions wait at least this many times as long as the last inspection took, because a guest can cause them."""


def is_due(repo: Repo, health: Health, now: float, began: float) -> bool:
    """Whether a mirror is to be inspected now. `began` is when `serve` started."""
    last = _last(health.inspected_at, repo, now)
    if now - last > OVERDUE and (health.inspected_at is not None or now - began > OVERDUE):
        return True
    begin = _night(now)
    return begin + _share(repo.name) * NIGHT_LASTS <= now <= begin + NIGHT_LASTS and now - last > AGAIN


def is_full(repo: Repo, health: Health, now: float) -> bool:
    """Whether an inspection reads the content of every object too: once a week, spread over the nights by name."""
    last = _last(health.verified_whole_at, repo, now)
    # By the date on which the night began, so that an inspection after midnight counts for the same night.
    day = datetime.fromtimestamp(_night(now)).toordinal()
    return day % WEEK == zlib.crc32(repo.name.encode()) % WEEK or now - last > WHOLE_OVERDUE


def pause_after_heals(heals: Sequence[float], now: float) -> float:
    """Seconds that the next heal waits after heals at these times, so that heals never loop."""
    recent = sum(now - at < DAY for at in heals)
    return min(HEAL_AGAIN * 4.0 ** (recent - 1), HEAL_LATEST) if recent else 0.0


def pause_after_suspicions(unfounded: int, took: float) -> float:
    """Seconds that suspicions wait after `unfounded` inspections in a row, the last of which took `took` seconds."""
    return max(min(SUSPECT_AGAIN * 4.0 ** (unfounded - 1), SUSPECT_LATEST), MOST_OF_THE_TIME * took)


def _last(at: float | None, repo: Repo, now: float) -> float:
    """The time `at`, or the time of registration if `at` is missing or the clock was set back since."""
    return at if at is not None and at <= now + DAY else repo.created_at


def _night(now: float) -> float:
    """When the current night began, or the last one if it is day."""
    moment = datetime.fromtimestamp(now)
    begin = moment.replace(hour=NIGHT_BEGINS, minute=0, second=0, microsecond=0)
    if moment < begin:
        begin -= timedelta(days=1)
    return begin.timestamp()


def _share(name: str) -> float:
    """A number from 0 up to 1 that depends on the name alone."""
    return zlib.crc32(b"night " + name.encode()) / 2**32
