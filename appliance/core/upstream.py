"""Which upstream URLs are allowed, and which of them mean the same repository. Pure.

Two URLs with the same `Upstream.identity` are the same registration; the scheme and the user are part of it. A `Place`
is where a URL leads regardless of its protocol; webhooks are matched to repositories by it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from appliance.core.errors import UsageError
from appliance.core.names import is_repo_name

_SCP = re.compile(r"^(?:(?P<user>[^/@:]+)@)?(?P<host>[^/:]+):(?!//)(?P<path>.*)$", re.DOTALL)
_SCP_PLACE = re.compile(r"(?:[^/@:]+@)?(\[[^\]]+\]|[^/:@]+):(?!//)(.+)", re.DOTALL)
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_SPACE = re.compile(r"[ \\]")
_DEFAULT_PORTS = {"https": 443, "http": 80, "git": 9418, "ssh": 22}


@dataclass(frozen=True)
class Upstream:
    """A URL that may be passed to git. `host` includes a port other than the default, and is empty for a local URL.

    `user` is the ssh login. For the scp form, `git@HOST:PATH`, `url` stays as it is and the other fields are those of
    ssh://git@HOST/PATH.
    """

    url: str
    scheme: str
    host: str
    path: str
    user: str = ""

    @property
    def default_name(self) -> str | None:
        """OWNER/REPO from the last two parts of the path, or None when they are not a valid name."""
        parts = [part for part in self.path.split("/") if part]
        if len(parts) < 2:
            return None
        name = f"{parts[-2]}/{parts[-1].removesuffix('.git')}"
        return name if is_repo_name(name) else None

    @property
    def identity(self) -> tuple[str, str]:
        """Equal for URLs of the same upstream: ignores `.git`, trailing slashes and the case of the host."""
        user = f"{self.user}@" if self.user else ""
        where = "file" if self.scheme == "file" else f"{self.scheme}://{user}{self.host.lower()}"
        return where, self.path.rstrip("/").removesuffix(".git")

    @property
    def address(self) -> str:
        """The form that `[[credentials]]` are matched against: `SCHEME://HOST[:PORT]/PATH` without user and `.git`."""
        return f"{self.scheme}://{self.host.lower()}{self.identity[1]}"


def any_ssh(upstream: Upstream) -> bool:
    """Accepts every ssh upstream: for reading URLs that are registered already, whether or not they have a key."""
    return True


def no_ssh(upstream: Upstream) -> bool:
    """Accepts no ssh upstream."""
    return False


def parse_upstream(url: str, *, allow_local: bool, has_key: Callable[[Upstream], bool] = no_ssh) -> Upstream:
    """Checks a URL. Raises UsageError that says why and what to write instead, without repeating secrets in the URL.

    An ssh upstream is allowed when `has_key` knows a key for it, because the machine's own keys are never used.
    """
    shown = _without_secrets(url)
    if url.startswith("-"):
        raise UsageError(f"the URL {shown!r} starts with a dash", hint="an upstream looks like https://HOST/OWNER/REPO")
    if not url or _CONTROL.search(url):
        raise UsageError(f"the URL {shown!r} is empty or has control characters in it")
    if "::" in url.split("/", 1)[0]:
        raise UsageError(f"remote helpers such as {url.split('::')[0]}:: are not allowed", hint="use an https:// URL")
    if url.startswith(("/", "./", "../", "file://")) or url in (".", ".."):
        return _local(url, allow_local)
    if _SPACE.search(url):
        raise UsageError(f"the URL {shown!r} has spaces or backslashes in it", hint="write a space as %20")
    scheme, separator, _ = url.partition("://")
    if not separator and (scp := _SCP.match(url)):
        return _ssh(Upstream(url, "ssh", scp["host"], f"/{scp['path'].lstrip('/')}", scp["user"] or ""), shown, has_key)
    if not separator:
        raise UsageError(
            f"{shown} is not a URL",
            hint="an upstream looks like https://HOST/OWNER/REPO; a path starts with / or ./",
        )
    if scheme not in _DEFAULT_PORTS:
        wanted = "write ssh://" if "ssh" in scheme else "allowed: https, http, git (and file with --allow-local)"
        raise UsageError(f"upstreams with the scheme {scheme}:// are not allowed", hint=wanted)
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise UsageError(
            "the URL has an invalid host or port", hint="an upstream looks like https://HOST/OWNER/REPO"
        ) from None
    if "@" in parts.netloc and (scheme != "ssh" or parts.password is not None):
        raise UsageError(
            f"the URL of {parts.hostname} contains a credential, which would be stored and shown in process lists",
            hint="give the URL without user and password",
        )
    if not parts.hostname or parts.hostname.startswith("-"):
        raise UsageError(f"the URL {shown} names no host", hint="an upstream looks like https://HOST/OWNER/REPO")
    if parts.query or parts.fragment:
        raise UsageError(
            f"the URL {shown} has a query or fragment, which git does not use",
            hint="leave out everything from the ? or # on",
        )
    if not parts.path.strip("/"):
        raise UsageError(f"the URL {shown} names no repository", hint="an upstream looks like https://HOST/OWNER/REPO")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    if port and port != _DEFAULT_PORTS[scheme]:
        host = f"{host}:{port}"
    found = Upstream(url.rstrip("/"), scheme, host, parts.path, parts.username or "")
    return _ssh(found, shown, has_key) if scheme == "ssh" else found


def _ssh(upstream: Upstream, shown: str, has_key: Callable[[Upstream], bool]) -> Upstream:
    if upstream.host.startswith("-") or upstream.user.startswith("-"):
        raise UsageError(f"the URL {shown} names no host", hint="an ssh upstream looks like ssh://git@HOST/OWNER/REPO")
    if not upstream.path.strip("/"):
        raise UsageError(
            f"the URL {shown} names no repository", hint="an ssh upstream looks like ssh://git@HOST/OWNER/REPO"
        )
    if not has_key(upstream):
        raise UsageError(
            f"{shown} is an ssh upstream, and no [[credentials]] entry has a key for it",
            hint=f'add one with url = "ssh://{upstream.host}", ssh_key and known_hosts; or use the https:// URL',
        )
    return upstream


def _local(url: str, allow_local: bool) -> Upstream:
    if not allow_local:
        raise UsageError(
            f"{_without_secrets(url)} is a local upstream, which is not allowed here",
            hint="set allow_local = true under [refresh], or register it with `add-repo --allow-local`",
        )
    path = url.removeprefix("file://")
    if url.startswith("file://") and not path.startswith("/"):
        raise UsageError(
            f"{_without_secrets(url)} names a host",
            hint="a local URL has three slashes: file:///srv/git/OWNER/REPO.git",
        )
    # The stored path must be absolute, because serve has another working directory.
    absolute = str(Path(path).absolute())
    return Upstream(f"file://{absolute}" if url.startswith("file://") else absolute, "file", "", absolute)


def same_upstream(one: str, other: str) -> bool:
    """Whether two stored URLs mean the same upstream."""
    return read_upstream(one).identity == read_upstream(other).identity


def read_upstream(url: str) -> Upstream:
    """Parses a URL that is registered already, whether or not it may still be followed."""
    return parse_upstream(url, allow_local=True, has_key=any_ssh)


def choose_name(upstream: Upstream, name: str | None) -> str:
    """Returns `name` if it is given, else the name that the URL suggests. Raises UsageError."""
    if name is not None and not is_repo_name(name):
        raise UsageError(
            f"{name!r} is not a valid repository name",
            hint="OWNER/REPO, each part of letters, digits, '.', '_' and '-'; neither '.' nor '..'; REPO without .git",
        )
    chosen = name or upstream.default_name
    if chosen is None:
        raise UsageError(f"{upstream.url} suggests no name", hint="give one: --name OWNER/REPO")
    return chosen


@dataclass(frozen=True)
class Place:
    """Host in lower case (empty: this machine), port (None: the default), path without `.git` and outer slashes.

    The path is case-folded, because GitHub ignores case in paths and refreshing one mirror too many does no harm.
    """

    host: str
    port: int | None
    path: str


def place_of(url: str) -> Place | None:
    """Returns where a URL (https, ssh, scp form `git@HOST:PATH`, git, file, path) leads, or None if it is not a URL."""
    if url.startswith("/"):
        return Place("", None, _place_path(url))
    if "://" not in url:
        found = _SCP_PLACE.fullmatch(url)
        return Place(found[1].strip("[]").lower(), None, _place_path(found[2])) if found else None
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return None
    if port == _DEFAULT_PORTS.get(parts.scheme):
        port = None
    path = parts.path if parts.scheme == "file" else unquote(parts.path)
    return Place((parts.hostname or "").lower(), port, _place_path(path))


def _place_path(path: str) -> str:
    return path.strip("/").removesuffix(".git").rstrip("/").casefold()


def _without_secrets(url: str) -> str:
    """Returns the URL as an error may show it: without everything before an @ and after a ? or #."""
    return re.sub(r"^([A-Za-z+]*://)?.*@", r"\1", re.sub(r"[?#].*", "", url, flags=re.DOTALL), flags=re.DOTALL)
