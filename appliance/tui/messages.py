"""What threads tell the screens: typed, and whole."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from textual.message import Message

from appliance.core.errors import GitmirrorError
from appliance.core.models import CommitText
from appliance.core.overview import RepoView


@dataclass
class Watching(Message):
    """The event stream of a serve is open (`serving`), or there is none, and why."""

    serving: bool
    why: str = ""


@dataclass
class Happened(Message):
    """There are events to take."""


@dataclass
class PulseRead(Message):
    """What a running serve says of itself; None without one."""

    pulse: dict[str, Any] | None


@dataclass
class ReposRead(Message):
    """All repositories."""

    repos: list[RepoView]


@dataclass
class RatesRead(Message):
    """Hydrations before this view was opened: `counts` by repository, slot and way, slots from `since` on."""

    since: float
    counts: list[dict[str, Any]]


@dataclass
class RecentRead(Message):
    """The last refreshes of some repositories: begin, seconds, result."""

    recent: dict[str, list[tuple[float, float, str]]]


@dataclass
class TipRead(Message):
    """The commit at a tip; None when the mirror cannot tell."""

    repo: str
    oid: str
    commit: CommitText | None


@dataclass
class ReadFailed(Message):
    """A read failed; `name` says which."""

    name: str
    error: GitmirrorError


@dataclass
class ReadWorks(Message):
    """A read that may have failed before did not."""

    name: str


@dataclass
class ActionDone(Message):
    """Something that was asked for is done."""

    text: str


@dataclass
class ActionFailed(Message):
    """Something that was asked for failed."""

    what: str
    error: GitmirrorError
