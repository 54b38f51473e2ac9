"""Reads refs of a repository from its files, because running git for each of a thousand mirrors would take too long."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


def stored_refs(repository: Path, below: str) -> dict[str, str]:
    """The refs directly below `below` (`refs/x/y/`), as name to object id. Raises OSError if packed-refs is unreadable.

    A ref whose file is invalid is left out. Loose refs are read first, because git writes packed-refs before it removes
    the loose refs.
    """
    loose = dict(_loose(repository / below, below))
    packed: dict[str, str] = {}
    with contextlib.suppress(FileNotFoundError):
        data = (repository / "packed-refs").read_bytes()
        first = data.find(b" " + below.encode())
        for line in data[data.rfind(b"\n", 0, first) + 1 :].splitlines() if first >= 0 else ():
            oid, _, ref = line.decode("utf-8", "surrogateescape").partition(" ")
            if ref.startswith(below):
                packed[ref] = oid
    return packed | loose


def _loose(directory: Path, below: str) -> Iterator[tuple[str, str]]:
    with contextlib.suppress(FileNotFoundError), os.scandir(directory) as entries:
        for entry in entries:
            if entry.name.endswith(".lock"):
                # A ref that is being written: git allows no ref of such a name.
                continue
            with contextlib.suppress(OSError, UnicodeDecodeError):
                oid = Path(entry.path).read_text(encoding="ascii").strip()
                if len(oid) in (40, 64):
                    yield f"{below}{entry.name}", oid
