"""Rows that screens show and that core has no type for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from appliance.core.models import FileChange
from appliance.tui.data.activity import seconds_of
from appliance.tui.text import Piece


@dataclass(frozen=True)
class SessionRow:
    """One session of an agent. Times are Unix seconds, `bytes` is what its packs take on disk."""

    repo: str
    name: str
    tip: str
    base: str | None
    turns: int
    commits: int
    files: int
    insertions: int
    deletions: int
    first_at: float
    last_at: float
    client: str
    kept: bool
    archived: bool
    bytes: int
    subject: str
    guest: str | None = None
    """The known guest that recorded the last turn."""
    node: str | None = None
    """The node of the fleet that recorded the last turn; None on a node alone."""

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> SessionRow:
        """Makes one from an element of a listing."""
        return cls(
            row["repo"], row["session"], row["tip"], row["base"], row["turns"], row["commits"], row["files_changed"],
            row["insertions"], row["deletions"], seconds_of(row["first_at"]), seconds_of(row["last_at"]),
            row["client"], row["kept"], row["archived"], row["bytes"], row["subject"] or "", row["guest"],
            row.get("node"),
        )  # fmt: skip


@dataclass(frozen=True)
class GuestRow:
    """One known guest; see `models.Guest`. Times are Unix seconds, and what it never did is None or empty."""

    name: str
    sessions: tuple[str, ...]
    repos: tuple[str, ...]
    only: bool
    unix: str | None
    address: str | None
    has_token: bool
    created_at: float
    expires_at: float | None
    last_at: float | None
    last_what: str
    last_repo: str

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> GuestRow:
        """Makes one from an element of a listing."""
        last, expires_at = row["last"], row["expires_at"]
        return cls(
            row["name"], tuple(row["sessions"]), tuple(row["repos"]), row["only"], row["unix"], row["address"],
            row["has_token"], seconds_of(row["created_at"]), None if expires_at is None else seconds_of(expires_at),
            seconds_of(last["at"]) if last else None, last["what"] if last else "", last["repo"] if last else "",
        )  # fmt: skip

    @property
    def ways(self) -> str:
        """Which ways it comes; the path is last, because its end says the most."""
        return ", ".join(filter(None, ("token" if self.has_token else None, self.address, self.unix)))


@dataclass(frozen=True)
class FilePair:
    """One file that either of two sessions changed; `alike` means that both have the same contents in the end."""

    path: str
    left: FileChange | None
    right: FileChange | None
    alike: bool


@dataclass(frozen=True)
class NoteRow:
    """A note of turn number `turn`, or with a `size` in bytes a file that is attached to it."""

    turn: int
    name: str
    value: str
    size: int | None

    @property
    def is_file(self) -> bool:
        """Whether it is an attachment."""
        return self.size is not None


@dataclass(frozen=True)
class DiffLine:
    """One line of a diff. `mark` is `+`, `-`, a space, `@` for a hunk's head, or `!` for a remark about the file."""

    mark: str
    old: int | None
    new: int | None
    pieces: tuple[Piece, ...]


@dataclass(frozen=True)
class CheckRow:
    """One check of `doctor`, or a warning of serve; `mend` says what to do when it is not `ok`."""

    name: str
    ok: bool
    found: str
    mend: str
