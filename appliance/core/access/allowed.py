"""`[[allow]]`: which upstream a guest's path means, if one may be mirrored on demand. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum

from appliance.core.config.repositories import AllowConfig
from appliance.core.errors import UsageError
from appliance.core.names import is_repo_name
from appliance.core.upstream import Upstream, parse_upstream, read_upstream

_PORT = re.compile(r":\d+$")


class Coming(Enum):
    """What became of a guest's wish. NOTHING is all that a guest learns of what it must not know."""

    NOTHING = "nothing"
    ASKED = "asked"
    CLONING = "cloning"
    HERE = "here"


@dataclass(frozen=True)
class AllowedUpstream:
    """An upstream that may be mirrored: `name` is the only one that it gets, `entry` the one that allows it."""

    name: str
    url: str
    host: str
    entry: AllowConfig


@dataclass(frozen=True)
class _Pattern:
    """One entry: repositories in `directory` of `host` whose last part is `last`, or begins with it if `is_prefix`."""

    entry: AllowConfig
    base: str
    host: str
    directory: str
    owner: str
    last: str
    is_prefix: bool

    def upstream(self, repo: str) -> AllowedUpstream | None:
        """The upstream whose last part is `repo`, if the entry allows it and OWNER/REPO is a valid name."""
        name = f"{self.owner}/{repo}"
        if not (repo.startswith(self.last) if self.is_prefix else repo == self.last) or not is_repo_name(name):
            return None
        return AllowedUpstream(name, f"{self.base}/{repo}", self.host, self.entry)


class AllowedUpstreams:
    """What `entries` allow. Of two entries that give one OWNER/REPO to two upstreams, the first has the name.

    An entry for file:// allows nothing unless `allow_local` is set, and one whose directory is no valid OWNER neither.
    """

    def __init__(self, entries: Iterable[AllowConfig] = (), *, allow_local: bool = False) -> None:
        self._patterns = [pattern for entry in entries if (pattern := _parse(entry, allow_local)) is not None]
        self._hosts = {
            host: pattern.base.partition("://")[0] + "://" + pattern.host
            for pattern in reversed(self._patterns)
            if pattern.base.startswith("http")
            for host in _hosts(pattern.host)
        }

    def __bool__(self) -> bool:
        return bool(self._patterns)

    def at(self, path: str) -> AllowedUpstream | None:
        """The upstream that a guest's path means: `/OWNER/REPO`, `/HOST/OWNER/REPO`, or `/HOST` and the URL's path.

        A trailing slash and `.git` are ignored, and so is the case of the host, but not that of the path.
        """
        wanted = path.removeprefix("/").removesuffix("/").removesuffix(".git")
        first, _, rest = wanted.partition("/")
        directory, _, repo = rest.rpartition("/")
        on_host = [pattern for pattern in self._patterns if first.lower() in _hosts(pattern.host)]
        # The path of the URL wins over the name, as it does for what is here.
        meant = [
            *(pattern for pattern in on_host if directory == pattern.directory[1:]),
            *(pattern for pattern in on_host if directory == pattern.owner),
            *(pattern for pattern in self._patterns if rest == repo and first == pattern.owner),
        ]
        for pattern in meant:
            if (found := pattern.upstream(repo)) is not None:
                return self._with_name(found)
        return None

    def of(self, url: str) -> AllowedUpstream | None:
        """The upstream with this URL, or None if no entry allows it, or if the URL is none that git may be given."""
        try:
            upstream = read_upstream(url)
        except UsageError:
            return None
        where, path = upstream.identity
        directory, _, repo = path.rpartition("/")
        for pattern in self._patterns:
            found = pattern.upstream(repo) if directory == pattern.directory else None
            if found is not None and read_upstream(found.url).identity == (where, path):
                return self._with_name(found)
        return None

    def http_host(self, host: str) -> str | None:
        """`SCHEME://HOST` if an entry allows upstreams on that host over HTTP or HTTPS, or None."""
        return self._hosts.get(host.lower())

    def _with_name(self, found: AllowedUpstream) -> AllowedUpstream | None:
        """`found`, unless an earlier entry gives its name to another upstream."""
        owner, _, repo = found.name.partition("/")
        for pattern in self._patterns:
            if pattern.owner == owner and (first := pattern.upstream(repo)) is not None:
                return first if first.url == found.url else None
        return None


def unusable(entries: Iterable[AllowConfig], *, allow_local: bool) -> Iterator[str]:
    """One sentence for each entry that allows nothing, for `status`."""
    for number, entry in enumerate(entries, 1):
        if _parse(entry, allow_local) is None:
            local = "allow_local is not set" if entry.url.startswith("file:") else "its directory is no valid OWNER"
            yield f"allow[{number}] ({entry.url}) allows nothing, because {local}"


def _parse(entry: AllowConfig, allow_local: bool) -> _Pattern | None:
    is_prefix = entry.url.endswith("*")
    directory_url, _, last = entry.url.removesuffix("*").rpartition("/")
    try:
        upstream: Upstream = parse_upstream(directory_url, allow_local=allow_local)
    except UsageError:
        return None
    if upstream.scheme == "file":
        directory = upstream.path
        base = f"file://{directory}"
    else:
        directory = upstream.path.rstrip("/")
        base = f"{upstream.scheme}://{upstream.host.lower()}{directory}"
    owner = directory.rpartition("/")[2]
    if not is_repo_name(f"{owner}/x") or any(part in ("", ".", "..") for part in directory[1:].split("/")):
        return None
    return _Pattern(entry, base, upstream.host.lower(), directory, owner, last, is_prefix)


def _hosts(host: str) -> set[str]:
    """The forms of a host in a path: with its port and without, as in the catalog. Empty for a local one."""
    return {host, _PORT.sub("", host)} if host else set()
