"""Which commits disks may be built of: those on upstream branches. Recordings of agents never go into a disk."""

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
    """The name of a branch as git has it, from a name that `storable` may have written."""
    return os.fsdecode(raw_name(name))


async def tips_of(mirror: Mirror, branch: str = "") -> dict[str, str]:
    """The tips of upstream branches by name, or of one branch. Raises GitError."""
    # Without a slash at the end, `local_refs` takes the prefix for the whole name of a ref.
    refs = await mirror.local_refs(f"{HEADS}{branch}")
    return {ref.removeprefix(HEADS): oid for ref, oid in refs.items()}


async def branch_with(mirror: Mirror, commit: str, *, named: str | None, followed: str | None) -> tuple[str, str]:
    """A branch whose history contains a commit, and the commit.

    This is the branch `named`; without it, the followed branch, or else any branch. Raises UsageError unless `commit`
    is a full id; NotFound if no upstream branch contains it, even if a session does; GitError.
    """
    oid = commit.lower()
    if not FULL_ID.fullmatch(oid):
        raise UsageError(f"{escape(commit)[:100]} is not a full commit id", hint="give all of its 40 digits")
    if await _is_commit(mirror, oid):
        patterns = [f"{HEADS}{named}"] if named else [f"{HEADS}{followed}", HEADS] if followed else [HEADS]
        for pattern in patterns:
            output = await mirror.git.run(
                "for-each-ref", "--count=1", f"--contains={oid}", "--format=%(refname)", pattern,
                cwd=mirror.path, deadline=QUICK,
            )  # fmt: skip
            if ref := output.stdout.decode("utf-8", "surrogateescape").strip():
                return ref.removeprefix(HEADS), oid
    where = f"not on the branch {escape(named)}" if named else "on no upstream branch"
    raise NotFound(f"{oid} is {where}", hint="only commits on upstream branches can be leased, and no recordings")


async def _is_commit(mirror: Mirror, oid: str) -> bool:
    output = await mirror.git.run(
        "cat-file", "--batch-check=%(objecttype)", cwd=mirror.path, deadline=QUICK, stdin=f"{oid}\n".encode()
    )
    return output.stdout == b"commit\n"
