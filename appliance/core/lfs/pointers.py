"""The pointer that stands for an LFS object in git (git-lfs, docs/spec.md). Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

LARGEST = 1024
"""A pointer is smaller than this many bytes."""
_POINTER = re.compile(
    rb"version https://(?:git-lfs\.github\.com|hawser\.github\.com)/spec/v1\n"
    rb"oid sha256:([0-9a-f]{64})\n"
    rb"size ([0-9]{1,18})\n?"
)


@dataclass(frozen=True)
class Pointer:
    """An LFS object: its SHA-256 in hex, and its size in bytes."""

    oid: str
    size: int


def parse_pointer(data: bytes) -> Pointer | None:
    """The object that a file stands for, or None if the file is not a pointer.

    A pointer with extensions does not count, because only these extensions can make its file from the object.
    """
    if len(data) >= LARGEST:
        return None
    match = _POINTER.fullmatch(data)
    if match is None:
        return None
    return Pointer(match[1].decode(), int(match[2]))
