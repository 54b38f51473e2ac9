"""The refs of recorded work that a mirror must have, from the database."""

from __future__ import annotations

from collections.abc import Mapping

from appliance.core.backup.recordings import logged_of
from appliance.core.recording.found import unnamed_session
from appliance.core.recording.policy import AGENTS
from appliance.core.recording.turns import ARCHIVE, TURNS
from appliance.core.store.stores import Stores

RecordedRefs = Mapping[str, str]
"""Ref names with the object id that each must have."""


def recorded_refs(stores: Stores, repo: str) -> RecordedRefs:
    """Returns the refs of all sessions and turns of a repository. Raises StoreError.

    Turns that failed or whose session was ended are not among them. While a push to a session is open, the session's
    own ref is left out, because it may move at any moment; its turns are included. A session whose name nobody knows,
    because its turn was found in the mirror, has no ref.
    """
    # Read before the turns, so that a push that ends in between is in one of the two.
    moving = stores.sessions.being_pushed(repo)
    found = logged_of(stores, repo)
    without_ref = moving | {unnamed_session(number) for number in found.turns}
    refs = {ref: oid for ref, oid in found.sessions.items() if session_name(ref) not in without_ref}
    return refs | {f"{TURNS}{number}": commit for number, commit in found.turns.items()}


def session_name(ref: str) -> str:
    """The session that a ref below `refs/agents/` or in the archive belongs to."""
    return ref.removeprefix(AGENTS).removeprefix(ARCHIVE)


def twin(ref: str) -> str | None:
    """The other name that a session's ref may have, in or out of the archive. None for other refs."""
    if ref.startswith(AGENTS):
        return f"{ARCHIVE}{session_name(ref)}"
    return f"{AGENTS}{session_name(ref)}" if ref.startswith(ARCHIVE) else None
