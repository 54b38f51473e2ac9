"""Which commits disks may be built of: those of upstream's branches. What sessions recorded never goes into a disk."""

from __future__ import annotations

import asyncio
import hashlib
import os
import time

from appliance.core.errors import NotFound, UsageError
from appliance.core.git.mirror import QUICK, Mirror
from appliance.core.git.ref_sets import FOLLOWED
from appliance.core.git.ref_traces import RefTraces, take_traces
from appliance.core.git.revisions import FULL_ID, raw_name
from appliance.core.text import escape

HEADS = "refs/heads/"


class UpstreamRefs:
    """Says whether upstream's branches and tags in a mirror are the same as before."""

    def __init__(self, mirror: Mirror) -> None:
        self._mirror = mirror
        self._traces: RefTraces | None = None
        self._digest = b""

    async def digest(self) -> bytes:
        """A digest of all branches and tags as they are now. Raises GitError.

        Costs no run of git while no file of a ref is touched.
        """
        if self._traces is None or not self._traces.hold():
            # Taken before the refs are read, so that a change during that counts as one.
            traces = await asyncio.to_thread(take_traces, self._mirror.path, time.time(), *FOLLOWED)
            refs = await self._mirror.local_refs()
            text = "\n".join(f"{oid} {ref}" for ref, oid in sorted(refs.items()))
            self._digest = hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()
            self._traces = traces
        return self._digest


def raw_branch(name: str) -> str:
    """The name of a branch as git has it, of one that `storable` may have written."""
    return os.fsdecode(raw_name(name))


async def tips_of(mirror: Mirror, branch: str = "") -> dict[str, str]:
    """The tips of upstream's branches by name, or of one. Raises GitError."""
    # Without the slash at the end of the prefix, a branch is found by its whole name.
    refs = await mirror.local_refs(f"{HEADS}{branch}")
    return {ref.removeprefix(HEADS): oid for ref, oid in refs.items()}


async def branch_with(mirror: Mirror, commit: str, *, named: str | None, followed: str | None) -> tuple[str, str]:
    """The branch whose history has a commit, and the commit.

    That is the branch `named`, or without one the followed branch, or else any. Raises UsageError unless `commit` is a
    whole id; NotFound if no branch has it, also if a session does; GitError.
    """
    oid = commit.lower()
    if not FULL_ID.fullmatch(oid):
        raise UsageError(f"{escape(commit)[:100]} is no id of a commit", hint="give all of its 40 digits")
    if await _is_commit(mirror, oid):
        patterns = [f"{HEADS}{named}"] if named else [f"{HEADS}{followed}", HEADS] if followed else [HEADS]
        for pattern in patterns:
            output = await mirror.git.run(
                "for-each-ref", "--count=1", f"--contains={oid}", "--format=%(refname)", pattern,
                cwd=mirror.path, deadline=QUICK,
            )  # fmt: skip
            if ref := output.stdout.decode("utf-8", "surrogateescape").strip():
                return ref.removeprefix(HEADS), oid
    where = f"the branch {escape(named)} does not have" if named else "no branch has"
    raise NotFound(
        f"{where} the commit {oid}", hint="a disk is of a commit of upstream's branches, not of what a session recorded"
    )


async def _is_commit(mirror: Mirror, oid: str) -> bool:
    output = await mirror.git.run(
        "cat-file", "--batch-check=%(objecttype)", cwd=mirror.path, deadline=QUICK, stdin=f"{oid}\n".encode()
    )
    return output.stdout == b"commit\n"
