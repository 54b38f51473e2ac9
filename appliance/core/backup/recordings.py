"""Finds which refs of a mirror are recorded work, from a copy of the log and from the mirror after the copy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from appliance.core.git.stored_refs import stored_refs
from appliance.core.recording.found import is_turn_number
from appliance.core.recording.policy import AGENTS
from appliance.core.recording.turns import ARCHIVE, TURNS
from appliance.core.store.stores import Stores

RECORDED = (AGENTS, ARCHIVE, TURNS)


def recorded_on_disk(mirror: Path) -> dict[str, str]:
    """The refs of recorded work in a mirror, read from its files without git. Raises OSError."""
    return {ref: oid for below in RECORDED for ref, oid in stored_refs(mirror, below).items()}


@dataclass(frozen=True)
class Logged:
    """The turns and sessions of one repository in a copied log: commits by turn id, and refs by session."""

    turns: dict[int, str] = field(default_factory=dict)
    sessions: dict[str, str] = field(default_factory=dict)


def logged(stores: Stores) -> dict[str, Logged]:
    """Reads the turns and sessions in the log, by repository. Raises StoreError."""
    names = {*stores.sessions.count_by_repo(), *(push.repo for push in stores.sessions.unbooked())}
    return {name: logged_of(stores, name) for name in sorted(names)}


def logged_of(stores: Stores, repo: str) -> Logged:
    """Reads the turns and sessions of one repository. A session is at its newest turn. Raises StoreError."""
    turns, archived = stores.sessions.recorded(repo), stores.sessions.archived(repo)
    tips = {turn.session: turn.commit for turn in turns}
    return Logged(
        {turn.id: turn.commit for turn in turns},
        {f"{ARCHIVE if name in archived else AGENTS}{name}": tip for name, tip in tips.items()},
    )


def recorded_refs(stores: Stores, repo: str, log: Logged, in_mirror: Mapping[str, str]) -> dict[str, str]:
    """Returns the refs to back up, as name to object id. Raises StoreError.

    Turns that the log calls applied are among them even if a session was ended since the copy. Turns that are newer
    than the copy are too: a restored `serve` finds them. Turns that the log calls failed or ended are not.
    """
    refs = {f"{TURNS}{number}": commit for number, commit in log.turns.items()}
    numbers = {
        int(number): oid
        for ref, oid in in_mirror.items()
        if ref.startswith(TURNS) and is_turn_number(number := ref.removeprefix(TURNS)) and ref not in refs
    }
    gone = set(stores.sessions.without_turn(repo, numbers))
    refs |= {f"{TURNS}{number}": oid for number, oid in numbers.items() if number not in gone}
    held = set(refs.values())
    refs |= {ref: oid for ref, oid in in_mirror.items() if ref.startswith((AGENTS, ARCHIVE)) and oid in held}
    for ref, tip in log.sessions.items():
        name = ref.removeprefix(AGENTS).removeprefix(ARCHIVE)
        if f"{AGENTS}{name}" not in refs and f"{ARCHIVE}{name}" not in refs:
            refs[ref] = tip
    return refs
