"""What the nodes of a fleet tell each other, and what must hold of each message. Pure. `wire` writes and reads them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from appliance.core.names import is_branch_name, is_repo_name
from appliance.core.recording.policy import AGENTS, session_of

_OID = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_HASH = re.compile(r"[0-9a-f]{64}")
_NODE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?Z")

LONGEST = 10 * 365 * 86400
"""Seconds of the longest interval, and so of the longest time that a message may speak of."""


class NotOurs(Exception):
    """A message that is malformed, too large, or of another version; the text says what is wrong with it."""


@dataclass(frozen=True)
class Attached:
    """An attachment of a turn: its bytes are the object named after its SHA-256."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class TurnRow:
    """One turn. `uid` is the hash of its attempt in the log of `node`, where its audit id is `id`.

    `old` is what the session's ref was before the push. The object `bundle` (None if the upstream has the commit, so
    that there is nothing to bundle) has `bundle_size` bytes with the SHA-256 `bundle_sha256`; whoever unpacks it must
    have the commits `needs`.
    """

    KIND = "turn"

    uid: str
    node: str
    id: int
    repo: str
    session: str
    commit: str
    old: str | None
    base: str | None
    at: str
    subject: str
    commits: int
    files_changed: int
    insertions: int
    deletions: int
    client: str
    guest: str | None
    bytes: int
    bundle: str | None
    bundle_size: int
    bundle_sha256: str | None
    needs: tuple[str, ...] = ()
    notes: Mapping[str, str] = field(default_factory=dict)
    attachments: tuple[Attached, ...] = ()

    def check(self) -> None:
        """Raises NotOurs."""
        _require(_HASH, "uid", self.uid)
        _of_turn(self.node, self.repo, self.session)
        _require(_OID, "commit", self.commit)
        for name in ("old", "base"):
            _require(_OID, name, getattr(self, name), absent=True)
        _require(_TIME, "at", self.at)
        for needed in self.needs:
            _require(_OID, "needs", needed)
        _require(_HASH, "bundle_sha256", self.bundle_sha256, absent=self.bundle is None)
        if self.bundle not in (None, self.uid):
            raise NotOurs("the bundle is not named after its turn")
        for name in ("id", "commits", "files_changed", "insertions", "deletions", "bytes", "bundle_size"):
            if not 0 <= getattr(self, name) < 2**53:
                raise NotOurs(f"{name} is out of range")
        for attached in self.attachments:
            _require(_HASH, "sha256", attached.sha256)


@dataclass(frozen=True)
class TurnAttached:
    """A file was attached to the turn `uid`."""

    KIND = "attachment"

    uid: str
    node: str
    repo: str
    session: str
    attachment: Attached

    def check(self) -> None:
        """Raises NotOurs."""
        _require(_HASH, "uid", self.uid)
        _of_turn(self.node, self.repo, self.session)
        _require(_HASH, "sha256", self.attachment.sha256)
        if not 0 <= self.attachment.size < 2**40:
            raise NotOurs("size is out of range")


@dataclass(frozen=True)
class SessionEnd:
    """A session was ended: its turns with a place up to `upto` in the stream, and those in `uids`.

    Turns that came later are the beginning of a new session. `reason` stands in the notes of the nodes' logs.
    """

    KIND = "end"

    node: str
    repo: str
    session: str
    upto: int
    uids: tuple[str, ...]
    reason: str

    def check(self) -> None:
        """Raises NotOurs."""
        _of_turn(self.node, self.repo, self.session)
        for uid in self.uids:
            _require(_HASH, "uids", uid)
        if self.upto < 0:
            raise NotOurs("upto is out of range")


@dataclass(frozen=True)
class SessionKept:
    """An operator exempted a session from retention, or ended the exemption."""

    KIND = "kept"

    node: str
    repo: str
    session: str
    kept: bool

    def check(self) -> None:
        """Raises NotOurs."""
        _of_turn(self.node, self.repo, self.session)


@dataclass(frozen=True)
class RepoEntry:
    """A repository in the registry of the fleet. With `removed` it was removed, and purged with `purged`.

    `by` is the node on which an operator changed it, `at` when, in RFC 3339. `registration` stays the same until the
    repository is removed and added again: then nothing that was granted to the old one gives access to the new one.
    """

    KIND = "repo"

    name: str
    url: str
    branch: str | None
    interval: float | None
    enabled: bool
    by: str
    at: str
    removed: bool = False
    purged: bool = False
    registration: str = ""

    def check(self) -> None:
        """Raises NotOurs. The URL is only a text here: what may be an upstream, the registry says."""
        if not is_repo_name(self.name):
            raise NotOurs("name is not OWNER/REPO")
        if self.branch is not None and not is_branch_name(self.branch):
            raise NotOurs("branch is no branch's name")
        if self.interval is not None and not 1 <= self.interval <= LONGEST:
            raise NotOurs("interval is out of range")
        _require(_NODE, "by", self.by)
        _require(_TIME, "at", self.at)


@dataclass(frozen=True)
class NodeEntry:
    """What a node says of itself. `url` is where other nodes fetch from it, if they can.

    `machine` is the boot id of the machine: a `url` on the loopback interface is of use on that machine alone.
    `waiting` counts what has yet to go out, `behind` the repositories that are stale or failing, and `lag` is the
    largest lag in seconds. `seq` is how far it has read the stream of turns.
    """

    KIND = "node"

    node: str
    version: str
    started_at: str
    at: str
    url: str | None
    machine: str
    repos: int
    sessions: int
    behind: int
    lag: float | None
    waiting: int
    seq: int

    def check(self) -> None:
        """Raises NotOurs."""
        _require(_NODE, "node", self.node)
        _require(_TIME, "at", self.at)
        _require(_TIME, "started_at", self.started_at)


@dataclass(frozen=True)
class LeaseEntry:
    """`node` asks the upstream of `repo` for the others."""

    KIND = "lease"

    node: str
    repo: str

    def check(self) -> None:
        """Raises NotOurs."""
        _of_repo(self.node, self.repo)


@dataclass(frozen=True)
class News:
    """`node` has looked at the upstream `url` of `repo`, `age` seconds ago, and looks again in `next` seconds.

    Its mirror is up to date unless there is an `error` (of the kind `error_kind`; the upstream wants no request for
    `retry_after` seconds). `digest` is the SHA-256 of the mirror's refs and HEAD (see `neighbours`), so a node with
    the same needs no fetch; None if the mirror differs from its upstream. `moved` says whether this look brought
    anything, and `credential` whether it took one.
    """

    KIND = "news"

    node: str
    repo: str
    url: str
    digest: str | None
    age: float
    moved: bool
    next: float = 0.0
    credential: bool = False
    error: str | None = None
    error_kind: str | None = None
    retry_after: float | None = None

    def check(self) -> None:
        """Raises NotOurs."""
        _of_repo(self.node, self.repo)
        _require(_HASH, "digest", self.digest, absent=True)
        for name in ("age", "next", "retry_after"):
            if not 0 <= (getattr(self, name) or 0.0) < LONGEST:
                raise NotOurs(f"{name} is out of range")


@dataclass(frozen=True)
class LookRequest:
    """`node` wants to know what the upstream `url` of `repo` has. A look that began `age` seconds ago will do.

    With `insists`, an operator asks, so that the upstream's Retry-After does not count.
    """

    KIND = "ask"

    node: str
    repo: str
    url: str
    age: float
    insists: bool = False

    def check(self) -> None:
        """Raises NotOurs."""
        _of_repo(self.node, self.repo)
        if not 0 <= self.age < LONGEST:
            raise NotOurs("age is out of range")


@dataclass(frozen=True)
class NodeForgotten:
    """An operator of the node `by` forgot `node`: what that one said before this message counts no more."""

    KIND = "forgotten"

    node: str
    by: str

    def check(self) -> None:
        """Raises NotOurs."""
        _require(_NODE, "node", self.node)
        _require(_NODE, "by", self.by)


@dataclass(frozen=True)
class LogHead:
    """The newest event of a node's audit log. `log` is the hash of its first event, and tells one log from another."""

    KIND = "head"

    node: str
    log: str
    id: int
    hash: str
    at: str

    def check(self) -> None:
        """Raises NotOurs."""
        _require(_NODE, "node", self.node)
        _require(_HASH, "log", self.log)
        _require(_HASH, "hash", self.hash)
        _require(_TIME, "at", self.at)


def _of_repo(node: str, repo: str) -> None:
    _require(_NODE, "node", node)
    if not is_repo_name(repo):
        raise NotOurs("repo is not OWNER/REPO")


def _of_turn(node: str, repo: str, session: str) -> None:
    _of_repo(node, repo)
    if session_of(f"{AGENTS}{session}") is None:
        raise NotOurs("session is no session's name")


def _require(pattern: re.Pattern[str], name: str, value: str | None, *, absent: bool = False) -> None:
    if value is None and absent:
        return
    if value is None or not pattern.fullmatch(value):
        raise NotOurs(f"{name} is malformed")
