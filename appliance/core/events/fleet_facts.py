"""What happens between the nodes of a fleet; as `facts`, which has what happens on one."""

from __future__ import annotations

from dataclasses import dataclass

from appliance.core.events.facts import RepoEvent


@dataclass(frozen=True, kw_only=True)
class TurnsBrought(RepoEvent):
    """Turns that another node took are in the mirror now, and their refs were set."""

    session: str
