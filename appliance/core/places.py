"""Which URLs lead to the same repository, whatever protocol they speak. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

_SCP = re.compile(r"(?:[^/@:]+@)?(\[[^\]]+\]|[^/:@]+):(?!//)(.+)", re.DOTALL)
_DEFAULT_PORTS = {"https": 443, "http": 80, "git": 9418, "ssh": 22}


@dataclass(frozen=True)
class Place:
    """Host in lower case (empty: this machine), port (None: the scheme's own), path without `.git` and outer slashes.

    The path is case-folded: GitHub's do not tell cases apart, and a refresh of one mirror too many does no harm.
    """

    host: str
    port: int | None
    path: str


def place_of(url: str) -> Place | None:
    """Where a URL leads: https, ssh, scp form (`git@HOST:PATH`), git, file or a path. None for what is no URL."""
    if url.startswith("/"):
        return Place("", None, _path(url))
    if "://" not in url:
        found = _SCP.fullmatch(url)
        return Place(found[1].strip("[]").lower(), None, _path(found[2])) if found else None
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return None
    if port == _DEFAULT_PORTS.get(parts.scheme):
        port = None
    path = parts.path if parts.scheme == "file" else unquote(parts.path)
    return Place((parts.hostname or "").lower(), port, _path(path))


def _path(path: str) -> str:
    return path.strip("/").removesuffix(".git").rstrip("/").casefold()
