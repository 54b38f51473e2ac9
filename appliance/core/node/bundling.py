"""Writes a recorded turn as a git bundle, beside a running `serve` or without one."""

from __future__ import annotations

import asyncio
import tempfile
from contextlib import ExitStack, aclosing
from pathlib import Path
from typing import BinaryIO

from appliance.core.backup.scratch import git_below
from appliance.core.errors import GitmirrorError
from appliance.core.git.mirror import Mirror
from appliance.core.git.session_bundle import bundle
from appliance.core.layout import Layout
from appliance.core.models import Turn
from appliance.core.recording.policy import AGENTS


def write_bundle(layout: Layout, turn: Turn, output: BinaryIO) -> int:
    """Writes the bundle of a turn, with the ref of its session, and returns its size in bytes.

    Raises GitmirrorError when the mirror cannot be read, and OSError when `output` cannot be written. What was written
    by then is no bundle that git takes.
    """
    path = layout.mirror(turn.repo)
    with ExitStack() as stack:
        try:
            # git's records and configs go to a directory of this process, because `serve` may own those of the node.
            scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="gitmirror-"))
            git = stack.enter_context(git_below(Layout(Path(scratch))))
        except OSError as error:
            raise GitmirrorError(
                f"the temporary directory cannot be used: {error.strerror}", hint="set TMPDIR to another directory"
            ) from error
        mirror = Mirror(path, git)
        if not mirror.exists():
            raise GitmirrorError(f"there is no mirror at {path}", hint="its repository may have been purged")
        return asyncio.run(_write(mirror, turn, output))


async def _write(mirror: Mirror, turn: Turn, output: BinaryIO) -> int:
    size = 0
    async with aclosing(await bundle(mirror, turn.commit, f"{AGENTS}{turn.session}")) as pieces:
        async for piece in pieces:
            output.write(piece)
            size += len(piece)
    return size
