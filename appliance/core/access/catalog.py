"""Which repository a guest means by a path."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from appliance.core.models import Repo
from appliance.core.upstream import read_upstream


class Catalog:
    """The enabled repositories, found by the paths under which the contract promises them.

    `/OWNER/REPO`, and with the upstream's host in front: `/HOST/PATH` as the upstream's URL has it, or
    `/HOST/OWNER/REPO`. A trailing slash and `.git` do not matter. Those that `is_private` are kept apart: nothing of
    them, not even that their upstream's host is known, is found by the way for everybody.
    """

    def __init__(self, repos: Iterable[Repo] = (), is_private: Callable[[Repo], bool] = lambda _: False) -> None:
        enabled = [repo for repo in repos if repo.enabled]
        self._private = {repo.id: repo for repo in enabled if is_private(repo)}
        shown = [repo for repo in enabled if repo.id not in self._private]
        self._by_path = _paths(shown)
        self._private_by_path = _paths(self._private.values())
        self._hosts: dict[str, str] = {}
        for repo in shown:
            upstream = read_upstream(repo.url)
            if upstream.scheme in ("http", "https"):
                self._hosts[upstream.host.lower()] = f"{upstream.scheme}://{upstream.host}"

    def find(self, path: str) -> Repo | None:
        """The repository at a path that begins with a slash, or None: not mirrored here, as far as a guest may know."""
        return _find(self._by_path, path)

    def find_private(self, path: str) -> Repo | None:
        """The private repository at a path, for whoever may know of it."""
        return _find(self._private_by_path, path)

    def private(self, repo_id: int) -> Repo | None:
        """The private repository of that id, or None."""
        return self._private.get(repo_id)

    def upstream_host(self, host: str) -> str | None:
        """`SCHEME://HOST` of an upstream host that some repository here has and that speaks HTTP, or None."""
        return self._hosts.get(host.lower())


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
    # What the URL itself says wins: under a whole-host insteadOf the guest means that upstream and no other.
    return named | by_path


def _find(by_path: Mapping[str, Repo], path: str) -> Repo | None:
    wanted = path.removeprefix("/").removesuffix("/").removesuffix(".git")
    found = by_path.get(wanted)
    if found is None and wanted.count("/") >= 2:
        host, _, rest = wanted.partition("/")
        found = by_path.get(f"{host.lower()}/{rest}")
    return found
