"""Where objects of another node stay until they are checked: beside the mirror's, which git does not read there.

git itself takes a push in this way. The directory is called as git would call it, so maintenance removes one that a
kill left.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO

from appliance.core.fleet.downloads import ObjectRefused
from appliance.core.git.command import Git, GitError
from appliance.core.git.mirror import QUICK, Mirror
from appliance.core.recording import policy
from appliance.core.units import format_size

PUSHES = 10
"""A turn's objects come with those of the earlier turns of its session, so they may be as much as so many pushes."""
LONG = 600.0
"""Seconds that one step of git's may take."""
_LISTED = "%(objectname) %(objecttype) %(objectsize)"
_OF_A_PACK = (".pack", ".rev", ".idx")


class Quarantine:
    """Objects in `directory` that may build on those of `mirror`."""

    def __init__(self, mirror: Mirror, directory: Path) -> None:
        self._mirror = mirror
        self._packs = directory / "pack"
        own = {"GIT_OBJECT_DIRECTORY": str(directory)}
        self._alone = unheard(mirror, **own)
        self._both = unheard(mirror, **own, GIT_ALTERNATE_OBJECT_DIRECTORIES=_quoted(mirror.path / "objects"))

    async def run(self, *words: str, deadline: float = LONG, source: IO[bytes] | None = None) -> None:
        """Runs git, which writes packs here. Raises ObjectRefused; GitError if it takes too long."""
        try:
            await self._both.run(*words, cwd=self._mirror.path, deadline=deadline, source=source)
        except GitError as error:
            raise _refused(error) from error

    async def accept(self, commit: str) -> None:
        """Moves everything into the mirror if `commit` is one, and whole, and no limit of a push is exceeded.

        Raises ObjectRefused; GitError if git takes too long, OSError.
        """
        path = self._mirror.path
        try:
            await self._measure()
            kind = await self._both.run("cat-file", "-t", commit, cwd=path, deadline=QUICK)
            if kind.stdout != b"commit\n":
                raise ObjectRefused(f"{commit} is no commit")
            await connect(self._both, path, commit)
        except GitError as error:
            raise _refused(error) from error
        await asyncio.to_thread(self._take_over, path / "objects" / "pack")

    async def _measure(self) -> None:
        """Refuses what pre-receive refuses of a push: gigabytes in kilobytes, and trees that name millions of files."""
        path = self._mirror.path
        listed = await self._alone.run(
            "cat-file", "--batch-all-objects", "--unordered", f"--batch-check={_LISTED}", cwd=path, deadline=LONG
        )
        objects = [line.split() for line in listed.stdout.splitlines()]
        size = sum(int(fields[2]) for fields in objects)
        if size > PUSHES * policy.MOST_UNPACKED:
            raise ObjectRefused(f"the objects of a turn have {format_size(size)} unpacked")
        trees = [fields[0] for fields in objects if fields[1] == b"tree"]
        if not trees:
            return
        stdin = b"\n".join(trees) + b"\n"
        output = await self._alone.run("cat-file", "--batch", cwd=path, deadline=LONG, stdin=stdin)
        files = await asyncio.to_thread(lambda: policy.count_files(policy.parse_trees(output.stdout)))
        if files > policy.MOST_FILES:
            raise ObjectRefused(f"the new directories of a turn name more than {policy.MOST_FILES} files")

    def _take_over(self, into: Path) -> None:
        """Moves the packs, each index last, because git uses a pack once it sees the index. Raises OSError."""
        found = [path for path in self._packs.iterdir() if path.suffix in _OF_A_PACK]
        for path in sorted(found, key=lambda path: path.suffix == ".idx"):
            os.replace(path, into / path.name)
        descriptor = os.open(into, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@asynccontextmanager
async def quarantine(mirror: Mirror) -> AsyncIterator[Quarantine]:
    """A quarantine beside the objects of a mirror; what was not accepted is gone after the block."""
    objects = mirror.path / "objects"
    directory = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix="incoming-", dir=objects))
    try:
        (directory / "pack").mkdir()
        yield Quarantine(mirror, directory)
    finally:
        await asyncio.to_thread(shutil.rmtree, directory, True)


def unheard(mirror: Mirror, **environment: str) -> Git:
    """git whose complaints are about what came from elsewhere, and no sign that the mirror is damaged."""
    return Git(mirror.git.children, mirror.git.environment | environment)


async def connect(git: Git, path: Path, commit: str) -> None:
    """Raises GitError unless the repository has everything that `commit` reaches and the refs do not."""
    await git.run(
        "rev-list", "--objects", "--quiet", "--stdin", "--not", "--all", cwd=path, deadline=LONG,
        stdin=f"{commit}\n".encode(),
    )  # fmt: skip


def _refused(error: GitError) -> GitError | ObjectRefused:
    return error if error.timed_out else ObjectRefused(f"what came from another node was refused: {error.message}")


def _quoted(path: Path) -> str:
    """A path as git reads it in a list of directories: a colon would end it."""
    escaped = str(path).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
