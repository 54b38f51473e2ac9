"""Which upstream URLs are allowed, and what follows from one: its name, its host, its identity."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from appliance.core.errors import UsageError
from appliance.core.models import is_repo_name

_SCP = re.compile(r"^(?:[^/@:]+@)?[^/:]+:(?!//)")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_SPACE = re.compile(r"[ \\]")
_NAMED = ("https", "http", "git")


@dataclass(frozen=True)
class Upstream:
    """A URL that git may be given. `host` is empty for a local one; `path` is the part after the host."""

    url: str
    scheme: str
    host: str
    path: str

    @property
    def default_name(self) -> str | None:
        """OWNER/REPO from the last two parts of the path, or None when they do not make one."""
        parts = [part for part in self.path.split("/") if part]
        if len(parts) < 2:
            return None
        name = f"{parts[-2]}/{parts[-1].removesuffix('.git')}"
        return name if is_repo_name(name) else None

    @property
    def identity(self) -> tuple[str, str]:
        """Equal for URLs that mean the same upstream: without `.git`, trailing slashes, the host's case."""
        where = "file" if self.scheme == "file" else f"{self.scheme}://{self.host.lower()}"
        return where, self.path.rstrip("/").removesuffix(".git")


def parse_upstream(url: str, *, allow_local: bool) -> Upstream:
    """Checks a URL. Raises UsageError with the reason and the way to do it right; a secret in it is not repeated."""
    told = _without_secrets(url)
    if url.startswith("-"):
        raise UsageError(f"the URL {told!r} starts with a dash", hint="an upstream looks like https://HOST/OWNER/REPO")
    if not url or _CONTROL.search(url):
        raise UsageError(f"the URL {told!r} is empty or has control characters in it")
    if "::" in url.split("/", 1)[0]:
        raise UsageError(f"remote helpers such as {url.split('::')[0]}:: are not allowed", hint="use an https:// URL")
    if url.startswith(("/", "./", "../", "file://")) or url in (".", ".."):
        return _local(url, allow_local)
    if _SPACE.search(url):
        raise UsageError(f"the URL {told!r} has spaces or backslashes in it", hint="write a space as %20")
    scheme, separator, _ = url.partition("://")
    if not separator and _SCP.match(url):
        raise UsageError(
            f"{told} is an ssh upstream, and ssh needs a credential that gitmirror does not have",
            hint="use the https:// URL of the repository",
        )
    if not separator:
        raise UsageError(
            f"{told} is no URL",
            hint="an upstream looks like https://HOST/OWNER/REPO; a path starts with / or ./",
        )
    if scheme not in _NAMED:
        reason = (
            "ssh needs a credential that gitmirror does not have" if "ssh" in scheme else "the scheme is not allowed"
        )
        raise UsageError(
            f"{scheme}:// upstreams: {reason}", hint="allowed: https, http, git (and file with --allow-local)"
        )
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise UsageError(
            "the URL is wrong: its host or port is none", hint="an upstream looks like https://HOST/OWNER/REPO"
        ) from None
    if "@" in parts.netloc:
        raise UsageError(
            f"the URL of {parts.hostname} carries a credential: it would be stored and shown in process lists",
            hint="give the URL without user and password",
        )
    if not parts.hostname or parts.hostname.startswith("-"):
        raise UsageError(f"the URL {told} names no host", hint="an upstream looks like https://HOST/OWNER/REPO")
    if parts.query or parts.fragment:
        raise UsageError(
            f"the URL {told} has a query or fragment, which git does not use",
            hint="leave out what follows ? or #",
        )
    if not parts.path.strip("/"):
        raise UsageError(f"the URL {told} names no repository", hint="an upstream looks like https://HOST/OWNER/REPO")
    host = f"{parts.hostname}:{port}" if port else parts.hostname
    return Upstream(url.rstrip("/"), scheme, host, parts.path)


def _local(url: str, allow_local: bool) -> Upstream:
    if not allow_local:
        raise UsageError(
            f"{_without_secrets(url)} is a local upstream, which is not allowed here",
            hint="pass --allow-local, or set allow_local = true under [refresh]",
        )
    path = url.removeprefix("file://")
    if url.startswith("file://") and not path.startswith("/"):
        raise UsageError(
            f"{_without_secrets(url)} names a host",
            hint="a local URL has three slashes: file:///srv/git/OWNER/REPO.git",
        )
    # Kept as a path would be kept: made absolute here, since serve has another working directory.
    absolute = str(Path(path).absolute())
    return Upstream(f"file://{absolute}" if url.startswith("file://") else absolute, "file", "", absolute)


def same_upstream(one: str, other: str) -> bool:
    """Whether two stored URLs mean the same upstream."""
    return parse_upstream(one, allow_local=True).identity == parse_upstream(other, allow_local=True).identity


def choose_name(upstream: Upstream, name: str | None) -> str:
    """The given name if it is one, else the one the URL suggests. Raises UsageError."""
    if name is not None and not is_repo_name(name):
        raise UsageError(
            f"{name!r} is not a repository's name",
            hint="OWNER/REPO, each part of letters, digits, '.', '_' and '-'; neither '.' nor '..'; REPO without .git",
        )
    chosen = name or upstream.default_name
    if chosen is None:
        raise UsageError(f"{upstream.url} suggests no name", hint="give one: --name OWNER/REPO")
    return chosen


def _without_secrets(url: str) -> str:
    """The URL as an error may repeat it: without what stands before an @, or after a ? or #."""
    return re.sub(r"^([A-Za-z+]*://)?.*@", r"\1", re.sub(r"[?#].*", "", url, flags=re.DOTALL), flags=re.DOTALL)
