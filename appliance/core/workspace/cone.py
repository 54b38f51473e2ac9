"""Which files a part of a tree has: those that git's cone mode takes (git-sparse-checkout, "Internals - Cone mode").

For the directories in `only` these are the files at the top of the tree, those in each directory above one of them, and
everything in them. A path is a string as `os.fsdecode` makes it, relative to the top of the tree.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from functools import lru_cache

_SPECIAL = b"*?[\\"
"""What git escapes in a pattern (`is_glob_special` in its ctype.c)."""


class Cone:
    """The files of the directories in `only`, which are normalised; without any, everything is in it."""

    def __init__(self, only: Sequence[str]) -> None:
        self.only = frozenset(only)
        self.above = frozenset(above for path in only for above in directories_above(path)) - self.only

    def __contains__(self, path: object) -> bool:
        """Whether the workspace has the file, link or submodule at `path`."""
        if not self.only or not isinstance(path, str):
            return True
        parent, slash, _ = path.rpartition("/")
        if not slash or parent in self.above or path in self.only or parent in self.only:
            return True
        return any(above in self.only for above in directories_above(parent))


@lru_cache(maxsize=64)
def cone_of(only: tuple[str, ...]) -> Cone:
    """The cone of these directories. Many paths in turn are compared with the same one."""
    return Cone(only)


def in_cone(path: str, only: tuple[str, ...]) -> bool:
    """Whether a workspace that has only these directories has the file, link or submodule at `path`.

    Without directories, it has everything.
    """
    return path in cone_of(only)


def directories_above(path: str) -> list[str]:
    """The directories that a path is in, the innermost first; the top is not one of them."""
    found = []
    while path := path.rpartition("/")[0]:
        found.append(path)
    return found


def outermost(directories: Iterable[str]) -> tuple[str, ...]:
    """The directories without those that are in another one, sorted by their bytes, as git lists them."""
    known = set(directories)
    kept = [each for each in known if not any(above in known for above in directories_above(each))]
    return tuple(sorted(kept, key=os.fsencode))


def patterns(only: Sequence[str]) -> bytes:
    """The `info/sparse-checkout` that `git sparse-checkout set --cone` writes for these directories."""
    cone = Cone(only)
    lines = [b"/*", b"!/*/"]
    for above in sorted(_pattern(path) for path in cone.above):
        lines += [above[1] + b"/", b"!" + above[1] + b"/*/"]
    lines += [escaped + b"/" for _, escaped in sorted(_pattern(path) for path in cone.only)]
    return b"\n".join(lines) + b"\n"


def _pattern(path: str) -> tuple[bytes, bytes]:
    """A path as git sorts it, and as it writes it."""
    name = b"/" + os.fsencode(path)
    return name, b"".join(b"\\" + bytes([byte]) if byte in _SPECIAL else bytes([byte]) for byte in name)
