"""Immutable data that the rooms pass to each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from appliance.core.text import storable

ZERO_OID = "0" * 40

Tell = Callable[[str], None]
"""Receives the progress of an operation, a line at a time."""


class State(StrEnum):
    """The state of a repository as operators see it. NEW and CLONING are healthy: there is nothing to serve yet."""

    NEW = "new"
    CLONING = "cloning"
    FRESH = "fresh"
    STALE = "stale"
    FAILING = "failing"
    DAMAGED = "damaged"
    DISABLED = "disabled"


UNHEALTHY = (State.DAMAGED, State.FAILING, State.STALE)
"""The states that operators must hear of, the worst first."""


ALLOWED = "allowed"
"""The source of a repository that nobody registered: a guest asked for it, and `[[allow]]` allows it."""


@dataclass(frozen=True)
class Repo:
    """A registered repository. Each registration gets a new `id`, so a repository that is added again has another.

    `source` is `config`, `cli` (which means the API, too) or ALLOWED.
    """

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
    """What is known about one mirror. Times are Unix seconds; `verified_at` is the start of the last good refresh.

    `error_kind` is the error word of `last_error`. The upstream asked not to be contacted before `retry_at`. `damage`
    says what is wrong with the mirror on disk, or is None if nothing is known to be wrong. `inspected_at` is when its
    objects were last inspected, and `verified_whole_at` when an inspection of their content last found no fault.
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
    damage: str | None = None
    inspected_at: float | None = None
    verified_whole_at: float | None = None


@dataclass(frozen=True)
class RefChange:
    """One ref that moved: `old` is None for a new ref, `new` is None for a deleted ref."""

    ref: str
    old: str | None
    new: str | None

    def document(self) -> dict[str, str | None]:
        """Returns the change as `refresh --json` and the history show it."""
        return {"ref": storable(self.ref), "old": self.old, "new": self.new}


@dataclass(frozen=True)
class HeadChange:
    """A mirror's HEAD points at another branch: `old` and `new` are refs; `old` is None when it was not known."""

    old: str | None
    new: str | None

    def document(self) -> dict[str, str | None]:
        """Returns the change as events show it."""
        return {"old": self.old, "new": self.new}


@dataclass(frozen=True)
class RemoteRefs:
    """An upstream's refs as ls-remote lists them: `head` is the branch that HEAD points at, or None."""

    refs: Mapping[str, str] = field(default_factory=dict)
    head: str | None = None


@dataclass(frozen=True)
class RefreshOutcome:
    """One refresh: `started_at` in Unix seconds, `duration` in seconds.

    `error` is the error message, or None if the refresh succeeded; `kind` is the error word (`Kind` in `git/failures`).
    `asked` is true when somebody waited for the refresh, and false for a scheduled one.
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
class Guest:
    """A known guest: who comes by its socket, from its address or with its token is this guest. Times in Unix seconds.

    It may write `sessions` alone (a name that ends in `*` stands for all that begin so), and read the registrations
    `repos` (name: id), and unless `only`, every repository that is open. `unix` is the path of its sockets without
    their port, `address` an IP address. Without `expires_at` it stays known until it is removed.
    """

    id: int
    name: str
    sessions: tuple[str, ...]
    repos: Mapping[str, int]
    only: bool
    unix: str | None
    address: str | None
    has_token: bool
    created_at: float
    expires_at: float | None


def _keep() -> None:
    """What a caller does that keeps its connection in any case."""


@dataclass(frozen=True)
class Caller:
    """Who sent a request: the address for the record, the protocol (`git` or `http`), and the guest if it is known.

    `on_last` is called before an answer after which git asks for nothing more on its connection: one with the pack.
    The guest has `waited` so many seconds since its request, for a slot.
    """

    client: str
    protocol: str
    guest: Guest | None = None
    on_last: Callable[[], None] = _keep
    waited: float = 0.0

    @property
    def guest_name(self) -> str | None:
        """The name of the known guest, or None."""
        return None if self.guest is None else self.guest.name


WARM_WAYS = frozenset({"hit", "joined", "snapshot"})
"""Served from what was there. The hit ratio is their share of these and misses; `direct` ones cannot be cached."""


@dataclass(frozen=True)
class Hydration:
    """A guest received its objects. `way` is how they were served (hit, joined, miss, direct, snapshot).

    `want` is the first of `wants` object ids, `shape` is the request in a few words. `first_byte` and `seconds` are the
    seconds from the request, with its wait for a slot, to the first byte and to the end. `outcome` is `complete`,
    `aborted` (the guest broke it off, or read nothing) or `failed`; of the last two, `bytes` were sent.
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
    guest: str | None = None
    outcome: str = "complete"

    @property
    def makes_workspace(self) -> bool:
        """Whether the guest had nothing before: it got a tar, or the pack of a clone."""
        return self.bytes > 0 and "incremental" not in self.shape


@dataclass(frozen=True)
class Tar:
    """A snapshot to send: the file at `path`, its strong `etag` (without quotes), and the `commit` it contains.

    `tip` is the current tip of the branch in the mirror, or None when it is not known. `history` is its shape.
    """

    path: Path
    etag: str
    commit: str
    tip: str | None
    history: str


@dataclass(frozen=True)
class Turn:
    """One turn of a session. `id` is its audit id, `at` is RFC 3339, `base` is None for unrelated history.

    The counts describe the diff from base to commit; `bytes` is the size of the pack that was pushed. `node` is the
    node of the fleet that took the turn, None before this one was in a fleet. A turn that is `away` was taken by
    another node: its `id` is above every audit id, and its objects may not be here.
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
    guest: str | None = None
    node: str | None = None
    away: bool = False


@dataclass(frozen=True)
class CommitText:
    """One commit of a log; `at` is in Unix seconds."""

    oid: str
    subject: str
    author: str
    at: int


@dataclass(frozen=True)
class RefText:
    """One ref of a mirror; `at` is when the object it points at was created, in Unix seconds."""

    ref: str
    oid: str
    at: int
    subject: str


@dataclass(frozen=True)
class FileChange:
    """One file of a diff; `before` is its path before a rename. A path that is not UTF-8 contains surrogates."""

    path: str
    before: str
    insertions: int
    deletions: int
    binary: bool


class PushFault(Exception):
    """A push that violates the protocol or a rule; the message says how, for the guest and the audit log."""


@dataclass(frozen=True)
class RefCommand:
    """One command of a push: move `ref` from object id `old` to `new`; all zeros mean that the ref does not exist."""

    old: str
    new: str
    ref: str


@dataclass(frozen=True)
class PushDecision:
    """The decision on a push, made before any of it reaches receive-pack.

    `refusals` has the reason for each refused ref and is empty when the push may go on. `advice` holds lines for the
    guest's terminal. `attempts` are the audit ids of the refs, in the order of `commands`. `guest` is the name
    of a known guest.
    """

    push: str
    repo: Repo
    client: str
    commands: tuple[RefCommand, ...]
    refusals: Mapping[str, str] = field(default_factory=dict)
    advice: tuple[str, ...] = ()
    attempts: tuple[int, ...] = ()
    guest: str | None = None

    @property
    def accepted(self) -> bool:
        """Whether the push may go on."""
        return not self.refusals


@dataclass(frozen=True)
class Confirmation:
    """What a push waited for before its guest is told.

    `refused` has the reason for each applied ref that is not stored where it has to be, so that it is withdrawn.
    `turns` are the applied turns by audit id, as they were stored there.
    """

    refused: Mapping[str, str] = field(default_factory=dict)
    turns: Mapping[int, Turn] = field(default_factory=dict)


NOTHING_WITHDRAWN = Confirmation()
"""That of a push which waited for nothing."""


@dataclass(frozen=True)
class Announcement:
    """One ref that an upstream announced: now at `oid`, at an unknown object when `oid` is empty, or deleted when None.

    `before` is the object id before the push, or "" when the announcement does not give it.
    """

    ref: str
    oid: str | None
    before: str = ""
