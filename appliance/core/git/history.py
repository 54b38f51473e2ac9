"""What a recorded commit changed: where it left the upstream's history, and how much came on top."""

from __future__ import annotations

import re
from dataclasses import dataclass

from appliance.core.git.mirror import ANCHORS, Mirror

DEADLINE = 30.0
_CHANGED = re.compile(r"(\d+) files? changed(?:, (\d+) insertions?\(\+\))?(?:, (\d+) deletions?\(-\))?")
_EMPTY_TREE = {40: "4b825dc642cb6eb9a060e54bf8d69288fbee4904"}
"""git knows the empty tree without having it (SHA-1; with SHA-256 it is asked for)."""


@dataclass(frozen=True)
class Changed:
    """A diff in numbers."""

    files_changed: int = 0
    insertions: int = 0
    deletions: int = 0


@dataclass(frozen=True)
class TurnFacts:
    """One recorded commit. `base` is the upstream's commit it started from, None for unrelated history.

    `commits` counts what is on top of it, `changed` is the diff of base and commit (without base: of nothing and it).
    """

    commit: str
    base: str | None
    subject: str
    commits: int
    changed: Changed


async def turn_facts(mirror: Mirror, commit: str) -> TurnFacts:
    """Looks at a recorded commit. Raises GitError.

    The base is the newest commit at which the recorded history touches that of the upstream, branches, tags and the
    anchors of what they were: right for agents that commit or merge by themselves and after a force-push.
    """
    output = await mirror.git.run(
        "log", "--boundary", "--date-order", "--format=%m %H %ct %s", commit,
        "--not", "--branches", "--tags", f"--glob={ANCHORS}*", "--",
        cwd=mirror.path, deadline=DEADLINE,
    )  # fmt: skip
    own: list[str] = []
    boundary: list[tuple[int, str]] = []
    subject = None
    for line in output.stdout.decode("utf-8", "replace").splitlines():
        mark, oid, at, text = (*line.split(" ", 3), "")[:4]
        if mark == "-":
            boundary.append((int(at), oid))
        else:
            own.append(oid)
        if oid == commit:
            subject = text
    if subject is None:
        told = await mirror.git.run("log", "-1", "--format=%s", commit, "--", cwd=mirror.path, deadline=DEADLINE)
        subject = told.stdout.decode("utf-8", "replace").strip()
    newest = max(boundary)[1] if boundary else None
    # With nothing on top the commit is the upstream's own.
    base = newest if own else commit
    return TurnFacts(commit, base, subject[:500], len(own), await changed_between(mirror, base, commit))


async def changed_between(mirror: Mirror, old: str | None, new: str) -> Changed:
    """The numbers of `git diff --shortstat`. Raises GitError."""
    if old == new:
        return Changed()
    if old is None:
        old = _EMPTY_TREE.get(len(new)) or await _empty_tree(mirror)
    output = await mirror.git.run(
        "diff", "--shortstat", "--no-ext-diff", "--no-textconv", old, new, "--", cwd=mirror.path, deadline=DEADLINE
    )
    return parse_shortstat(output.stdout.decode())


def parse_shortstat(text: str) -> Changed:
    """The numbers of `git diff --shortstat`, which prints nothing for an empty diff."""
    match = _CHANGED.search(text)
    return Changed(*(int(number or 0) for number in match.groups())) if match else Changed()


async def _empty_tree(mirror: Mirror) -> str:
    output = await mirror.git.run("hash-object", "-t", "tree", "/dev/null", cwd=mirror.path, deadline=DEADLINE)
    return output.stdout.decode().strip()
