"""The refs that the database knows and a mirror must have."""

from __future__ import annotations

from collections.abc import Mapping

from appliance.core.recording.policy import AGENTS
from appliance.core.recording.turns import ARCHIVE, TURNS
from appliance.core.store.stores import Stores

RecordedRefs = Mapping[str, str]
"""Ref names with the object id that each must have."""


def recorded_refs(stores: Stores, repo: str) -> RecordedRefs:
    """Returns the sessions and turns of a repository. Raises StoreError."""
    refs: dict[str, str] = {}
    for session in stores.sessions.all(repo):
        name = session["session"]
        refs[f"{ARCHIVE if session['archived'] else AGENTS}{name}"] = session["tip"]
        refs |= {f"{TURNS}{turn.id}": turn.commit for turn in stores.sessions.turns(repo, name)}
    return refs
