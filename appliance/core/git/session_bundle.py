"""Writes a git bundle of recorded work, which `git fetch FILE REF` takes in a clone of the upstream."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from appliance.core.errors import UsageError
from appliance.core.git.mirror import Mirror
from appliance.core.git.ref_sets import FOLLOWED
from appliance.core.git.revisions import commit_of, is_ref_name, raw_name
from appliance.core.text import escape

WALK = 60.0
"""Seconds for finding what the upstream does not have."""
_FRUGAL = ("-c", "pack.threads=1", "-c", "pack.windowMemory=100m", "-c", "core.bigFileThreshold=32m")
"""With the defaults, git holds ten files of 500 MB for each processor to find out whether they are alike."""
PACKING = 600.0
"""Seconds that git may take for the pack, the time that its reader takes not counted."""


async def bundle(
    mirror: Mirror, tip: str, refname: str, exclude: Sequence[str] = FOLLOWED
) -> AsyncGenerator[bytes, None]:
    """A bundle with the ref `refname` at `tip`, and every object of it that the refs below `exclude` do not have.

    `tip` is an id or name as in `commit_of`. Whoever fetches from the bundle must have its prerequisites: the commits
    of the refs below `exclude` that `tip` builds on, none if it builds on none. When the upstream has `tip` itself, it
    is the prerequisite, and the pack is empty. Version 2, which every git reads; version 3 only for SHA-256.

    `tip` and the prerequisites are looked up before this returns: raises UsageError, NotFound, GitError. The generator
    raises GitError when git fails or takes longer than PACKING seconds, and ends git when it is closed: close it
    (`aclose`) when you leave before its end.
    """
    if not (refname.startswith("refs/") and is_ref_name(refname)):
        raise UsageError(f"{escape(refname)} is no full name of a ref", hint="give one such as refs/agents/SESSION")
    commit = await commit_of(mirror, tip)
    output = await mirror.git.run(
        "rev-list", "--boundary", commit, "--not", *(f"--glob={prefix}*" for prefix in exclude), "--",
        cwd=mirror.path, deadline=WALK,
    )  # fmt: skip
    lines = output.stdout.decode("ascii").split()
    prerequisites = [line[1:] for line in lines if line.startswith("-")] if lines else [commit]
    return bundle_onto(mirror, commit, refname, prerequisites)


async def bundle_onto(
    mirror: Mirror, commit: str, refname: str, prerequisites: Sequence[str]
) -> AsyncGenerator[bytes, None]:
    """As `bundle`, of a full object id and onto prerequisites that are known already."""
    version = b"# v3 git bundle\n@object-format=sha256\n" if len(commit) == 64 else b"# v2 git bundle\n"
    # A space ends the id, as git writes it: some readers do not take a line without one.
    needed = "".join(f"-{each} \n" for each in prerequisites).encode()
    yield b"%s%s%s %s\n\n" % (version, needed, commit.encode(), raw_name(refname))
    # What is left out is told by the prerequisites and not by the refs again: these may have moved since, and then the
    # pack would lack what the header does not ask for.
    revisions = "".join([f"{commit}\n", *(f"^{each}\n" for each in prerequisites)]).encode()
    stream = mirror.git.stream(
        *_FRUGAL, "pack-objects", "--stdout", "--revs", "--thin", "--delta-base-offset", "-q",
        cwd=mirror.path, deadline=PACKING, stdin=revisions,
    )  # fmt: skip
    async with aclosing(stream):
        async for piece in stream:
            yield piece
