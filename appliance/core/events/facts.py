"""What happens in a `serve`: one frozen class for each event, with the JSON document that watchers get.

A room publishes an event and does not know who listens; which rooms do is said in daemon/wiring.py. An event holds
all that a listener needs, as it was when it happened. Times are Unix seconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

from appliance.core.models import Health, Hydration, PushDecision, RefChange, RefreshOutcome, Repo
from appliance.core.text import storable
from appliance.core.units import rfc3339

MOST_TOLD = 100
"""Refs of one refresh that its event names."""

PUSHES_OFF, PUSHES_ON = "pushes-off", "pushes-on"

Document = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that happened. Of some kinds watchers are told: those have `names`, and a document."""

    names: ClassVar[tuple[str, ...]] = ()
    goes_out: ClassVar[bool] = False
    """Whether `[events]` hands it to a platform; the others are for this node's operators alone."""

    at: float = field(default_factory=time.time)

    @property
    def name(self) -> str:
        """What watchers call it."""
        return self.names[0]

    def subject(self) -> Document:
        """What it happened to, and first in the document."""
        return {}

    def facts(self) -> Document:
        """The keys that only this kind of event has."""
        return {}

    def document(self) -> Document:
        """What watchers get: `{event, at, repo, …facts}`."""
        return {"event": self.name, "at": rfc3339(self.at), **self.subject(), **self.facts()}


Publish = Callable[[Event], None]
"""Hands an event to whoever listens. It neither waits nor raises."""


@dataclass(frozen=True, kw_only=True)
class RepoEvent(Event):
    """Something that happened to one repository."""

    repo: Repo

    def subject(self) -> Document:
        return {"repo": self.repo.name}


@dataclass(frozen=True, kw_only=True)
class RefreshEnded(RepoEvent):
    """A refresh ended, well or not."""

    names = ("refreshed",)

    outcome: RefreshOutcome
    health: Health
    """How the mirror is from now on."""
    learnt: Mapping[str, Any]
    """The columns of `health` that this refresh found."""

    @property
    def is_news(self) -> bool:
        """Whether somebody waits for it or will look: something moved, failed, or was asked for."""
        return self.outcome.asked or self.outcome.result != "unchanged"

    def facts(self) -> Document:
        return {
            "result": self.outcome.result,
            "seconds": self.outcome.duration,
            "moved": [change.document() for change in self.outcome.moved[:MOST_TOLD]],
            "error": self.outcome.error,
            "kind": self.outcome.kind,
        }


@dataclass(frozen=True, kw_only=True)
class RefsMoved(RepoEvent):
    """A refresh moved refs of a mirror, or only its HEAD to another branch (then `changes` is empty)."""

    changes: tuple[RefChange, ...]


@dataclass(frozen=True, kw_only=True)
class FetchBegan(RepoEvent):
    """A guest asked for objects, and gets them from now on."""

    names = ("hydrating",)
    goes_out = True

    want: str
    """The first object id asked for."""
    shape: str
    client: str
    protocol: str

    def facts(self) -> Document:
        return {"want": self.want, "shape": self.shape, "client": self.client, "protocol": self.protocol}


@dataclass(frozen=True, kw_only=True)
class FetchEnded(RepoEvent):
    """A guest got its objects, or gave up."""

    names = ("hydrated",)
    goes_out = True

    fetch: Hydration

    def facts(self) -> Document:
        facts = asdict(self.fetch)
        del facts["repo"]
        return facts


@dataclass(frozen=True, kw_only=True)
class PushRuled(RepoEvent):
    """A push was let through or refused."""

    names = ("pushed",)

    decision: PushDecision

    def facts(self) -> Document:
        return {
            "verdict": "accepted" if self.decision.accepted else "rejected",
            "refs": [storable(command.ref) for command in self.decision.commands],
            "reason": next(iter(self.decision.refusals.values()), None),
            "client": self.decision.client,
        }


@dataclass(frozen=True, kw_only=True)
class TurnRecorded(RepoEvent):
    """A push moved the ref of a session."""

    names = ("recorded",)
    goes_out = True

    session: str | None
    change: RefChange
    client: str

    def facts(self) -> Document:
        return {"session": self.session, **self.change.document(), "client": self.client}


@dataclass(frozen=True, kw_only=True)
class SessionsEnded(RepoEvent):
    """Sessions were ended or archived: guests are shown their refs no more."""


@dataclass(frozen=True, kw_only=True)
class ConditionChanged(RepoEvent):
    """A repository turned stale or failing, or is well again."""

    names = ("stale", "failing", "recovered")
    goes_out = True

    condition: str
    """Which of `names` it is."""
    state: str
    error: str | None
    words: str | None
    hint: str | None
    lag: float | None
    failures: int
    since: float
    """When the trouble began."""

    @property
    def name(self) -> str:
        return self.condition

    def facts(self) -> Document:
        return {
            "url": self.repo.url,
            "state": self.state,
            "error": self.error,
            "words": self.words,
            "hint": self.hint,
            "lag": self.lag,
            "failures": self.failures,
            "since": rfc3339(self.since),
        }


@dataclass(frozen=True, kw_only=True)
class PushesSwitched(Event):
    """No push is let in from now on, or pushes are again."""

    names = (PUSHES_OFF, PUSHES_ON)
    goes_out = True

    are_off: bool
    words: str
    hint: str | None
    """What an operator does about it."""
    since: float
    """When they went off."""

    @property
    def name(self) -> str:
        return PUSHES_OFF if self.are_off else PUSHES_ON

    def subject(self) -> Document:
        return {"repo": None}

    def facts(self) -> Document:
        return {"words": self.words, "hint": self.hint, "since": rfc3339(self.since)}


@dataclass(frozen=True, kw_only=True)
class EventsLost(Event):
    """Whoever takes events was too slow, and the oldest were dropped."""

    names = ("lost",)
    goes_out = True

    count: int

    def facts(self) -> Document:
        return {"count": self.count}


@dataclass(frozen=True, kw_only=True)
class RegistryChanged(Event):
    """Other repositories are followed from now on, or others enabled; `gone` are no longer."""

    gone: tuple[Repo, ...]


TOLD: tuple[type[Event], ...] = (
    FetchBegan,
    FetchEnded,
    TurnRecorded,
    ConditionChanged,
    PushesSwitched,
    EventsLost,
    RefreshEnded,
    PushRuled,
)
"""Every kind that watchers are told of."""
