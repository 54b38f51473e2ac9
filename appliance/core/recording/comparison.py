"""Decides which two commits a diff of a session compares. Pure: it reads the database and never a mirror.

The commands, the live view and the API all ask `compare`, so `--against` means the same everywhere.

What two sessions did differently is the diff of their trees. If they started from different commits of the upstream,
that diff also has how those commits differ, and `note` says so. The trees are compared all the same, because the
result is then exact, applies to the other session's files, and never fails. `git range-diff` pairs commits, and says
nothing about two sessions whose commits are unlike; replaying one session on the other's base can end in conflicts.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from appliance.core.errors import NotFound, UsageError
from appliance.core.models import Turn
from appliance.core.store.stores import Stores

BASE, PREVIOUS = "base", "previous"
UNRELATED = "its history is unrelated to the upstream's"

_NAME_AND_TURN = re.compile(r"(.+)@([0-9]{1,9})", re.DOTALL)


@dataclass(frozen=True)
class Side:
    """One side of a comparison: turn number `turn` of `session`, or for None the commit that the session started from.

    `base` is that commit: the newest one of the upstream in its history, None when it has none.
    """

    session: str
    turn: int | None
    base: str | None

    @property
    def words(self) -> str:
        """What the side is, as a part of a sentence."""
        return f"the base of {self.session}" if self.turn is None else f"turn {self.turn} of {self.session}"


@dataclass(frozen=True)
class Comparison:
    """A diff from `old` to `new`. `commits` are theirs; the old one is None when all of the new is to be shown."""

    repo: str
    old: Side
    new: Side
    commits: tuple[str | None, str]

    @property
    def words(self) -> str:
        """What is compared, as `turn 2 of fix-dns against turn 1 of fix-dns`."""
        return f"{self.new.words} against {self.old.words}"

    @property
    def note(self) -> str:
        """Why the diff has more in it than agents did, or an empty string."""
        if self.commits[0] is None:
            return f"{UNRELATED}: everything is shown"
        if self.old.base == self.new.base:
            return ""
        sides = (self.new, self.old)
        if unrelated := [side.words for side in sides if side.base is None]:
            return (
                f"the history of {unrelated[0]} is unrelated to the upstream's: the diff also has what it started with"
            )
        bases = ", ".join(f"{str(side.base)[:12]} of {side.words}" for side in sides)
        return f"the bases differ, so the diff also has what the upstream changed between them: {bases}"


def turns_of(stores: Stores, comparison: Comparison) -> list[Turn]:
    """The turns that a comparison needs; a base is below the turn that started from it. Raises StoreError."""
    found = []
    for side in (comparison.old, comparison.new):
        turns = stores.sessions.turns(comparison.repo, side.session) if side.turn is not None else []
        found += turns[(side.turn or 1) - 1 : side.turn]
    return found


def nodes_of(turns: Sequence[Turn]) -> list[str]:
    """The nodes of the fleet that took turns of a session, by name; none on a node alone."""
    return sorted({turn.node for turn in turns if turn.node is not None})


class Other(NamedTuple):
    """A session to compare with, by its whole name, and its turn; None is the last."""

    session: str
    turn: int | None


def compare(stores: Stores, repo: str, session: str, turn: int | None, against: str | Other | None) -> Comparison:
    """Resolves what a diff of `session` compares; `turn` counts from 1, and None is the last turn.

    `session` is a whole name: `find_session` finds it by its beginning. `against` is `base`, which is the base of the
    turn; `previous`, which is the turn before, and for the first turn its base; or another session of the repository,
    in the words of `find_other`. None means `base` without a turn and `previous` with one. Raises NotFound and
    UsageError.
    """
    turns = stores.sessions.turns(repo, session)
    number, chosen = find_turn(session, turns, turn)
    if against is None:
        against = BASE if turn is None else PREVIOUS
    old: tuple[Side, str | None]
    if against == PREVIOUS and number > 1:
        old = _turn_side(session, turns, number - 1)
    elif against in (BASE, PREVIOUS):
        old = Side(session, None, chosen.base), chosen.base
    else:
        other = find_other(stores, repo, against) if isinstance(against, str) else against
        old = _turn_side(other.session, stores.sessions.turns(repo, other.session), other.turn)
    return Comparison(repo, old[0], Side(session, number, chosen.base), (old[1], chosen.commit))


def find_other(stores: Stores, repo: str, text: str) -> Other:
    """Reads `SESSION` or `SESSION@TURN`, where the session's name may be shortened as in `find_session`.

    Names that guests push hold no `@`, but a session that was found in a mirror may have one. So a session of exactly
    that name comes first, and `SESSION@TURN` is never the beginning of a longer name. A session that is called `base`
    or `previous` is named with its turn. Raises NotFound and UsageError.
    """
    if stores.sessions.get(repo, text) is None and (match := _NAME_AND_TURN.fullmatch(text)):
        return Other(find_session(stores, repo, match[1])["session"], int(match[2]))
    return Other(find_session(stores, repo, text)["session"], None)


def find_session(stores: Stores, repo: str, name: str, *, whole: bool = False) -> dict[str, Any]:
    """The session of that name, or unless it is `whole`, the only one whose name starts with it.

    Raises NotFound and UsageError.
    """
    # An empty name is a script's unset variable, and not the beginning of every name.
    matches = stores.sessions.matching(repo, name) if name else []
    if not matches:
        stores.registry.get(repo)
        raise NotFound(f"{repo} has no session {name or 'without a name'}", hint=f"`sessions --repo {repo}` lists them")
    if whole and matches[0]["session"] != name:
        some = ", ".join(row["session"] for row in matches[:5])
        raise NotFound(f"{repo} has no session {name}", hint=f"give the whole name of the one that you mean: {some}")
    if len(matches) > 1:
        some = ", ".join(row["session"] for row in matches[:5])
        raise UsageError(f"{len(matches)} sessions of {repo} start with {name}", hint=f"give more of the name: {some}")
    return matches[0]


def find_turn(session: str, turns: Sequence[Turn], number: int | None) -> tuple[int, Turn]:
    """A turn of `turns` and its number, or the last one for None. Raises NotFound."""
    if not turns:
        raise NotFound(f"{session} has no turns any more", hint="it was ended meanwhile; `sessions` lists what is")
    if number is not None and not 1 <= number <= len(turns):
        # A command is used wrongly then, as before.
        hint = f"its turns are 1 to {len(turns)}"
        raise NotFound(f"{session} has no turn {number}", hint=hint, exit_code=UsageError.default_exit_code)
    chosen = number or len(turns)
    return chosen, turns[chosen - 1]


def _turn_side(session: str, turns: Sequence[Turn], number: int | None) -> tuple[Side, str]:
    found, turn = find_turn(session, turns, number)
    return Side(session, found, turn.base), turn.commit
