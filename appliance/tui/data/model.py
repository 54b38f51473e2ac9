"""What the view knows at this moment; lives on the UI thread, filled from messages."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from appliance.core.models import CommitText, State
from appliance.core.node.queries import RepoView
from appliance.tui.data.activity import ActivityFeed

WARM = frozenset({"hit", "joined", "snapshot"})
"""Ways in which nothing had to be computed for the guest; `direct` fetches have nothing that could be kept."""

SLOT = 10.0
"""Seconds that are counted together."""
EVERY = ""
"""The name under which all repositories together are counted."""
RATIO_OVER = 600.0
"""Seconds over which the hit ratio is told."""


@dataclass
class Rates:
    """Hydrations by repository, counted in slots of ten seconds, for the last ten minutes."""

    slots: dict[str, dict[int, list[int]]] = field(default_factory=lambda: defaultdict(dict))

    def add(self, repo: str, at: float, way: str, count: int = 1) -> None:
        """`count` hydrations ended at Unix second `at`."""
        for key in (repo, EVERY):
            slot = self.slots[key].setdefault(int(at // SLOT), [0, 0, 0])
            slot[0] += count
            slot[1] += count * (way in WARM)
            slot[2] += count * (way == "miss")

    def per_minute(self, repo: str, now: float) -> int:
        """How many ended in the last minute."""
        newest = int(now // SLOT)
        slots = self.slots.get(repo, {})
        return sum(slots[slot][0] for slot in range(newest - int(60 / SLOT) + 1, newest + 1) if slot in slots)

    def hits(self, repo: str) -> tuple[int, int]:
        """How many of the last ten minutes came from what was there already, of how many."""
        found = self.slots.get(repo, {}).values()
        warm = sum(counts[1] for counts in found)
        return warm, warm + sum(counts[2] for counts in found)

    def forget_old(self, now: float) -> None:
        """Drops what is no longer told."""
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
    """What events told, ahead of the database: serve may write a refresh that found nothing new seconds later."""
    rates: Rates = field(default_factory=Rates)
    recent: dict[str, list[tuple[float, float, str]]] = field(default_factory=dict)
    activity: ActivityFeed = field(default_factory=ActivityFeed)
    tips: dict[tuple[str, str], CommitText | None] = field(default_factory=dict)

    def lag(self, view: RepoView) -> float | None:
        """Seconds since the mirror was last verified equal to its upstream, by the database or by an event."""
        verified = view.health.verified_at
        if verified is None:
            return None
        return max(0.0, self.clock() - max(verified, self.verified.get(view.repo.name, 0.0)))

    def counts(self) -> dict[State, int]:
        """How many repositories are in each state."""
        found: dict[State, int] = {}
        for view in self.repos.values():
            found[view.state] = found.get(view.state, 0) + 1
        return found

    def tip(self, view: RepoView) -> CommitText | None:
        """The commit at its tip, as far as it was read."""
        return self.tips.get((view.repo.name, view.health.tip or ""))
