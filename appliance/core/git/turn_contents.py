"""Which paths differ between two commits, and the messages of the commits between them, within bounds.

Both are text that a guest wrote, of any length: git may print hundreds of megabytes.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

from appliance.core.git.command import GitError
from appliance.core.git.history import DEADLINE, empty_tree
from appliance.core.git.mirror import QUICK, Mirror

MOST_PATHS = 20_000
"""Paths of one diff that are read."""
MOST_PATH_BYTES = 4 * 2**20
"""Bytes of paths that are read: 200 for each of MOST_PATHS."""
MOST_TEXT = 16 * 2**10
"""Bytes of messages that are read, from the newest commit on."""
MOST_COMMITS = 1000
"""Commits whose messages are read. It bounds the time for a history of empty messages."""

_PAGE = 4096


@dataclass(frozen=True)
class ChangedPaths:
    """Paths in git's order; unless `all_of_them`, more follow after the last one."""

    paths: list[bytes]
    all_of_them: bool


async def present_commits(mirror: Mirror, *commits: str) -> set[str]:
    """Those of the commits that the mirror has. Raises GitError."""
    asked = "".join(f"{commit}^{{commit}}\n" for commit in commits)
    output = await mirror.git.run(
        "cat-file", "--batch-check=%(objecttype)", cwd=mirror.path, deadline=QUICK, stdin=asked.encode("ascii")
    )
    answers = output.stdout.decode("utf-8", "replace").splitlines()
    return {commit for commit, answer in zip(commits, answers, strict=False) if answer == "commit"}


async def changed_paths(mirror: Mirror, old: str | None, new: str, most: int = MOST_PATHS) -> ChangedPaths:
    """The paths that differ between two commits; of a file that was renamed, both. Raises GitError.

    Without `old`, all paths of `new`.
    """
    printed, complete = await _run_bounded(
        mirror, MOST_PATH_BYTES, "diff-tree", "-r", "-z", "--name-only", "--no-renames",
        old or await empty_tree(mirror), new, "--",
    )  # fmt: skip
    *paths, _ = printed.split(b"\0")
    return ChangedPaths(paths[:most], complete and len(paths) <= most)


async def messages_of(mirror: Mirror, commit: str, *without: str) -> str:
    """The messages of the commits that `commit` has and those in `without` lack, newest first. Raises GitError."""
    printed, _ = await _run_bounded(
        mirror, MOST_TEXT + 2 * _PAGE, "log", "-z", "--format=%B", f"--max-count={MOST_COMMITS}",
        commit, "--not", *without, "--",
    )  # fmt: skip
    return printed[:MOST_TEXT].decode("utf-8", "replace").replace("\0", "\n")


async def _run_bounded(mirror: Mirror, most: int, *arguments: str) -> tuple[bytes, bool]:
    """What git printed, up to some page before `most` bytes, and whether it is all. Raises GitError."""
    with _file_of(most) as file:
        try:
            await mirror.git.run(*arguments, cwd=mirror.path, deadline=DEADLINE, into=file)
        except GitError as error:
            size = os.lseek(file.fileno(), 0, os.SEEK_CUR)
            # git ends with an error when the file takes no more, which it does in whole pages.
            if error.timed_out or size <= most - 2 * _PAGE:
                raise
            return os.pread(file.fileno(), size, 0), False
        return os.pread(file.fileno(), os.lseek(file.fileno(), 0, os.SEEK_CUR), 0), True


@contextlib.contextmanager
def _file_of(size: int) -> Iterator[IO[bytes]]:
    """A file in memory that takes so many bytes and no more."""
    with os.fdopen(os.memfd_create("git", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING), "w+b") as file:
        os.ftruncate(file.fileno(), size)
        fcntl.fcntl(file.fileno(), fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW)
        yield file
