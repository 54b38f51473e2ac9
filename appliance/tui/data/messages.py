"""What threads tell the screens: typed, and whole."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from textual.message import Message

from appliance.core.errors import GitmirrorError
from appliance.core.models import CommitText, FileChange, RefText, Turn
from appliance.core.node.queries import Disk, RepoView
from appliance.tui.data.rows import CheckRow, DiffLine, SessionRow


class FollowerMessage(Message):
    """What the app hands to the follower."""


@dataclass
class StreamChanged(FollowerMessage):
    """The event stream of a serve is open (`serving`), or there is none, and why."""

    serving: bool
    why: str = ""


@dataclass
class EventsArrived(FollowerMessage):
    """There are events to take."""


@dataclass
class PulseRead(FollowerMessage):
    """What a running serve says of itself; None without one."""

    pulse: dict[str, Any] | None


@dataclass
class ReposRead(FollowerMessage):
    """All repositories."""

    repos: list[RepoView]


@dataclass
class RatesRead(FollowerMessage):
    """Hydrations before this view was opened: `counts` by repository, slot and way, slots from `since` on."""

    since: float
    counts: list[dict[str, Any]]


@dataclass
class RecentRead(FollowerMessage):
    """The last refreshes of some repositories: begin, seconds, result."""

    recent: dict[str, list[tuple[float, float, str]]]


@dataclass
class TipRead(FollowerMessage):
    """The commit at a tip; None when the mirror cannot tell."""

    repo: str
    oid: str
    commit: CommitText | None


@dataclass
class ReadFailed(FollowerMessage):
    """A read failed; `name` says which. `failed` is who wants to know, None when it concerns every view."""

    name: str
    error: GitmirrorError
    failed: Callable[[ReadFailed], None] | None = None


@dataclass
class ReadRecovered(FollowerMessage):
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


@dataclass
class ActivityRead(Message):
    """What happened before, newest first."""

    hydrations: list[dict[str, Any]]
    pushes: list[dict[str, Any]]
    refreshes: list[dict[str, Any]]


@dataclass
class SessionsRead(Message):
    """The newest sessions, and how many there are in all."""

    repo: str | None
    sessions: list[SessionRow]
    total: int


@dataclass
class TurnsRead(Message):
    """The turns of one session, oldest first."""

    repo: str
    session: str
    turns: list[Turn]


@dataclass
class FilesRead(Message):
    """The files that a session, or a turn of it, changed; `turn` None is the whole session."""

    turn: int | None
    files: list[FileChange]


@dataclass
class DiffRead(Message):
    """The lines of one file's diff."""

    turn: int | None
    path: str
    lines: list[DiffLine]
    cut: bool


@dataclass
class RefreshesRead(Message):
    """The history of one repository, newest first; `recent` oldest first, for the plot."""

    repo: str
    refreshes: list[dict[str, Any]]
    recent: list[tuple[float, float, str]]


@dataclass
class RefsRead(Message):
    """The refs of one mirror, newest first."""

    repo: str
    refs: list[RefText]


@dataclass
class HydrationsRead(Message):
    """Hydrations of one repository, newest first."""

    repo: str
    hydrations: list[dict[str, Any]]


@dataclass
class HealthRead(Message):
    """What doctor found, and how the disk is."""

    checks: list[CheckRow]


@dataclass
class DiskRead(Message):
    """How the disk is."""

    disk: Disk
