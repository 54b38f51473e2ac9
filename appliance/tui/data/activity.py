"""Hydrations, pushes and refreshes as rows, worded alike whether they come from the database or from events."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import count as counting
from typing import Any

from appliance.tui.text import WAYS, Cell, count

HYDRATION, PUSH, REFRESH = "hydration", "push", "refresh"
KEPT = 2000
"""The most rows that are kept; a busy node fills them in minutes, and the database has the rest."""

BROKEN = {"aborted": "broken off", "failed": "failed"}
"""The words for hydrations that their guests got only in part; a `serve` of the version before says nothing of it."""

SAME_WITHIN = 1.0
"""The most seconds by which an event's time differs from the database's: a push is stored, then reported."""


@dataclass(frozen=True)
class ActivityEntry:
    """A hydration, push or refresh that ended at Unix second `at`.

    `open` means that it is still going on: `at` is its start, and `match` finds it when its end is reported. `quiet`
    marks a refresh that moved nothing.
    """

    key: tuple[str, int]
    kind: str
    at: float
    repo: str
    said: Cell
    what: str
    client: str = ""
    bytes: int | None = None
    seconds: float | None = None
    open: bool = False
    quiet: bool = False
    match: tuple[Any, ...] = ()
    guest: str | None = None
    """The name of a known guest."""
    row: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)
    """The event, or the row of the database, that it was made from."""

    @property
    def refused(self) -> bool:
        """Whether it is a push that was refused, or that failed."""
        return self.row.get("verdict") == "rejected" or self.row.get("outcome") == "failed"

    def is_same(self, other: ActivityEntry) -> bool:
        """Whether both are about the same thing; the database and an event may give slightly different times for it."""
        facts = (self.kind, self.repo, self.what, self.client)
        same = facts == (other.kind, other.repo, other.what, other.client)
        return same and abs(self.at - other.at) < SAME_WITHIN


def seconds_of(at: str) -> float:
    """Converts an RFC 3339 time to Unix seconds."""
    return datetime.fromisoformat(at).timestamp()


Rows = Iterable[dict[str, Any]]


class ActivityFeed:
    """The last KEPT entries, newest first, with those that are still going on."""

    def __init__(self) -> None:
        self._keys = counting()
        self._rows: deque[ActivityEntry] = deque(maxlen=KEPT)
        self._open: Counter[tuple[Any, ...]] = Counter()
        self.read = False

    @property
    def rows(self) -> list[ActivityEntry]:
        """Newest first."""
        return list(self._rows)

    def fill(self, hydrations: Rows, pushes: Rows, refreshes: Rows) -> None:
        """Adds the rows from the database below those that events have already reported."""
        earliest = min((row.at for row in self._rows), default=float("inf"))
        told = [row for row in self._rows if row.at < earliest + SAME_WITHIN]
        found = [
            *(self._hydrated(row, seconds_of(row["at"])) for row in hydrations),
            *(self._attempted(row) for row in pushes),
            *(self._refreshed(row, seconds_of(row["started_at"]) + row["duration"]) for row in refreshes),
        ]
        found.sort(key=lambda entry: entry.at, reverse=True)
        older = [entry for entry in found if entry.at < earliest and not any(entry.is_same(row) for row in told)]
        self._rows.extend(older[: KEPT - len(self._rows)])
        self.read = True

    def take(self, events: Iterable[dict[str, Any]]) -> bool:
        """Adds events, oldest first, and returns whether any of them is shown."""
        makers: dict[str, Callable[[dict[str, Any], float], ActivityEntry | None]] = {
            "hydrating": self._hydrating,
            "hydrated": self._hydrated,
            "pushed": self._pushed,
            "recorded": self._recorded,
            "refreshed": self._refreshed,
        }
        shown = False
        for event in events:
            if event["event"] == "lost":
                self.forget_open()
            make = makers.get(event["event"])
            entry = make(event, seconds_of(event["at"])) if make else None
            if entry is not None:
                self._put(entry)
                shown = True
        return shown

    def forget_open(self) -> None:
        """Drops the entries that are still open, because nobody will report their end once serve is gone."""
        self._rows = deque((row for row in self._rows if not row.open), maxlen=KEPT)
        self._open.clear()

    def _put(self, entry: ActivityEntry) -> None:
        """Puts an entry on top, or in place of the open one that it ends."""
        if entry.open:
            self._open[entry.match] += 1
        elif self._open[entry.match]:
            self._open[entry.match] -= 1
            for place in range(len(self._rows) - 1, -1, -1):
                row = self._rows[place]
                if row.open and row.match == entry.match:
                    self._rows[place] = replace(entry, key=row.key)
                    return
        self._rows.appendleft(entry)

    def _key(self, kind: str, row: dict[str, Any]) -> tuple[str, int]:
        """Returns the row's own id, or a number of ours for an event, which has none."""
        return (kind, row["id"]) if "id" in row else ("event", next(self._keys))

    def _hydrating(self, event: dict[str, Any], at: float) -> ActivityEntry:
        said: Cell = (("◌ sending", "accent"),)
        key, repo, shape, client = self._key(HYDRATION, event), event["repo"], event["shape"], event["client"]
        return ActivityEntry(
            key,
            HYDRATION,
            at,
            repo,
            said,
            shape,
            client,
            open=True,
            match=_fetch(event),
            guest=_guest(event),
            row=event,
        )

    def _hydrated(self, event: dict[str, Any], at: float) -> ActivityEntry:
        shape, tone = WAYS.get(event["way"], ("○", ""))
        said: Cell = ((f"{shape} {event['way']}", tone),)
        if word := BROKEN.get(event.get("outcome", "")):
            said = ((f"✗ {word}", "warn"),)
        key, repo, client = self._key(HYDRATION, event), event["repo"], event["client"]
        figures = (event["bytes"], event["seconds"])
        return ActivityEntry(
            key,
            HYDRATION,
            at,
            repo,
            said,
            event["shape"],
            client,
            *figures,
            match=_fetch(event),
            guest=_guest(event),
            row=event,
        )

    def _pushed(self, event: dict[str, Any], at: float) -> ActivityEntry:
        refs = [ref.removeprefix("refs/agents/") for ref in event["refs"]]
        more = f" and {len(refs) - 1} more" if len(refs) > 1 else ""
        what = f"{refs[0]}{more}" if refs else ""
        key, repo, client = self._key(PUSH, event), event["repo"], event["client"]
        if event["verdict"] == "accepted":
            match = (repo, *event["refs"][:1], client)
            return ActivityEntry(
                key,
                PUSH,
                at,
                repo,
                (("◌ pushing", "accent"),),
                what,
                client,
                open=True,
                match=match,
                guest=_guest(event),
                row=event,
            )
        what = f"{what}: {event['reason']}" if event["reason"] else what
        return ActivityEntry(key, PUSH, at, repo, (("✗ refused", "bad"),), what, client, guest=_guest(event), row=event)

    def _recorded(self, event: dict[str, Any], at: float) -> ActivityEntry:
        what = f"{event['session'] or event['ref']}  {(event['new'] or '')[:10]}"
        key, repo, client = self._key(PUSH, event), event["repo"], event["client"]
        match = (repo, event["ref"], client)
        return ActivityEntry(
            key, PUSH, at, repo, (("▲ recorded", "good"),), what, client, match=match, guest=_guest(event), row=event
        )

    def _attempted(self, row: dict[str, Any]) -> ActivityEntry:
        what = f"{row['session'] or row['ref']}  {(row['new'] or '')[:10]}"
        said: Cell = (("▲ recorded", "good"),)
        if row["verdict"] == "rejected" or row["outcome"] == "failed":
            said = (("✗ refused" if row["verdict"] == "rejected" else "✗ failed", "bad"),)
            what = f"{row['session'] or row['ref']}: {row['reason']}"
        elif row["outcome"] == "pending":
            said = (("◌ pushing", "accent"),)
        at, repo, client = seconds_of(row["at"]), row["repo"], row["client"]
        return ActivityEntry(self._key(PUSH, row), PUSH, at, repo, said, what, client, guest=_guest(row), row=row)

    def _refreshed(self, event: dict[str, Any], at: float) -> ActivityEntry:
        seconds = event.get("duration", event.get("seconds"))
        moved = event["moved"]
        quiet = False
        if event["error"]:
            said: Cell = (("✗ failed", "bad"),)
            what = event["error"]
        elif moved:
            said = (("↓ moved", "accent"),)
            what = moved_words(moved)
        else:
            said, what, quiet = (("· same", "dim"),), "nothing moved", True
        return ActivityEntry(
            self._key(REFRESH, event), REFRESH, at, event["repo"], said, what, seconds=seconds, quiet=quiet, row=event
        )


def moved_words(moved: list[dict[str, Any]]) -> str:
    """Names what moved: `main 12ab34cd56, v1.2 1234567890 and 3 more`."""
    words = []
    for change in moved[:3]:
        ref = change["ref"].removeprefix("refs/heads/").removeprefix("refs/tags/")
        words.append(f"{ref} {change['new'][:10]}" if change["new"] else f"{ref} deleted")
    more = len(moved) - 3
    return ", ".join(words) + (f" and {count(more, 'more', 'more')}" if more > 0 else "")


def _guest(row: dict[str, Any]) -> str | None:
    """The name of a known guest; a `serve` of the version before says nothing about it."""
    return row.get("guest")


def _fetch(event: dict[str, Any]) -> tuple[Any, ...]:
    return event["repo"], event["want"], event["shape"], event["client"], event["protocol"]
