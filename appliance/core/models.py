"""Frozen data that the rooms hand to each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from appliance.core.text import storable

ZERO_OID = "0" * 40


class State(StrEnum):
    """What an operator is told about a repository. NEW and CLONING are healthy: nothing was promised yet."""

    NEW = "new"
    CLONING = "cloning"
    FRESH = "fresh"
    STALE = "stale"
    FAILING = "failing"
    DISABLED = "disabled"


UNHEALTHY = frozenset({State.STALE, State.FAILING})


@dataclass(frozen=True)
class Repo:
    """A registered repository. `id` is new at each registration, so it tells a re-added one apart."""

    id: int
    name: str
    url: str
    branch: str | None
    source: str
    interval: float | None
    enabled: bool
    created_at: float


@dataclass(frozen=True)
class Health:
    """What is known of one mirror. Times are Unix seconds, `verified_at` the start of the last good refresh.

    `error_kind` is the error word of `last_error`; before `retry_at` the upstream does not want to be asked.
    """

    tip: str | None = None
    head: str | None = None
    verified_at: float | None = None
    last_error: str | None = None
    error_kind: str | None = None
    retry_at: float | None = None
    failures: int = 0
    cloned: bool = False
    cloning: bool = False
    refs: int = 0
    size: int = 0
    sessions: int = 0
    checked_at: float | None = None
    next_due: float = 0.0
    maintained_at: float | None = None


@dataclass(frozen=True)
class RefChange:
    """One ref that moved: `old` is None for a new one, `new` None for a deleted one."""

    ref: str
    old: str | None
    new: str | None

    def document(self) -> dict[str, str | None]:
        """As `refresh --json` and the history have it."""
        return {"ref": storable(self.ref), "old": self.old, "new": self.new}


@dataclass(frozen=True)
class RemoteRefs:
    """An upstream's refs as ls-remote tells: `head` is the branch that HEAD points at, or None."""

    refs: Mapping[str, str] = field(default_factory=dict)
    head: str | None = None


@dataclass(frozen=True)
class RefreshOutcome:
    """One refresh: `started_at` in Unix seconds, `duration` in seconds, `error` in words or None, its word in `kind`.

    `asked` tells one that somebody waited for from those of the schedule.
    """

    repo: str
    started_at: float
    duration: float
    moved: tuple[RefChange, ...] = ()
    error: str | None = None
    kind: str | None = None
    asked: bool = False

    @property
    def result(self) -> str:
        """`failed`, `moved` or `unchanged`."""
        return "failed" if self.error else "moved" if self.moved else "unchanged"


@dataclass(frozen=True)
class Hydration:
    """A guest got its objects. `way` is how (hit, joined, miss, direct, snapshot), times are seconds.

    `want` is the first of `wants` object ids, `shape` the request in a few words, `first_byte` the time until it came.
    """

    repo: str
    want: str
    wants: int
    shape: str
    way: str
    bytes: int
    first_byte: float
    seconds: float
    client: str
    protocol: str


@dataclass(frozen=True)
class Tar:
    """A snapshot as it is sent: the file at `path`, its strong `etag` (without quotes), the `commit` it holds.

    `tip` is where the mirror has the branch now, when that is known.
    """

    path: Path
    etag: str
    commit: str
    tip: str | None


@dataclass(frozen=True)
class Turn:
    """One recording of a session. `id` is its audit id, `at` RFC 3339, `base` None for unrelated history.

    The numbers are those of the diff of base and commit; `bytes` is the size of the pack that brought it.
    """

    id: int
    repo: str
    session: str
    commit: str
    base: str | None
    at: str
    subject: str
    commits: int
    files_changed: int
    insertions: int
    deletions: int
    client: str
    bytes: int


@dataclass(frozen=True)
class CommitText:
    """One commit for a log: `at` in Unix seconds."""

    oid: str
    subject: str
    author: str
    at: int


@dataclass(frozen=True)
class RefText:
    """One ref of a mirror: `at` is when what it names was made, in Unix seconds."""

    ref: str
    oid: str
    at: int
    subject: str


@dataclass(frozen=True)
class FileChange:
    """One file of a diff: `before` is its path before a rename. A path that is no UTF-8 has surrogates."""

    path: str
    before: str
    insertions: int
    deletions: int
    binary: bool


class PushFault(Exception):
    """A push is not what a push must be; the text says how, for the guest and the log."""


@dataclass(frozen=True)
class RefCommand:
    """One line of a push: `ref` from `old` to `new`, object ids; zeros mean that there is none."""

    old: str
    new: str
    ref: str


@dataclass(frozen=True)
class PushDecision:
    """What the guard says of a push before any of it is let through.

    `refusals` is the reason for each refused ref, empty when the push may go on; `advice` are lines for the guest's
    terminal. `attempts` are the audit ids of the refs, in the order of `commands`.
    """

    push: str
    repo: Repo
    client: str
    commands: tuple[RefCommand, ...]
    refusals: Mapping[str, str] = field(default_factory=dict)
    advice: tuple[str, ...] = ()
    attempts: tuple[int, ...] = ()

    @property
    def accepted(self) -> bool:
        """Whether the push may go on."""
        return not self.refusals


@dataclass(frozen=True)
class Announcement:
    """One ref that an upstream says it has now: at `oid`, or at any when that is empty, or gone when it is None.

    `before` is where the push found it, "" when that is not said.
    """

    ref: str
    oid: str | None
    before: str = ""
