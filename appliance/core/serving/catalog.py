"""Which repository a guest means by a path."""

from __future__ import annotations

from collections.abc import Iterable

from appliance.core.git.upstream import parse_upstream
from appliance.core.models import Repo


class Catalog:
    """The enabled repositories, found by the paths under which the contract promises them.

    `/OWNER/REPO`, and with the upstream's host in front: `/HOST/PATH` as the upstream's URL has it, or
    `/HOST/OWNER/REPO`. A trailing slash and `.git` do not matter.
    """

    def __init__(self, repos: Iterable[Repo] = ()) -> None:
        self._by_path: dict[str, Repo] = {}
        self._hosts: dict[str, str] = {}
        named: dict[str, Repo] = {}
        for repo in repos:
            if not repo.enabled:
                continue
            self._by_path[repo.name] = repo
            upstream = parse_upstream(repo.url, allow_local=True)
            if upstream.scheme in ("http", "https"):
                self._hosts[upstream.host.lower()] = f"{upstream.scheme}://{upstream.host}"
            if upstream.host:
                for host in {upstream.host.lower(), upstream.host.lower().partition(":")[0]}:
                    named[f"{host}/{repo.name}"] = repo
                    self._by_path[f"{host}{upstream.identity[1]}"] = repo
        # What the URL itself says wins: under a whole-host insteadOf the guest means that upstream and no other.
        self._by_path = named | self._by_path

    def find(self, path: str) -> Repo | None:
        """The repository at a path that begins with a slash, or None: not mirrored here."""
        wanted = path.removeprefix("/").removesuffix("/").removesuffix(".git")
        found = self._by_path.get(wanted)
        if found is None and wanted.count("/") >= 2:
            host, _, rest = wanted.partition("/")
            found = self._by_path.get(f"{host.lower()}/{rest}")
        return found

    def upstream_host(self, host: str) -> str | None:
        """`SCHEME://HOST` of an upstream host that some repository here has and that speaks HTTP, or None."""
        return self._hosts.get(host.lower())
