"""What the live view knows at this moment. It belongs to the UI thread and is filled from messages."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from appliance.core.models import WARM_WAYS, CommitText, State
from appliance.core.node.queries import RepoView
from appliance.tui.data.activity import ActivityFeed

SLOT = 10.0
"""Seconds in one slot of the counts."""
EVERY = ""
"""The name under which all repositories are counted together."""
RATIO_OVER = 600.0
"""Seconds that the hit ratio covers."""


@dataclass
class Rates:
    """Counts hydrations by repository over the last RATIO_OVER seconds, in slots of SLOT seconds."""

    slots: dict[str, dict[int, list[int]]] = field(default_factory=lambda: defaultdict(dict))

    def add(self, repo: str, at: float, way: str, count: int = 1) -> None:
        """Adds `count` hydrations that ended at Unix second `at`."""
        for key in (repo, EVERY):
            slot = self.slots[key].setdefault(int(at // SLOT), [0, 0, 0])
            slot[0] += count
            slot[1] += count * (way in WARM_WAYS)
            slot[2] += count * (way == "miss")

    def per_minute(self, repo: str, now: float) -> int:
        """Returns how many ended in the last minute."""
        newest = int(now // SLOT)
        slots = self.slots.get(repo, {})
        return sum(slots[slot][0] for slot in range(newest - int(60 / SLOT) + 1, newest + 1) if slot in slots)

    def hits(self, repo: str) -> tuple[int, int]:
        """Counts the hydrations of the last ten minutes: how many were warm, and how many were warm or a miss."""
        found = self.slots.get(repo, {}).values()
        warm = sum(counts[1] for counts in found)
        return warm, warm + sum(counts[2] for counts in found)

    def forget_old(self, now: float) -> None:
        """Drops the slots that no figure covers any more."""
        oldest = int((now - RATIO_OVER) // SLOT)
        for repo in list(self.slots):
            slots = self.slots[repo]
            for slot in [slot for slot in slots if slot < oldest]:
                del slots[slot]
            if not slots:
                del self.slots[repo]


@dataclass
class Model:
    """Everything on screen comes from here. `clock` gives Unix seconds."""

    clock: Callable[[], float]
    serving: bool = False
    looked: bool = False
    pulse: dict[str, Any] | None = None
    problems: dict[str, str] = field(default_factory=dict)
    repos: dict[str, RepoView] = field(default_factory=dict)
    read: bool = False
    verified: dict[str, float] = field(default_factory=dict)
    """When each mirror was last verified (Unix seconds), according to events, which arrive before the next read."""
    rates: Rates = field(default_factory=Rates)
    recent: dict[str, list[tuple[float, float, str]]] = field(default_factory=dict)
    activity: ActivityFeed = field(default_factory=ActivityFeed)
    tips: dict[tuple[str, str], CommitText | None] = field(default_factory=dict)

    def lag(self, view: RepoView) -> float | None:
        """Returns the seconds since the mirror was last verified equal to its upstream; None if it never was.

        The database and the events both report this, and the later report counts.
        """
        verified = view.health.verified_at
        if verified is None:
            return None
        return max(0.0, self.clock() - max(verified, self.verified.get(view.repo.name, 0.0)))

    def clone_of(self, view: RepoView) -> Mapping[str, Any] | None:
        """Returns how far the first clone of a repository is, as the pulse has it; None while none runs."""
        clones = (self.pulse or {}).get("clones") or {}
        return clones.get(view.repo.name) if view.state is State.CLONING else None

    @property
    def guest_problems(self) -> dict[str, str]:
        """Why known guests cannot come, by name; empty without a `serve`, or with one that knows of no guests."""
        known = (self.pulse or {}).get("known_guests")
        return known["problems"] if known else {}

    def counts(self) -> dict[State, int]:
        """Returns how many repositories are in each state."""
        found: dict[State, int] = {}
        for view in self.repos.values():
            found[view.state] = found.get(view.state, 0) + 1
        return found

    def tip(self, view: RepoView) -> CommitText | None:
        """Returns the commit at the repository's tip, or None while it has not been read."""
        return self.tips.get((view.repo.name, view.health.tip or ""))
