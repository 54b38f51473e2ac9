"""What is read of one repository alone: what moved last, who hydrated it, its sessions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from appliance.core.node.queries import NodeQueries
from appliance.tui.data.activity import ActivityEntry, ActivityFeed, moved_words, seconds_of
from appliance.tui.data.rows import SessionRow

READ = 20
"""Hydrations and sessions that are read, and moves that are shown at most."""
REFRESHES = 100
"""Refreshes that are read, to find those that moved something."""


@dataclass(frozen=True)
class RepoDetails:
    """What is read of the chosen repository alone. Each list is newest first."""

    repo: str
    moves: Sequence[tuple[float, str]] = ()
    hydrations: Sequence[ActivityEntry] = ()
    sessions: Sequence[SessionRow] = ()
    refreshes: int = 0
    """How many refreshes were looked through for `moves`."""
    is_read: bool = True


def read_details(queries: NodeQueries, repo: str) -> RepoDetails:
    """Reads them, in a few milliseconds. Raises GitmirrorError."""
    refreshes = queries.refreshes(repo, REFRESHES)
    feed = ActivityFeed()
    feed.fill(queries.hydrations(repo, READ), (), ())
    sessions = [SessionRow.of(row) for row in queries.sessions(repo, READ)[0]]
    return RepoDetails(repo, moves_of(refreshes)[:READ], feed.rows, sessions, len(refreshes))


def moves_of(refreshes: Iterable[Mapping[str, Any]]) -> list[tuple[float, str]]:
    """When and what the refreshes moved, without those that moved nothing."""
    return [(seconds_of(row["started_at"]), moved_words(row["moved"])) for row in refreshes if row["moved"]]
