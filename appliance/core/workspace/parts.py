"""The directories that guests ask for: what they may be, and whether a commit has them."""

from __future__ import annotations

import os
from collections.abc import Sequence

from appliance.core.errors import GitmirrorError
from appliance.core.git.mirror import Mirror
from appliance.core.text import escape
from appliance.core.workspace.cone import outermost
from appliance.core.workspace.snapshot_registry import NoSnapshot

MOST_DIRECTORIES = 64
LONGEST_PATH = 4095
"""Bytes of a path, above which neither Linux nor git in a working tree takes it."""
_HINT = "name directories relative to the top of the repository, such as only=src/server"
_LISTING_DEADLINE = 60.0


def read_directories(values: Sequence[str]) -> tuple[str, ...]:
    """The directories that a guest named, without duplicates and those inside others. Raises GitmirrorError."""
    if len(values) > MOST_DIRECTORIES:
        raise GitmirrorError(f"there are {len(values)} directories in only, and the most are {MOST_DIRECTORIES}")
    return outermost(_normalised(value) for value in values)


def _normalised(value: str) -> str:
    shown = escape(value[:100])
    if len(os.fsencode(value)) > LONGEST_PATH:
        raise GitmirrorError(f"only={shown}... is longer than {LONGEST_PATH} bytes")
    if any(ord(char) < 32 or ord(char) == 127 for char in value):
        raise GitmirrorError(f"only={shown} has control characters", hint=_HINT)
    if value.startswith("/"):
        raise GitmirrorError(f"only={shown} is an absolute path", hint=_HINT)
    words = [word for word in value.split("/") if word not in ("", ".")]
    if ".." in words:
        raise GitmirrorError(f"only={shown} has '..'", hint=_HINT)
    if not words:
        raise GitmirrorError(f"only={shown} names no directory", hint=f"{_HINT}; without only, the tree is whole")
    return "/".join(words)


async def require_directories(mirror: Mirror, commit: str, branch: str, only: Sequence[str]) -> None:
    """Raises NoSnapshot, which names them, if some of these are not directories or submodules of a commit.

    git itself takes any name, but an agent that gets an empty workspace looks for the reason in the wrong place.
    """
    if not only:
        return
    words = ("--literal-pathspecs", "ls-tree", "-z", "--full-tree", commit, "--", *only)
    listed = (await mirror.git.run(*words, cwd=mirror.path, deadline=_LISTING_DEADLINE)).stdout
    kinds = {}
    for entry in listed.split(b"\0")[:-1]:
        facts, _, path = entry.partition(b"\t")
        kinds[os.fsdecode(path)] = facts.split(b" ")[1]
    if absent := [path for path in only if path not in kinds]:
        raise NoSnapshot(f"there is no directory {_listed(absent)} in {branch}")
    if files := [path for path in only if kinds[path] == b"blob"]:
        raise NoSnapshot(f"{_listed(files)} in {branch} is a file: name the directory that it is in")


def _listed(paths: Sequence[str]) -> str:
    shown = ", ".join(escape(path[:100]) for path in paths[:5])
    return f"{shown} and {len(paths) - 5} more" if len(paths) > 5 else shown
