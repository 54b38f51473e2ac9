"""One refresh: what it was asked for, how far it is, and what it found out."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from appliance.core.events.fetch_progress import FetchProgress
from appliance.core.git.failures import Kind
from appliance.core.models import RefChange, Repo
from appliance.core.refresh.left_out import in_one_sentence
from appliance.core.text import storable

Progress = Callable[[str], None]


@dataclass
class RefreshRun:
    """One running refresh, for observers. `fetching` is False while it only lists the upstream's refs.

    It was `asked` for, so what the upstream had before does not do; with `insists`, an operator asked. The upstream
    must not be asked for another `held_back` seconds. `progress` is how far its fetch is, and `since` when it began, on
    the monotonic clock.
    """

    repo: Repo
    on_progress: Progress | None = None
    fetching: bool = False
    asked: bool = False
    insists: bool = False
    held_back: float = 0.0
    progress: FetchProgress = field(default_factory=FetchProgress)
    since: float = field(default_factory=time.monotonic)

    def told(self, line: str) -> None:
        """Takes a line of git's progress."""
        self.progress = self.progress.after(line)
        if self.on_progress is not None:
            self.on_progress(line)

    def document(self) -> dict[str, Any]:
        """How far it is, as the pulse has it."""
        return self.progress.document() | {"seconds": round(time.monotonic() - self.since, 3)}


@dataclass(frozen=True)
class Heard:
    """Another node looked at the upstream, `age` seconds ago, and looks again in `next_in` seconds."""

    age: float
    next_in: float


@dataclass(frozen=True)
class MirrorFacts:
    """The state of a mirror after a refresh. `size` is None if nothing moved, because it was not measured then.

    `left_out` are the upstream refs that the mirror could not store, with the reason for each. `heard` is set if
    another node looked at the upstream. The upstream was asked `asked_after` seconds after the refresh began.
    """

    tip: str | None
    head: str | None
    refs: int
    size: int | None
    moved: tuple[RefChange, ...] = field(default=())
    left_out: Mapping[str, str] = field(default_factory=dict)
    heard: Heard | None = None
    asked_after: float = 0.0

    def columns(self, started_at: float) -> dict[str, Any]:
        """The columns of Health after a successful refresh that began at `started_at`, in Unix seconds."""
        asked_at = started_at + self.asked_after
        columns: dict[str, Any] = {
            "checked_at": asked_at,
            "verified_at": asked_at,
            "last_error": in_one_sentence(self.left_out) if self.left_out else None,
            "error_kind": str(Kind.REF) if self.left_out else None,
            "retry_at": None,
            "failures": 0,
            "cloned": True,
            "tip": self.tip,
            "head": storable(self.head) if self.head else None,
            "refs": self.refs,
        }
        return columns if self.size is None else columns | {"size": self.size}
