"""Finds the repository that a guest's path refers to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from appliance.core.errors import UsageError
from appliance.core.models import Repo
from appliance.core.upstream import Place, place_of, read_upstream


class Catalog:
    """The enabled repositories by every path that guests may use for them.

    A path is `/OWNER/REPO`, or starts with the upstream's host: `/HOST/PATH` as in the upstream's URL, or
    `/HOST/OWNER/REPO`. A trailing slash and `.git` are ignored. Repositories for which `is_private` is true are kept
    apart: `find` and `upstream_host` reveal nothing about them, not even that their upstream's host is known.
    """

    def __init__(self, repos: Iterable[Repo] = (), is_private: Callable[[Repo], bool] = lambda _: False) -> None:
        enabled = [repo for repo in repos if repo.enabled]
        self._private = {repo.id: repo for repo in enabled if is_private(repo)}
        shown = [repo for repo in enabled if repo.id not in self._private]
        self._by_path = _paths(shown)
        self._private_by_path = _paths(self._private.values())
        self._enabled = {repo.id: repo for repo in enabled}
        self._by_place: dict[Place, list[Repo]] = {}
        for repo in enabled:
            if (place := place_of(repo.url)) is not None:
                self._by_place.setdefault(place, []).append(repo)
        self._hosts: dict[str, str] = {}
        for repo in shown:
            upstream = read_upstream(repo.url)
            if upstream.scheme in ("http", "https"):
                self._hosts[upstream.host.lower()] = f"{upstream.scheme}://{upstream.host}"

    def find(self, path: str) -> Repo | None:
        """Returns the public repository at a path that begins with a slash, or None."""
        return _find(self._by_path, path)

    def find_private(self, path: str) -> Repo | None:
        """Returns the private repository at a path, for a caller who may know about it, or None."""
        return _find(self._private_by_path, path)

    def private(self, repo_id: int) -> Repo | None:
        """Returns the private repository with that id, or None."""
        return self._private.get(repo_id)

    def enabled(self, repo_id: int) -> Repo | None:
        """Returns the enabled repository with that id, private or not, or None."""
        return self._enabled.get(repo_id)

    def by_url(self, url: str, base: str) -> list[Repo]:
        """Returns the repositories, private or not, whose upstream is where a URL in a `.gitmodules` leads.

        `base` is the URL of the repository that has the file. The protocol and the case of the path are ignored; the
        one with exactly this URL comes first. A local URL finds nothing, unless `base` is local, too.
        """
        place = place_of(url)
        if place is None or (not place.host and (found := place_of(base)) is not None and found.host):
            return []
        return sorted(self._by_place.get(place, ()), key=lambda repo: (not _is_exactly(repo.url, url), repo.id))

    def upstream_host(self, host: str) -> str | None:
        """Returns `SCHEME://HOST` if a public repository here has an HTTP or HTTPS upstream on that host, or None."""
        return self._hosts.get(host.lower())


def _is_exactly(registered: str, url: str) -> bool:
    try:
        return read_upstream(registered).identity == read_upstream(url).identity
    except UsageError:
        return False


def _paths(repos: Iterable[Repo]) -> dict[str, Repo]:
    by_path: dict[str, Repo] = {}
    named: dict[str, Repo] = {}
    for repo in repos:
        by_path[repo.name] = repo
        upstream = read_upstream(repo.url)
        if upstream.host:
            for host in {upstream.host.lower(), upstream.host.lower().partition(":")[0]}:
                named[f"{host}/{repo.name}"] = repo
                by_path[f"{host}{upstream.identity[1]}"] = repo
    # The path of the URL wins over the name, because a guest with an insteadOf for a whole host means that upstream.
    return named | by_path


def _find(by_path: Mapping[str, Repo], path: str) -> Repo | None:
    wanted = path.removeprefix("/").removesuffix("/").removesuffix(".git")
    found = by_path.get(wanted)
    if found is None and wanted.count("/") >= 2:
        host, _, rest = wanted.partition("/")
        found = by_path.get(f"{host.lower()}/{rest}")
    return found
