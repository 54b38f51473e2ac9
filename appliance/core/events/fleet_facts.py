"""What happens between the nodes of a fleet; as `facts`, which has what happens on one."""

from __future__ import annotations

from dataclasses import dataclass

from appliance.core.events.facts import Document, Event, RepoEvent


@dataclass(frozen=True, kw_only=True)
class TurnsArrived(RepoEvent):
    """Turns of other nodes came, or the order of turns is known now."""

    names = ("arrived",)

    sessions: tuple[str, ...]

    def facts(self) -> Document:
        return {"sessions": list(self.sessions)}


@dataclass(frozen=True, kw_only=True)
class TurnsBrought(RepoEvent):
    """Turns that another node took are in the mirror now, and their refs were set."""

    session: str


@dataclass(frozen=True, kw_only=True)
class SessionShared(RepoEvent):
    """In a session in which this node has turns, a turn of one node follows one of another node."""

    names = ("session-shared",)
    goes_out = True

    session: str
    nodes: tuple[str, ...]
    """All nodes with turns in it."""
    node: str
    """The one that took the turn."""
    commit: str
    continues: bool
    """Whether it was pushed onto the turn before it. Otherwise, two guests worked in the session at once."""

    def facts(self) -> Document:
        return {
            "session": self.session,
            "nodes": list(self.nodes),
            "node": self.node,
            "commit": self.commit,
            "continues": self.continues,
        }


TOLD_IN_A_FLEET: tuple[type[Event], ...] = (SessionShared, TurnsArrived)
"""Every class of event that goes to the event stream of a node in a fleet, beside `facts.TOLD`."""
