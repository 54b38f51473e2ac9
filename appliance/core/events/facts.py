"""What happens in a `serve`: one frozen class for each event, with the JSON document that subscribers get.

A room publishes an event and does not know who listens; daemon/wiring.py says which rooms do. An event holds everything
that a listener needs, as it was when it happened. Times are Unix seconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, ClassVar

from appliance.core.models import HeadChange, Health, Hydration, PushDecision, RefChange, RefreshOutcome, Repo
from appliance.core.text import escape_ascii, storable
from appliance.core.units import rfc3339

MOST_TOLD = 100
"""The most refs of one refresh that its event names."""

PUSHES_OFF, PUSHES_ON = "pushes-off", "pushes-on"

Document = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that happened. Classes with `names` have a document and go to the event stream."""

    names: ClassVar[tuple[str, ...]] = ()
    goes_out: ClassVar[bool] = False
    """Whether `[events]` passes it to a platform. The others are many, and only `/v1/events` has them."""

    at: float = field(default_factory=time.time)

    @property
    def name(self) -> str:
        """The name in the event's document."""
        return self.names[0]

    def subject(self) -> Document:
        """The keys that say what it happened to. They come first in the document."""
        return {}

    def facts(self) -> Document:
        """The keys that only this class of event has."""
        return {}

    def document(self) -> Document:
        """The JSON document for subscribers: `{event, at, repo, …facts}`."""
        return {"event": self.name, "at": rfc3339(self.at), **self.subject(), **self.facts()}


Publish = Callable[[Event], None]
"""Hands an event to its listeners. It neither waits nor raises."""


@dataclass(frozen=True, kw_only=True)
class RepoEvent(Event):
    """Something that happened to one repository."""

    repo: Repo

    def subject(self) -> Document:
        return {"repo": self.repo.name}


@dataclass(frozen=True, kw_only=True)
class RefreshEnded(RepoEvent):
    """A refresh ended, successfully or not."""

    names = ("refreshed",)

    outcome: RefreshOutcome
    health: Health
    """The mirror's health after this refresh."""
    learnt: Mapping[str, Any]
    """The columns of `health` that this refresh determined."""

    @property
    def is_news(self) -> bool:
        """Whether somebody waits for the result or cares: a ref moved, the refresh failed, or it was requested."""
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
    """A refresh moved refs of a mirror or pointed its HEAD at another branch, and guests get the new ones."""

    names = ("refs-moved",)
    goes_out = True

    changes: tuple[RefChange, ...]
    """The refs. Empty if only HEAD moved."""
    head: HeadChange | None = None
    """How HEAD moved, if it did."""
    followed: str | None = None
    """The ref of the followed branch. If it moved, the document names it, however many others moved."""

    def facts(self) -> Document:
        told = self.changes
        if len(told) > MOST_TOLD:
            followed = tuple(change for change in told if change.ref == self.followed)
            others = (change for change in told if change.ref != self.followed)
            told = (*followed, *islice(others, MOST_TOLD - len(followed)))
        return {
            "refs": [change.document() for change in told],
            "more": len(self.changes) - len(told),
            "head": self.head and self.head.document(),
        }


@dataclass(frozen=True, kw_only=True)
class FetchBegan(RepoEvent):
    """A guest asked for objects, and its response begins."""

    names = ("hydrating",)
    goes_out = True

    want: str
    """The first object id asked for."""
    shape: str
    client: str
    protocol: str
    guest: str | None = None
    """The name of a known guest."""

    def facts(self) -> Document:
        return {
            "want": self.want,
            "shape": self.shape,
            "client": self.client,
            "protocol": self.protocol,
            "guest": self.guest,
        }


@dataclass(frozen=True, kw_only=True)
class FetchEnded(RepoEvent):
    """A guest got its objects, or disconnected before the end."""

    names = ("hydrated",)
    goes_out = True

    fetch: Hydration

    def facts(self) -> Document:
        # Not asdict, which copies each value and takes four times as long, on the path of every fetch.
        return {key: value for key, value in vars(self.fetch).items() if key != "repo"}


@dataclass(frozen=True, kw_only=True)
class PushRuled(RepoEvent):
    """A push was accepted or refused."""

    names = ("pushed",)

    decision: PushDecision

    def facts(self) -> Document:
        return {
            "verdict": "accepted" if self.decision.accepted else "rejected",
            "refs": [storable(command.ref) for command in self.decision.commands],
            "commits": [
                escape_ascii(command.new) if command.new.strip("0") else None for command in self.decision.commands
            ],
            "reason": next(iter(self.decision.refusals.values()), None),
            "client": self.decision.client,
            "guest": self.decision.guest,
        }


@dataclass(frozen=True, kw_only=True)
class TurnRecorded(RepoEvent):
    """A push moved the ref of a session."""

    names = ("recorded",)
    goes_out = True

    session: str | None
    change: RefChange
    client: str
    guest: str | None = None

    def facts(self) -> Document:
        return {"session": self.session, **self.change.document(), "client": self.client, "guest": self.guest}


@dataclass(frozen=True, kw_only=True)
class SessionsEnded(RepoEvent):
    """Sessions were ended or archived, so guests no longer see their refs."""


@dataclass(frozen=True, kw_only=True)
class AllowedRepoExpired(RepoEvent):
    """A repository that `[[allow]]` brought was removed with its mirror: it was unused, or the disk had no room."""

    names = ("expired",)
    goes_out = True

    words: str

    def facts(self) -> Document:
        return {"url": self.repo.url, "words": self.words}


@dataclass(frozen=True, kw_only=True)
class ConditionChanged(RepoEvent):
    """A repository became stale, failing or damaged, or recovered."""

    names = ("stale", "failing", "damaged", "recovered")
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
    """When the failure or the lag began."""

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
class DamageSuspected(Event):
    """git said something that a damaged mirror explains, while it served, refreshed or recorded."""

    mirror: str
    """The name of the mirror, OWNER/REPO."""
    words: str


@dataclass(frozen=True, kw_only=True)
class MirrorHealed(RepoEvent):
    """A damaged mirror was healed, or a heal did not suffice."""

    names = ("healed",)
    goes_out = True

    whole: bool
    done: tuple[str, ...]
    """What was done, one sentence each."""
    lost: Mapping[str, str]
    """The refs of recordings that could not be saved, with the commit that each had."""
    evidence: str | None
    damage: str | None
    """What is still wrong."""
    loses_more: bool = False
    """Whether `lost` names something that no earlier heal named."""

    def facts(self) -> Document:
        return {
            "whole": self.whole,
            "done": list(self.done),
            "lost": [{"ref": storable(ref), "commit": commit} for ref, commit in list(self.lost.items())[:MOST_TOLD]],
            "evidence": self.evidence,
            "damage": self.damage,
        }


@dataclass(frozen=True, kw_only=True)
class PushesSwitched(Event):
    """All pushes are refused from now on, or accepted again."""

    names = (PUSHES_OFF, PUSHES_ON)
    goes_out = True

    are_off: bool
    words: str
    hint: str | None
    """What an operator can do about it."""
    since: float
    """When pushes were switched off."""

    @property
    def name(self) -> str:
        return PUSHES_OFF if self.are_off else PUSHES_ON

    def subject(self) -> Document:
        return {"repo": None}

    def facts(self) -> Document:
        return {"words": self.words, "hint": self.hint, "since": rfc3339(self.since)}


@dataclass(frozen=True, kw_only=True)
class EventsLost(Event):
    """Events that the receiver has not got were dropped: it was too slow, or away for too long."""

    names = ("lost",)
    goes_out = True

    count: int | None
    """How many, or None if nobody knows, as after a restart."""

    def facts(self) -> Document:
        return {"count": self.count}


@dataclass(frozen=True, kw_only=True)
class RegistryChanged(Event):
    """Repositories were added, removed, enabled or disabled. `gone` are those that are no longer served."""

    gone: tuple[Repo, ...]


TOLD: tuple[type[Event], ...] = (
    FetchBegan,
    FetchEnded,
    RefsMoved,
    TurnRecorded,
    ConditionChanged,
    MirrorHealed,
    AllowedRepoExpired,
    PushesSwitched,
    EventsLost,
    RefreshEnded,
    PushRuled,
)
"""Every class of event that goes to the event stream."""
