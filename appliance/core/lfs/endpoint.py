"""Where a repository's LFS server is (git-lfs, docs/api/server-discovery.md), and what may be sent there. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from appliance.core.errors import GitmirrorError
from appliance.core.upstream import Upstream, parse_upstream, read_upstream

_SUFFIX = "/info/lfs"
_HINT = "lfs.url must be an https URL without a password, or one on the upstream's own host"


@dataclass(frozen=True)
class Endpoint:
    """An LFS server: its `url`, without a slash at the end, or the `directory` in which a local upstream has objects.

    `credential` is the upstream's address whose credential may be sent to it, or None. `home` is the upstream's host
    without a port: objects may be fetched from a private address only if the upstream is there itself.
    """

    url: str
    home: str = ""
    credential: Upstream | None = None
    directory: Path | None = None

    @property
    def is_secure(self) -> bool:
        """Whether it is asked by https, so that nothing may be fetched without TLS."""
        return self.url.startswith("https://")


def endpoint_of(url: str, lfs_url: str | None = None) -> Endpoint:
    """The LFS server of the upstream `url`. `lfs_url` is what `.lfsconfig` in the repository says, or None.

    For git:// and ssh upstreams it is at https on the same host, as git-lfs assumes for git://. A node cannot find it
    by ssh as git-lfs does. Anyone who can write to a repository chooses its `lfs_url`. So a credential is only sent to
    the upstream's own repository: otherwise readers of this repository could get the objects of another one.
    Raises GitmirrorError if `lfs_url` may not be used.
    """
    upstream = read_upstream(url)
    if upstream.scheme == "file":
        return Endpoint("", directory=Path(upstream.path))
    base = _web_address(upstream)
    own = read_upstream(base)
    derived = Endpoint(f"{base}.git{_SUFFIX}", _home(own), own)
    return derived if lfs_url is None else _named(derived, own, lfs_url)


def _named(derived: Endpoint, own: Upstream, lfs_url: str) -> Endpoint:
    try:
        given = parse_upstream(_without_user(lfs_url), allow_local=False, has_key=lambda _: True)
    except GitmirrorError:
        raise GitmirrorError("the .lfsconfig of the repository names no usable LFS server", hint=_HINT) from None
    url = _web_address(given, keep_suffix=True)
    same_host = url.startswith(f"{own.scheme}://{own.host}/")
    if not url.startswith("https://") and not same_host:
        raise GitmirrorError(
            f"the .lfsconfig of the repository names the LFS server {url}, which is not asked", hint=_HINT
        )
    path = urlsplit(url).path.removesuffix(_SUFFIX).removesuffix(".git")
    is_own = same_host and path == urlsplit(own.url).path and ".." not in path and "%" not in path
    return Endpoint(url, derived.home, own if is_own else None)


def _web_address(upstream: Upstream, *, keep_suffix: bool = False) -> str:
    host = upstream.host.lower()
    if upstream.scheme in ("ssh", "git"):
        # The port is that of another protocol.
        host = _home(upstream)
        host = f"[{host}]" if ":" in host else host
    scheme = "http" if upstream.scheme == "http" else "https"
    path = upstream.path.rstrip("/")
    path = path if path.startswith("/") else f"/{path}"
    return f"{scheme}://{host}{path if keep_suffix else path.removesuffix('.git')}"


def _home(upstream: Upstream) -> str:
    return urlsplit(f"//{upstream.host}").hostname or ""


def _without_user(url: str) -> str:
    """`https://user@host/…` as `https://host/…`: the user only names the credential that git-lfs would use."""
    scheme, separator, rest = url.partition("://")
    authority, slash, path = rest.partition("/")
    user, at, host = authority.rpartition("@")
    if scheme in ("http", "https") and at and ":" not in user:
        return f"{scheme}{separator}{host}{slash}{path}"
    return url
