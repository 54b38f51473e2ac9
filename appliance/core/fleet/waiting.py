"""What of this node has yet to go out to the fleet, and the counts that the node gives of itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass

from appliance.core.fleet.nodes import Described
from appliance.core.health import lag_of, state_of
from appliance.core.models import UNHEALTHY, Health, Repo
from appliance.core.store.database import Database, rows
from appliance.core.store.fleet import FleetStore
from appliance.core.store.fleet_outgoing import OutgoingStore
from appliance.core.store.health import HealthStore
from appliance.core.store.session_ends import READ_TO

TURNS, ATTACHMENTS, REGISTRY, ENDS = "turns", "attachments", "registry", "ends"
_OUTBOX: Mapping[str, Sequence[str]] = {REGISTRY: ("repo",), ENDS: ("end", "kept")}
KINDS = (TURNS, ATTACHMENTS, REGISTRY, ENDS)


@dataclass(frozen=True)
class Waiting:
    """Counts what waits to go out. `that_may_leave` picks the repositories whose turns may leave this node, by name."""

    database: Database
    fleet: FleetStore
    that_may_leave: Callable[[Iterable[str]], Set[str]]

    def count(self) -> dict[str, int]:
        """How many `turns`, `attachments`, changes of the `registry`, and `ends` wait. Raises StoreError."""
        unsent = OutgoingStore(self.database).unsent()
        outbox = self.fleet.count_waiting()
        leaving = self.that_may_leave({*unsent.turns, *unsent.attachments, *(repo for _, repo in outbox)})
        return {
            TURNS: sum(number for repo, number in unsent.turns.items() if repo in leaving),
            ATTACHMENTS: sum(number for repo, number in unsent.attachments.items() if repo in leaving),
            **{
                kind: sum(
                    number
                    for (each, repo), number in outbox.items()
                    # That the session of a private repository is kept is told once the repository is public.
                    if each in kinds and (each != "kept" or repo in leaving)
                )
                for kind, kinds in _OUTBOX.items()
            },
        }


@dataclass(frozen=True)
class OwnCounts:
    """Reads from the database what this node says of itself. `url` is where the others can fetch from it."""

    database: Database
    healths: HealthStore
    fleet: FleetStore
    waiting: Waiting
    repos: Callable[[], Iterable[Repo]]
    stale_after: Callable[[], float]
    url: Callable[[], str | None]

    def read(self) -> Described:
        """The counts as they are now. Raises StoreError."""
        repos, healths, now = list(self.repos()), self.healths.all(), time.time()
        enabled = [(repo, healths.get(repo.id, Health())) for repo in repos if repo.enabled]
        lags = [lag for _, health in enabled if (lag := lag_of(health, now)) is not None]
        with self.database.reading() as connection:
            [sessions] = rows(connection, "SELECT count(*) AS n FROM sessions")
        return Described(
            url=self.url(),
            repos=len(repos),
            sessions=sessions["n"],
            behind=sum(state_of(repo, health, now, self.stale_after()) in UNHEALTHY for repo, health in enabled),
            lag=round(max(lags), 3) if lags else None,
            waiting=self.waiting.count(),
            seq=int(self.fleet.get(READ_TO) or 0),
        )
