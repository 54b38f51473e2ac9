"""Rows that screens show and that core has no type for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

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

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> SessionRow:
        """Makes one from an element of a listing."""
        return cls(
            row["repo"], row["session"], row["tip"], row["base"], row["turns"], row["commits"], row["files_changed"],
            row["insertions"], row["deletions"], seconds_of(row["first_at"]), seconds_of(row["last_at"]),
            row["client"], row["kept"], row["archived"], row["bytes"], row["subject"] or "",
        )  # fmt: skip


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
