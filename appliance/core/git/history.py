"""What a recorded commit changed: where it left the upstream's history, and how much came on top."""

from __future__ import annotations

import re
from dataclasses import dataclass

from appliance.core.git.mirror import QUICK, Mirror
from appliance.core.git.ref_lists import ANCHORS

DEADLINE = 30.0
LONGEST_SUBJECT = 500
"""Characters of a subject that are kept. A guest may write hundreds of megabytes into one line."""
MOST_MEETINGS = 256
"""Places where a recorded history touches the upstream's that are compared; an agent merges a handful of times."""

_CHANGED = re.compile(r"(\d+) files? changed(?:, (\d+) insertions?\(\+\))?(?:, (\d+) deletions?\(-\))?")


@dataclass(frozen=True)
class Changed:
    """A diff in numbers."""

    files_changed: int = 0
    insertions: int = 0
    deletions: int = 0


@dataclass(frozen=True)
class TurnFacts:
    """One recorded commit. `committed_at`, Unix seconds, is what its guest says.

    `base` is the upstream's commit it started from, None for unrelated history.

    `commits` counts what is on top of it, `changed` is the diff of base and commit (without base: of nothing and it).
    """

    commit: str
    base: str | None
    subject: str
    commits: int
    changed: Changed
    committed_at: int


async def turn_facts(mirror: Mirror, commit: str) -> TurnFacts:
    """Looks at a recorded commit. Raises GitError.

    The base is the newest commit at which the recorded history touches that of the upstream: branches, tags and the
    anchors of what they were. So it is right for agents that commit or merge by themselves and after a force-push.
    """
    # Nothing of a commit but its id is printed: whatever else is in it, the guest wrote.
    output = await mirror.git.run(
        "rev-list", "--boundary", commit, "--not", "--branches", "--tags", f"--glob={ANCHORS}*", "--",
        cwd=mirror.path, deadline=DEADLINE,
    )  # fmt: skip
    lines = output.stdout.decode("ascii").split()
    meetings = [line[1:] for line in lines if line.startswith("-")]
    commits = len(lines) - len(meetings)
    # With nothing on top the commit is the upstream's own.
    base = await _newest(mirror, meetings) if commits else commit
    committed_at, subject = await _head_lines(mirror, commit)
    return TurnFacts(commit, base, subject, commits, await changed_between(mirror, base, commit), committed_at)


async def _newest(mirror: Mirror, meetings: list[str]) -> str | None:
    """The one that no other builds on; of several (an agent merged two branches) the one committed last."""
    if len(meetings) < 2:
        return meetings[0] if meetings else None
    independent = await mirror.git.run(
        "merge-base", "--independent", *meetings[:MOST_MEETINGS], cwd=mirror.path, deadline=DEADLINE
    )
    found = independent.stdout.decode("ascii").split()
    if len(found) == 1:
        return found[0]
    newest = await mirror.git.run(
        "rev-list", "--no-walk=sorted", "--max-count=1", *found, "--", cwd=mirror.path, deadline=QUICK
    )
    return newest.stdout.decode("ascii").strip()


async def _head_lines(mirror: Mirror, commit: str) -> tuple[int, str]:
    """When it was committed, Unix seconds, and its subject."""
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
        # git knows the empty tree without having it; which it is depends on the repository's hash.
        empty = await mirror.git.run("hash-object", "-t", "tree", "/dev/null", cwd=mirror.path, deadline=QUICK)
        old = empty.stdout.decode("ascii").strip()
    output = await mirror.git.run(
        "diff", "--shortstat", "--no-ext-diff", "--no-textconv", old, new, "--", cwd=mirror.path, deadline=DEADLINE
    )
    return parse_shortstat(output.stdout.decode())


def parse_shortstat(text: str) -> Changed:
    """The numbers of `git diff --shortstat`, which prints nothing for an empty diff."""
    match = _CHANGED.search(text)
    return Changed(*(int(number or 0) for number in match.groups())) if match else Changed()
