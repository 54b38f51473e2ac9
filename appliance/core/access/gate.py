"""The one gate of both guests' ports: which repository a guest may have by a path, if any.

A private repository is not there for whoever has no read token of it. Everything that follows from that, the words and
the redirect, is then what it is for a path that nobody has ever registered.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Awaitable, Callable

from appliance.core.access.catalog import Catalog
from appliance.core.models import Repo

READ_TOKEN = re.compile(r"gmt_[A-Za-z0-9_-]{43}")

Grants = Callable[[str], Awaitable[int | None]]
"""Tells which repository, by its id, a read token is for at this moment. Raises GitmirrorError when it cannot look."""


class AccessGate:
    """Finds repositories in `catalog`, which is replaced when the registry or the config changes.

    `mirrored` tells whether a repository's mirror is there.
    """

    def __init__(self, mirrored: Callable[[Repo], bool], grants: Grants) -> None:
        self._mirrored = mirrored
        self._grants = grants
        self.catalog = Catalog()

    def find(self, path: str) -> Repo | None:
        """What everybody may have."""
        return self._there(self.catalog.find(path))

    async def find_for(self, path: str, authorization: str | None) -> Repo | None:
        """What a guest may have that sent this `Authorization` header. Raises GitmirrorError.

        The token is looked up whatever the path is, so that an unknown one takes as long as a private one.
        """
        token = _token_of(authorization or "")
        if token is not None and (granted := await self._grants(token)) is not None:
            repo = self.catalog.find_private(path)
            if repo is not None and repo.id == granted:
                return self._there(repo)
        return self.find(path)

    def find_any(self, path: str) -> Repo | None:
        """What is enabled, private or not, cloned or not: for this node's operators."""
        return self.catalog.find(path) or self.catalog.find_private(path)

    def _there(self, repo: Repo | None) -> Repo | None:
        return repo if repo is not None and self._mirrored(repo) else None


def _token_of(authorization: str) -> str | None:
    """The read token in a header: as a bearer's, or as the password of any user (RFC 6750, RFC 7617)."""
    kind, _, value = authorization.strip().partition(" ")
    token = value.strip()
    if kind.lower() == "basic":
        try:
            token = base64.b64decode(token, validate=True).decode().partition(":")[2]
        except ValueError:
            return None
    elif kind.lower() != "bearer":
        return None
    return token if READ_TOKEN.fullmatch(token) else None
