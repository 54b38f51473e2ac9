"""Who may read which mirror.

A mirror is private when an entry of `[[credentials]]` without `readers = "open"` is for its upstream. Taking the entry
out does not open it: what a credential has fetched stays private until a refresh without one has succeeded, which
proves that everybody may read the upstream. Nor is an ssh upstream ever open without an entry that says so.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from appliance.core.config.credentials import TOKEN, Credentials
from appliance.core.git.mirror import is_marked
from appliance.core.layout import Layout
from appliance.core.models import Repo
from appliance.core.upstream import read_upstream


class Privacy:
    """What the `credentials` in use and the marks of the mirrors below `layout` say."""

    def __init__(self, layout: Layout, credentials: Credentials) -> None:
        self._layout = layout
        self._credentials = credentials

    def readers(self, name: str, url: str) -> str | None:
        """`token` for a private mirror; `open` for one that a credential fills and everybody may read; else None."""
        upstream = read_upstream(url)
        entry = self._credentials.match(upstream.address)
        if entry is not None:
            return entry.readers
        return TOKEN if upstream.scheme == "ssh" or is_marked(self._layout.mirror(name)) else None

    def is_private(self, repo: Repo) -> bool:
        """Whether only a read token of its own gives a guest anything of a repository."""
        return self.readers(repo.name, repo.url) == TOKEN

    def told(self, documents: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
        """Rows of `repos --json` and `status --json`, with `private` and `readers`."""
        found = []
        for document in documents:
            readers = self.readers(document["name"], document["url"])
            found.append(document | {"private": readers == TOKEN, "readers": readers})
        return found
