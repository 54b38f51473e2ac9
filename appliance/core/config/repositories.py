"""`[[repos]]` and `[[allow]]`: which repositories are mirrored, always or when a guest asks for them. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from appliance.core.config.fields import parse_interval, parse_positive, setting, text


def _pattern(value: Any) -> str:
    """Parses `SCHEME://HOST/PATH` whose last part may be or end in `*`. Raises ValueError."""
    wrong = 'a URL such as "https://github.com/acme/*", where * stands for the rest of the last part'
    given = text(value)
    if not given:
        return ""
    try:
        parts = urlsplit(given)
        usable = parts.scheme in ("https", "http", "git", "file") and (bool(parts.hostname) or parts.scheme == "file")
    except ValueError:
        raise ValueError(wrong) from None
    if not usable or "@" in parts.netloc or parts.query or parts.fragment or re.search(r"[\s\\\x00-\x1f]", given):
        raise ValueError(wrong)
    directory, _, last = parts.path.rpartition("/")
    if not directory or not last or "*" in directory or "*" in last[:-1]:
        raise ValueError(wrong)
    return given.removesuffix(".git")


@dataclass(frozen=True)
class RepoConfig:
    """One `[[repos]]`: a repository of the static list."""

    url: str = setting("", text, "The upstream's URL.")
    name: str = setting("", text, "OWNER/REPO, the name guests use; default: the last two parts of the URL's path.")
    branch: str = setting("", text, "The branch of the snapshot and of cache warming; default: the upstream's HEAD.")
    interval: float | None = field(
        default=None,
        metadata={"parse": parse_interval, "default": "", "help": "A refresh interval for this repository."},
    )


@dataclass(frozen=True)
class AllowConfig:
    """One `[[allow]]`: repositories that are mirrored on demand, and how."""

    url: str = setting(
        "", _pattern, "The upstreams that may be mirrored on demand; * at the end stands for the rest of the last part."
    )
    branch: str = setting("", text, "The branch of the snapshot and of cache warming; default: the upstream's HEAD.")
    interval: float | None = field(
        default=None,
        metadata={"parse": parse_interval, "default": "", "help": "The refresh interval of these repositories."},
    )
    expire_after: float = setting(
        "7d",
        parse_positive,
        "Such a repository is removed when no guest has fetched it for this long and it has no recordings.",
    )
