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
from appliance.tui.data.batch import Batch
from appliance.tui.data.details import RepoDetails
from appliance.tui.data.rows import CheckRow, DiffLine, FilePair, GuestRow, NoteRow, SessionRow
from appliance.tui.data.session_query import Found


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
class BatchDone(Message):
    """Orders on several things ended; `finished` is called with what became of them, on the UI thread."""

    batch: Batch
    finished: Callable[[Batch], None]


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
class SessionsFound(Message):
    """Which sessions a search of the database found."""

    found: Found


@dataclass
class SessionRead(Message):
    """One session, None if there is none, and its turns, oldest first; `then` takes them on the UI thread."""

    session: SessionRow | None
    turns: list[Turn]
    then: Callable[[SessionRow | None, list[Turn]], None]


@dataclass
class WholeRead(Message):
    """What is known of one row, read because it was opened: a heading, and pairs of a name and a text."""

    title: str
    facts: list[tuple[str, str]]


@dataclass
class GuestsRead(Message):
    """All known guests, by name, and how many disks each guest has leased."""

    guests: list[GuestRow]
    disks: Mapping[str, int]


@dataclass
class TrafficRead(Message):
    """What guests are being sent now, and the hydrations that ended since the last read, oldest first."""

    transfers: list[dict[str, Any]]
    ended: list[dict[str, Any]]


@dataclass
class GuestSessionsRead(Message):
    """The newest sessions of one known guest."""

    guest: str
    sessions: list[SessionRow]


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
class ChangedRead(Message):
    """The files that a whole session changed."""

    repo: str
    session: str
    files: list[FileChange]


@dataclass
class ComparisonRead(Message):
    """The files that either of two sessions changed."""

    pairs: list[FilePair]


@dataclass
class PairRead(Message):
    """The lines of what each of two sessions changed in one file; None where it did not change it."""

    path: str
    left: list[DiffLine] | None
    right: list[DiffLine] | None


@dataclass
class NotesRead(Message):
    """The notes and attachments of a session, those of its newest turn first."""

    rows: list[NoteRow]


@dataclass
class AttachmentRead(Message):
    """What is shown of an attachment, and a remark about what is not."""

    row: NoteRow
    text: str
    said: str


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
