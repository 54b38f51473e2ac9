"""Finds the LFS files of a checkout, and what takes the place of their pointers in a tar.

git writes the checkout without a filter, so an LFS file is its pointer there. That keeps its update to the next tip
cheap and right. The objects themselves go from their store into the tar, without a copy in between.
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from appliance.core.errors import GitmirrorError
from appliance.core.lfs.pointers import LARGEST, Pointer, parse_pointer
from appliance.core.models import Repo


class LfsSource(Protocol):
    """Where LFS objects come from. An object of one repository is not had through another one."""

    def path_if_here(self, repo: Repo, oid: str) -> Path | None:
        """The file of an object, whose name is its id, if it is on this node."""

    async def fetch(self, repo: Repo, pointers: Sequence[Pointer]) -> set[str]:
        """Fetches what is missing; returns the ids of all that are here then."""


class NotYet(GitmirrorError):
    """LFS objects of a tip are still being fetched, and its tar should wait for them."""


@dataclass(frozen=True)
class LfsFiles:
    """The LFS files of one tree, by path. `repo` is that of a submodule, or None for that of the workspace."""

    files: Mapping[str, Pointer]
    repo: Repo | None = None


@dataclass(frozen=True)
class Contents:
    """The files of one tree that are in place: the object of each path, and its size."""

    files: Mapping[str, Path] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Chosen:
    """What is in place in each tree. There are `total` LFS files, whose contents take `bytes`."""

    trees: Sequence[Contents] = (Contents(),)
    total: int = 0
    bytes: int = 0

    @property
    def pointers(self) -> int:
        """How many files are pointers."""
        return self.total - sum(len(tree.files) for tree in self.trees)


Choice = Callable[[Sequence[LfsFiles]], Awaitable[Chosen]]
"""Chooses from the LFS files of the trees of a tip those that are in place. Raises NotYet."""

_NAMES = ("ls-files", "-z", "--", ":(attr:filter=lfs)")
"""git itself applies the attributes: nested files, macros and exceptions."""


async def find_lfs_files(run: Callable[..., Awaitable[bytes]], tree: Path) -> dict[str, Pointer]:
    """The LFS files of the checkout in `tree`, by path, sorted. `run` runs git there. Raises GitError, OSError."""
    names = (await run(*_NAMES)).split(b"\0")[:-1]
    return await asyncio.to_thread(_read, tree, [os.fsdecode(name) for name in names])


def _read(tree: Path, names: Iterable[str]) -> dict[str, Pointer]:
    found = {}
    for name in sorted(names, key=os.fsencode):
        pointer = _pointer_in(tree / name)
        # git considers a file without content changed unless its blob has none either.
        if pointer is not None and pointer.size:
            found[name] = pointer
    return found


def _pointer_in(file: Path) -> Pointer | None:
    """What a file stands for. Raises OSError."""
    status = file.lstat()
    if not stat.S_ISREG(status.st_mode) or status.st_size >= LARGEST:
        return None
    # The bytes that git would hand to git-lfs, after the conversions that other attributes demand.
    return parse_pointer(file.read_bytes())
