"""What is typed to find sessions: words, and `path:`, `since:`, `before:`, `repo:` and `guest:`. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from appliance.core.units import parse_moment
from appliance.tui.data.activity import seconds_of
from appliance.tui.data.rows import SessionRow

SYNTAX = 'words, or "a phrase", in names and messages · path:src/x.py · since:2h · before:7d · repo:NAME · guest:NAME'
"""Says what can be typed."""
Key = tuple[str, str]
"""The repository and the name of a session."""

_TERM = re.compile(r'(?:[^\s"]|"[^"]*"?)+')
_KEYS = ("path", "since", "before", "repo", "guest")


@dataclass(frozen=True)
class Sought:
    """What only the database can look up: a path that turns touched, and words that their messages may have."""

    path: str | None = None
    words: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return self.path is not None or bool(self.words)


@dataclass(frozen=True)
class Found:
    """Which sessions the database knows for `sought`; `left` is how many turns could not be searched yet."""

    sought: Sought = Sought()
    touched: frozenset[Key] = frozenset()
    said: Mapping[str, frozenset[Key]] = field(default_factory=dict)
    left: int = 0


@dataclass(frozen=True)
class SessionQuery:
    """A filter of sessions. Times are Unix seconds; `wrong` says what cannot be understood, and then nothing matches.

    `guest` is exactly the known guest of the last turn, and `repo` exactly the repository or the end of its name.
    """

    sought: Sought = Sought()
    since: float | None = None
    before: float | None = None
    repo: str | None = None
    guest: str | None = None
    meaning: str = ""
    wrong: str = ""

    @property
    def advice(self) -> str:
        """What to try when nothing matches, for a file that is sought by another name than its path; with a space."""
        if self.sought.path is not None:
            return "Type a path whole: src/x.py. "
        if any("/" in word or "." in word for word in self.sought.words):
            return "For a file: path:src/x.py. "
        return ""

    def matches(self, row: SessionRow, found: Found) -> bool:
        """Whether the session matches, as far as `found` tells; words of its row match at once."""
        if (
            self.wrong
            or (self.since is not None and row.last_at < self.since)
            or (self.before is not None and row.last_at >= self.before)
            or (self.guest is not None and row.guest != self.guest)
            or (self.repo is not None and self.repo not in (row.repo, row.repo.rpartition("/")[2]))
        ):
            return False
        if not self.sought:
            return True
        key = row.repo, row.name
        if self.sought.path is not None and key not in found.touched:
            return False
        text = _text(row)
        return all(word in text or key in found.said.get(word, ()) for word in self.sought.words)


def parse_query(text: str, now: float) -> SessionQuery:
    """Reads what was typed; durations are before `now`, in Unix seconds."""
    words: list[str] = []
    given: dict[str, str] = {}
    for term in _TERM.findall(text):
        key, colon, value = term.partition(":")
        value = value.replace('"', "")
        if colon and key in given:
            return SessionQuery(wrong=f"{key}: is given twice")
        if colon and key in _KEYS:
            given |= {key: value} if value else {}
        elif word := term.replace('"', "").casefold():
            words.append(word)
    times: dict[str, float] = {}
    for key in ("since", "before"):
        if key in given:
            try:
                times[key] = seconds_of(parse_moment(given[key], now))
            except ValueError as error:
                return SessionQuery(wrong=f"{key}:{given[key]} is not {error}")
    return SessionQuery(
        Sought(given.get("path"), tuple(dict.fromkeys(words))),
        times.get("since"),
        times.get("before"),
        given.get("repo"),
        given.get("guest"),
        _meaning(words, given),
    )


def _meaning(words: list[str], given: Mapping[str, str]) -> str:
    """Says in words what the filter means, so that nobody needs to know its syntax."""
    parts = [f"touched {given['path']}, or something below it"] if "path" in given else []
    parts += [f"have {' and '.join(words)} in the name or a message"] if words else []
    parts += [f"were written since {_moment(given['since'], '')}"] if "since" in given else []
    parts += [f"were last written {_moment(given['before'], 'before ')}"] if "before" in given else []
    parts += [f"are of {given['repo']}"] if "repo" in given else []
    parts += [f"were last written by {given['guest']}"] if "guest" in given else []
    return f"sessions that {'; '.join(parts)}" if parts else ""


def _moment(text: str, word: str) -> str:
    """Words a duration before now, or a time."""
    if text[-1] not in "smhd":
        return f"{word}{text}"
    return f"{'more than ' if word else ''}{text} ago"


def _text(row: SessionRow) -> str:
    return f"{row.name} {row.repo} {row.client} {row.guest or ''} {row.node or ''} {row.subject}".casefold()
