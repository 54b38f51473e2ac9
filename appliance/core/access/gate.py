"""Finds the repository that a guest may read at a path. Both of the guests' ports use it.

A private repository does not exist for a guest without a read token for it: the guest gets the same error message and
the same redirect as for a path that nobody has ever registered.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Awaitable, Callable

from appliance.core.access.catalog import Catalog
from appliance.core.access.known_guests import KnownGuests
from appliance.core.models import Guest, Repo

READ_TOKEN = re.compile(r"gmt_[A-Za-z0-9_-]{43}")

Grants = Callable[[str], Awaitable[int | None]]
"""Returns the id of the repository that a read token grants now, or None. Raises GitmirrorError if the lookup fails."""


def _ignore(repo: Repo) -> None:
    """Nobody wants to know which repositories are used."""


class AccessGate:
    """Finds repositories in `catalog`, which is replaced when the registry or the config changes.

    `mirrored` returns whether a repository's mirror exists. `on_use` is called with each repository that a guest gets;
    it must not wait.
    """

    def __init__(
        self,
        mirrored: Callable[[Repo], bool],
        grants: Grants,
        guests: KnownGuests,
        on_use: Callable[[Repo], None] = _ignore,
    ) -> None:
        self._mirrored = mirrored
        self._grants = grants
        self._guests = guests
        self.on_use = on_use
        self.catalog = Catalog()

    def guest_of(self, socket_of: int | None, address: str, authorization: str | None = None) -> Guest | None:
        """Returns the known guest that a request comes from, or None; see `KnownGuests.of`."""
        return self._guests.of(socket_of, address, token_in(authorization or ""))

    def shows(self, repo: Repo, guest: Guest | None = None) -> bool:
        """Returns whether a guest may know of a repository without a token."""
        if guest is not None and guest.repos.get(repo.name) == repo.id:
            return True
        return not (guest is not None and guest.only) and self.catalog.private(repo.id) is None

    def find(self, path: str, guest: Guest | None = None) -> Repo | None:
        """Returns the repository at a path if a guest may read it without a token, or None."""
        if guest is not None:
            repo = self.catalog.find_private(path) or self.catalog.find(path)
            if repo is not None and guest.repos.get(repo.name) == repo.id:
                return self._there(repo)
            if guest.only:
                return None
        return self._there(self.catalog.find(path))

    async def find_for(self, path: str, authorization: str | None, guest: Guest | None = None) -> Repo | None:
        """Returns the repository at a path if a guest with this `Authorization` header may read it, or None.

        The token is looked up whatever the path is, so that an unknown path takes as long as a private one. Raises
        GitmirrorError when the lookup fails.
        """
        if (granted := await self._granted(authorization)) is not None:
            repo = self.catalog.find_private(path)
            if repo is not None and repo.id == granted:
                return self._there(repo)
        return self.find(path, guest)

    async def reader(self, authorization: str | None, guest: Guest | None = None) -> Callable[[Repo], bool]:
        """Returns a function that says whether a guest with this `Authorization` header may read a repository.

        Raises GitmirrorError when the lookup of a token fails.
        """
        granted = await self._granted(authorization)
        return lambda repo: repo.id == granted or self.shows(repo, guest)

    async def _granted(self, authorization: str | None) -> int | None:
        """The id of the repository that a header's read token grants, or None."""
        token = token_in(authorization or "")
        return await self._grants(token) if token is not None and READ_TOKEN.fullmatch(token) else None

    def find_any(self, path: str) -> Repo | None:
        """Returns the enabled repository at a path for an operator, even if it is private or not cloned yet."""
        return self.catalog.find(path) or self.catalog.find_private(path)

    def _there(self, repo: Repo | None) -> Repo | None:
        if repo is None or not self._mirrored(repo):
            return None
        self.on_use(repo)
        return repo


def token_in(authorization: str) -> str | None:
    """Returns the token in a header: a bearer token, or the password of any user (RFC 6750, RFC 7617)."""
    kind, _, value = authorization.strip().partition(" ")
    token = value.strip()
    if kind.lower() == "basic":
        try:
            token = base64.b64decode(token, validate=True).decode().partition(":")[2]
        except ValueError:
            return None
    elif kind.lower() != "bearer":
        return None
    return token
