"""Who may read which mirror.

A mirror is private when a `[[credentials]]` entry without `readers = "open"` applies to its upstream. Removing the
entry does not make the mirror public: what was fetched with a credential stays private until a refresh without one has
succeeded, which proves that everybody may read the upstream. A mirror of an ssh upstream is public only when an entry
says so.
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
    """Decides from the `credentials` in use and from the marks of the mirrors below `layout`."""

    def __init__(self, layout: Layout, credentials: Credentials) -> None:
        self._layout = layout
        self._credentials = credentials

    def readers(self, name: str, url: str) -> str | None:
        """Returns `token` for a private mirror, `open` if an entry with `readers = "open"` applies to it, else None."""
        upstream = read_upstream(url)
        entry = self._credentials.match(upstream.address)
        if entry is not None:
            return entry.readers
        return TOKEN if upstream.scheme == "ssh" or is_marked(self._layout.mirror(name)) else None

    def is_private(self, repo: Repo) -> bool:
        """Whether guests need a read token to read the repository."""
        return self.readers(repo.name, repo.url) == TOKEN

    def told(self, documents: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
        """Adds `private` and `readers` to the rows of `repos --json` and `status --json`."""
        found = []
        for document in documents:
            readers = self.readers(document["name"], document["url"])
            found.append(document | {"private": readers == TOKEN, "readers": readers})
        return found
