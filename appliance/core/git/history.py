"""What a recorded commit changed: where it branched off the upstream's history, and how much it added."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from appliance.core.git.mirror import QUICK, Mirror
from appliance.core.git.ref_sets import ANCHORS

DEADLINE = 30.0
LONGEST_SUBJECT = 500
"""Characters of a subject that are stored. A guest may write hundreds of megabytes into one line."""
MOST_MEETINGS = 256
"""The most merge points with the upstream's history that are compared; an agent merges only a handful of times."""

_CHANGED = re.compile(r"(\d+) files? changed(?:, (\d+) insertions?\(\+\))?(?:, (\d+) deletions?\(-\))?")


@dataclass(frozen=True)
class Changed:
    """The size of a diff."""

    files_changed: int = 0
    insertions: int = 0
    deletions: int = 0


@dataclass(frozen=True)
class TurnFacts:
    """One recorded commit. `committed_at`, in Unix seconds, is whatever the guest wrote.

    `base` is the upstream commit that the work started from, None for unrelated history. `commits` counts the commits
    on top of the base. `changed` is the diff from base to commit, or from the empty tree if there is no base.
    """

    commit: str
    base: str | None
    subject: str
    commits: int
    changed: Changed
    committed_at: int


async def turn_facts(mirror: Mirror, commit: str) -> TurnFacts:
    """Collects the facts about a recorded commit. Raises GitError.

    The base is the newest commit that the recorded history shares with the upstream's branches, tags and anchors (their
    earlier values). This holds for agents that commit or merge themselves, and after a force-push.
    """
    # Print only commit ids, because everything else in a commit is text that the guest wrote.
    output = await mirror.git.run(
        "rev-list", "--boundary", commit, "--not", "--branches", "--tags", f"--glob={ANCHORS}*", "--",
        cwd=mirror.path, deadline=DEADLINE,
    )  # fmt: skip
    lines = output.stdout.decode("ascii").split()
    meetings = [line[1:] for line in lines if line.startswith("-")]
    commits = len(lines) - len(meetings)
    # With no commits on top, the commit is one of the upstream's.
    base = await _newest(mirror, meetings) if commits else commit
    committed_at, subject = await _head_lines(mirror, commit)
    return TurnFacts(commit, base, subject, commits, await changed_between(mirror, base, commit), committed_at)


async def _newest(mirror: Mirror, meetings: list[str]) -> str | None:
    """The commit that no other in `meetings` builds on; of several (an agent merged two branches), the newest."""
    if len(meetings) < 2:
        return meetings[0] if meetings else None
    independent = await mirror.git.run(
        "merge-base", "--independent", *meetings[:MOST_MEETINGS], cwd=mirror.path, deadline=DEADLINE
    )
    candidates = independent.stdout.decode("ascii").split()
    if len(candidates) == 1:
        return candidates[0]
    newest = await mirror.git.run(
        "rev-list", "--no-walk=sorted", "--max-count=1", *candidates, "--", cwd=mirror.path, deadline=QUICK
    )
    return newest.stdout.decode("ascii").strip()


async def _head_lines(mirror: Mirror, commit: str) -> tuple[int, str]:
    """The time of the commit, in Unix seconds, and its subject."""
    output = await mirror.git.run(
        "log", "-1", f"--format=%ct %<({LONGEST_SUBJECT},trunc)%s", commit, "--", cwd=mirror.path, deadline=QUICK
    )
    at, _, subject = output.stdout.decode("utf-8", "replace").partition(" ")
    return int(at), subject.strip()[:LONGEST_SUBJECT]


async def changed_between(mirror: Mirror, old: str | None, new: str) -> Changed:
    """The numbers of `git diff --shortstat`. Raises GitError."""
    if old == new:
        return Changed()
    if old is None:
        old = await empty_tree(mirror)
    output = await mirror.git.run(
        "diff", "--shortstat", "--no-ext-diff", "--no-textconv", old, new, "--", cwd=mirror.path, deadline=DEADLINE
    )
    return parse_shortstat(output.stdout.decode())


async def sizes_between(mirror: Mirror, pairs: Sequence[tuple[str, str]]) -> list[Changed]:
    """The numbers of `git diff --shortstat` for each pair (old, new), in one git process. Raises GitError."""
    if not pairs:
        return []
    asked = "".join(f"{new} {old}\n" for old, new in pairs).encode()
    output = await mirror.git.run(
        "diff-tree", "--stdin", "-r", "--always", "--shortstat", "--find-renames", "--no-ext-diff", "--no-textconv",
        cwd=mirror.path, deadline=DEADLINE, stdin=asked,
    )  # fmt: skip
    found: list[Changed] = []
    for line in output.stdout.decode().splitlines():
        if line.startswith(" "):
            found[-1] = parse_shortstat(line)
        elif line:
            # The id of a pair's new commit; its numbers follow, unless nothing differs.
            found.append(Changed())
    return found


async def empty_tree(mirror: Mirror) -> str:
    """The id of the empty tree, which git knows without storing it; it depends on the repository's hash algorithm."""
    output = await mirror.git.run("hash-object", "-t", "tree", "/dev/null", cwd=mirror.path, deadline=QUICK)
    return output.stdout.decode("ascii").strip()


def parse_shortstat(text: str) -> Changed:
    """The numbers of `git diff --shortstat`, which prints nothing for an empty diff."""
    match = _CHANGED.search(text)
    return Changed(*(int(number or 0) for number in match.groups())) if match else Changed()
