"""What a guest may write: `refs/agents/<session>` and nothing else. Pure, and with no import but `re`.

Both guards use it: the relay imports it, the pre-receive hook gets a copy of this very file beside it.
"""

from __future__ import annotations

import re

MOST_REFS = 16
"""Refs that one push may carry."""

MOST_UNPACKED = 4 * 2**30
"""Bytes of all new objects of a push, unpacked: a pack of kilobytes can hold gigabytes."""
MOST_FILES = 99_999
"""Files that the new directories of a push may name, each as often as a checkout would write it."""

AGENTS = "refs/agents/"
ALLOWED = (
    "refs/agents/SESSION, where SESSION is 1 to 128 of A-Z a-z 0-9 . _ -, "
    "not starting with . or -, without .., not ending in . or .lock"
)

_SESSION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_OID = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


def session_of(ref: str) -> str | None:
    """The session that a ref records, or None when the ref is not one that may be written."""
    session = ref.removeprefix(AGENTS)
    if session == ref or not _SESSION.fullmatch(session):
        return None
    if ".." in session or session.endswith((".", ".lock")):
        return None
    return session


def refusal_of(old: str, new: str, ref: str) -> str | None:
    """Why one ref command is refused, or None. `old` and `new` are object ids in hex, zeros for none."""
    if not _OID.fullmatch(old) or not _OID.fullmatch(new):
        return "malformed object id"
    if session_of(ref) is None:
        if ref.startswith(("refs/heads/", "refs/tags/")):
            return "branches and tags are the upstream's: push them there"
        return "only refs/agents/SESSION may be written"
    if not new.strip("0"):
        return "recorded sessions cannot be deleted"
    return None


def review(commands: list[tuple[str, str, str]]) -> dict[str, str]:
    """The reason for each refused ref of a push of (old, new, ref); empty when the whole push is allowed."""
    if len(commands) > MOST_REFS:
        reason = f"{len(commands)} refs in one push, at most {MOST_REFS} are allowed"
        return {ref: reason for _, _, ref in commands}
    refused: dict[str, str] = {}
    seen: set[str] = set()
    for old, new, ref in commands:
        refusal = "named twice in one push" if ref in seen else refusal_of(old, new, ref)
        seen.add(ref)
        if refusal:
            refused[ref] = refusal
    if refused:
        # All or nothing: an agent that sees half of its push done does not look at the other half.
        for _, _, ref in commands:
            refused.setdefault(ref, "another ref of this push was refused")
    return refused


def count_files(trees: dict[bytes, list[tuple[bool, bytes]]]) -> int:
    """Files below the largest of new trees, those in old subtrees left out; stops counting past MOST_FILES.

    `trees` has the entries of each new tree: whether a directory, and its object id. Ten trees that name the one below
    ten times each are ten thousand million files; each tree is looked at once.
    """
    counted: dict[bytes, int] = {}
    for top in trees:
        pending = [top]
        while pending:
            tree = pending[-1]
            if tree in counted:
                pending.pop()
                continue
            below = [oid for is_tree, oid in trees[tree] if is_tree and oid in trees]
            missing = [oid for oid in below if oid not in counted]
            if missing:
                pending += missing
                continue
            files = sum(1 for is_tree, _ in trees[tree] if not is_tree)
            counted[tree] = min(files + sum(counted[oid] for oid in below), MOST_FILES + 1)
            pending.pop()
    return max(counted.values(), default=0)
