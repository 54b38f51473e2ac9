"""Makes the bundle of a turn: what a node needs, beside the upstream's history, to have its commit."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

from appliance.core.errors import TooLarge
from appliance.core.git.mirror import Mirror
from appliance.core.git.ref_sets import FOLLOWED
from appliance.core.git.revisions import commit_of
from appliance.core.git.session_bundle import WALK, bundle_onto
from appliance.core.units import format_size

MOST_COMMITS = 10_000
"""Commits beyond the upstream's own branch and its tags; for more than that, other branches count too."""
MOST_NEEDS = 5000
"""Commits that a bundle may need, so that their list fits into a message."""
LARGEST = 2**30
"""Bytes of a bundle."""


@dataclass(frozen=True)
class TurnBundle:
    """A bundle on disk. Whoever unpacks it must have the commits `needs`."""

    size: int
    sha256: str
    needs: tuple[str, ...]


async def make_bundle(mirror: Mirror, commit: str, refname: str, into: Path) -> TurnBundle | None:
    """Writes the bundle of `commit`, under the name `refname`, to a new file; None if the upstream has the commit.

    It builds on the branch that the mirror's HEAD names and on tags, which stay: another branch may be deleted, and
    then nobody could fetch what the bundle needs. Memory is bounded by `Git.stream`, time by its deadlines, and the
    file by LARGEST. Raises UsageError, NotFound, GitError, TooLarge, and OSError if the disk does not take it.
    """
    await commit_of(mirror, commit)
    head = await asyncio.to_thread(mirror.head)
    found = await _prerequisites(mirror, commit, [*([head] if head else []), "--tags"], MOST_COMMITS)
    if found is None:
        found = await _prerequisites(mirror, commit, [f"--glob={prefix}*" for prefix in FOLLOWED], None)
    assert found is not None
    is_new, needs = found
    if not is_new:
        return None
    if len(needs) > MOST_NEEDS:
        raise TooLarge(f"it builds on {len(needs)} commits of the upstream, more than a message holds")
    digest, size = hashlib.sha256(), 0
    descriptor = os.open(into, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        async with aclosing(bundle_onto(mirror, commit, refname, needs)) as pieces:
            async for piece in pieces:
                size += len(piece)
                if size > LARGEST:
                    raise TooLarge(f"its bundle has more than {format_size(LARGEST)}")
                digest.update(piece)
                file.write(piece)
    return TurnBundle(size, digest.hexdigest(), tuple(needs))


async def _prerequisites(
    mirror: Mirror, commit: str, known: Sequence[str], most: int | None
) -> tuple[bool, list[str]] | None:
    """Whether `commit` is beyond what is `known`, and the known commits that it builds on.

    None if more than `most` commits are beyond. Only the commits that it builds on are held in memory.
    """
    count, needs, rest = 0, list[str](), b""
    # A mirror of an empty upstream has no branch that its HEAD names; the commit itself was looked up before.
    walk = mirror.git.stream(
        "rev-list", "--ignore-missing", "--boundary", commit, "--not", *known, "--",
        cwd=mirror.path, deadline=WALK,
    )  # fmt: skip
    async with aclosing(walk):
        async for piece in walk:
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                if line.startswith(b"-"):
                    needs.append(line[1:].decode("ascii"))
                else:
                    count += 1
            if most is not None and count > most:
                return None
    return count > 0, needs
