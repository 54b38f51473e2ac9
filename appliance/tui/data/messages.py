"""The messages that carry results from threads to the app and its screens."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from textual.message import Message

from appliance.core.errors import GitmirrorError
from appliance.core.models import CommitText, FileChange, RefText, Turn
from appliance.core.node.figures import FigureSeries
from appliance.core.node.queries import Disk, RepoView
from appliance.tui.data.details import RepoDetails
from appliance.tui.data.rows import CheckRow, DiffLine, GuestRow, SessionRow


class FollowerMessage(Message):
    """A message that the app passes on to the follower."""


@dataclass
class StreamChanged(FollowerMessage):
    """The event stream of a serve opened (`serving`), or no serve can be followed, for the reason `why`."""

    serving: bool
    why: str = ""


@dataclass
class EventsArrived(FollowerMessage):
    """Events are waiting in the event follower."""


@dataclass
class PulseRead(FollowerMessage):
    """What a running serve reports about itself; None if no serve is running."""

    pulse: dict[str, Any] | None


@dataclass
class ReposRead(FollowerMessage):
    """All repositories."""

    repos: list[RepoView]


@dataclass
class RatesRead(FollowerMessage):
    """Hydrations before this view opened: `counts` by repository, slot and way, slot 0 from `since` on."""

    since: float
    counts: list[dict[str, Any]]


@dataclass
class RecentRead(FollowerMessage):
    """The last refreshes of some repositories, oldest first: Unix second of the start, seconds, result."""

    recent: dict[str, list[tuple[float, float, str]]]


@dataclass
class TipRead(FollowerMessage):
    """The commit at a tip; None when the mirror cannot be read."""

    repo: str
    oid: str
    commit: CommitText | None


@dataclass
class ReadFailed(FollowerMessage):
    """The read called `name` failed. `failed` handles the error; None means that it concerns every view."""

    name: str
    error: GitmirrorError
    failed: Callable[[ReadFailed], None] | None = None


@dataclass
class ReadRecovered(FollowerMessage):
    """The read called `name` works again."""

    name: str


@dataclass
class ActionDone(Message):
    """An order succeeded; `text` says what it did."""

    text: str


@dataclass
class ActionFailed(Message):
    """The order called `what` failed."""

    what: str
    error: GitmirrorError


@dataclass
class ActivityRead(Message):
    """What happened before this view opened, newest first."""

    hydrations: list[dict[str, Any]]
    pushes: list[dict[str, Any]]
    refreshes: list[dict[str, Any]]


@dataclass
class SessionsRead(Message):
    """The newest sessions, and how many there are in total."""

    repo: str | None
    sessions: list[SessionRow]
    total: int


@dataclass
class GuestsRead(Message):
    """All known guests, by name."""

    guests: list[GuestRow]


@dataclass
class TurnsRead(Message):
    """The turns of one session, oldest first; `details` are the notes and attachments by the turn's id, if read."""

    repo: str
    session: str
    turns: list[Turn]
    details: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)


@dataclass
class FilesRead(Message):
    """The files that a session or one of its turns changed; `turn` is None for the whole session.

    `note` says why there is more in them than the agent did, and is empty otherwise.
    """

    turn: int | None
    files: list[FileChange]
    note: str = ""


@dataclass
class DiffRead(Message):
    """The lines of one file's diff."""

    turn: int | None
    path: str
    lines: list[DiffLine]


@dataclass
class RefreshesRead(Message):
    """The refreshes of one repository: `refreshes` newest first for the list, `recent` oldest first for the plot."""

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
    """What doctor found."""

    checks: list[CheckRow]


@dataclass
class FleetRead(Message):
    """The fleet of the node, as `fleet status --json` has it; None for a node alone."""

    fleet: dict[str, Any] | None


@dataclass
class DiskRead(Message):
    """How full the disk is."""

    disk: Disk


@dataclass
class FiguresRead(Message):
    """What the node did in a span of `figures.SPANS`."""

    span: str
    series: FigureSeries


@dataclass
class DetailsRead(Message):
    """What is read of the chosen repository alone."""

    details: RepoDetails
