"""What a guest may write: `refs/agents/<session>` and nothing else. Pure.

Both guards use it: the PushAuthorizer imports it, and the pre-receive hook gets a copy of this file beside it. It
imports nothing: `re` would nearly double what a start of Python costs, and each push waits for one.
"""

from __future__ import annotations

MOST_REFS = 16
"""The most refs in one push."""

MOST_UNPACKED = 4 * 2**30
"""The most bytes of all new objects of a push, unpacked, because a pack of kilobytes can hold gigabytes."""
MOST_FILES = 99_999
"""The most files in the new directories of a push, each counted as often as a checkout would write it."""

AGENTS = "refs/agents/"
EVERY_SESSION = ("*",)
MOST_NAMED = 5
"""The most sessions that a refusal names."""
ALLOWED = (
    "refs/agents/SESSION, where SESSION is 1 to 128 of A-Z a-z 0-9 . _ -, "
    "not starting with . or -, without .., not ending in . or .lock"
)

_LONGEST = 128
_LETTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-")
_HEX = frozenset("0123456789abcdef")


def session_of(ref: str) -> str | None:
    """The session of a ref, or None if guests may not write the ref."""
    session = ref.removeprefix(AGENTS)
    if session == ref or not 1 <= len(session) <= _LONGEST or not _LETTERS.issuperset(session):
        return None
    if session.startswith((".", "-")) or ".." in session or session.endswith((".", ".lock")):
        return None
    return session


def may_write(session: str, patterns: tuple[str, ...]) -> bool:
    """Whether `patterns` allow a session: each is the name of one, or with `*` at its end, a beginning of names."""
    return any(
        session.startswith(pattern[:-1]) if pattern.endswith("*") else session == pattern for pattern in patterns
    )


def refusal_of(old: str, new: str, ref: str) -> str | None:
    """Why one ref command is refused, or None. `old` and `new` are object ids in hex; all zeros means none."""
    if not _is_oid(old) or not _is_oid(new):
        return "malformed object id"
    if session_of(ref) is None:
        if ref.startswith(("refs/heads/", "refs/tags/")):
            return "branches and tags are the upstream's: push them there"
        return "only refs/agents/SESSION may be written"
    if not new.strip("0"):
        return "recorded sessions cannot be deleted"
    return None


def _is_oid(word: str) -> bool:
    return len(word) in (40, 64) and _HEX.issuperset(word)


def review(commands: list[tuple[str, str, str]], sessions: tuple[str, ...] = EVERY_SESSION) -> dict[str, str]:
    """The reason for each refused ref of a push of (old, new, ref); empty if the whole push is allowed.

    `sessions` are the patterns of those that this guest may write.
    """
    if len(commands) > MOST_REFS:
        reason = f"{len(commands)} refs in one push, at most {MOST_REFS} are allowed"
        return {ref: reason for _, _, ref in commands}
    refused: dict[str, str] = {}
    seen: set[str] = set()
    for old, new, ref in commands:
        refusal = "named twice in one push" if ref in seen else refusal_of(old, new, ref)
        if refusal is None and not may_write(session_of(ref) or "", sessions):
            refusal = _not_its_own(sessions)
        seen.add(ref)
        if refusal:
            refused[ref] = refusal
    if refused:
        # All or nothing, because an agent that sees half of its push applied does not look at the other half.
        for _, _, ref in commands:
            refused.setdefault(ref, "another ref of this push was refused")
    return refused


def _not_its_own(sessions: tuple[str, ...]) -> str:
    if not sessions:
        return "this guest may write no session"
    return f"this guest may only write {named(sessions)}"


def named(sessions: tuple[str, ...]) -> str:
    """The refs of session patterns, or of the first of many."""
    more = f" and {len(sessions) - MOST_NAMED} more" if len(sessions) > MOST_NAMED else ""
    return ", ".join(AGENTS + session for session in sessions[:MOST_NAMED]) + more


def count_files(trees: dict[bytes, list[tuple[bool, bytes]]]) -> int:
    """The number of files below the largest new tree, without those in old subtrees; at most MOST_FILES + 1.

    `trees` has the entries of each new tree: whether an entry is a directory, and its object id. Ten trees that each
    name the next one ten times are ten thousand million files, so each tree is counted only once.
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


def parse_trees(data: bytes) -> dict[bytes, list[tuple[bool, bytes]]]:
    """Parses `cat-file --batch` output: for each tree, its entries: whether a directory, and the object id."""
    trees: dict[bytes, list[tuple[bool, bytes]]] = {}
    at = 0
    while at < len(data):
        end = data.index(b"\n", at)
        oid, _, size = data[at:end].split()
        at, stop = end + 1, end + 1 + int(size)
        width = len(oid) // 2
        entries = trees[oid] = []
        while at < stop:
            name_end = data.index(b"\0", at)
            entries.append((data[at : at + 2] == b"40", data[name_end + 1 : name_end + 1 + width].hex().encode()))
            at = name_end + 1 + width
        at = stop + 1
    return trees
