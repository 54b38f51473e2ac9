"""The guests that are known now: who comes by which socket, from which address, with which token."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import replace

from appliance.core.models import Guest, Repo
from appliance.core.store.tokens import hash_of

MOST_GONE = 1024
"""The most guests that are remembered after they were forgotten, for as long as their connections may last."""
_FORGOTTEN = Guest(0, "?", (), {}, only=True, unix=None, address=None, has_token=False, created_at=0.0, expires_at=None)
"""Who comes by the socket of a guest that is not even remembered as gone."""
GUEST_TOKEN = re.compile(r"gmg_[A-Za-z0-9_-]{43}")


class KnownGuests:
    """Finds guests in memory, because every request asks. `clock` gives Unix seconds.

    What is here is what holds: a guest that was removed, or whose time is over, is unknown from the next request on. On
    a socket that is its own, it may do nothing from then on.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._by_id: dict[int, Guest] = {}
        self._by_address: dict[str, Guest] = {}
        self._by_hash: dict[str, Guest] = {}
        self._gone: dict[int, Guest] = {}

    def follow(self, guests: Iterable[tuple[Guest, str | None]]) -> None:
        """Replaces all by these, each with the hash of its token."""
        known = list(guests)
        self._by_id = {guest.id: guest for guest, _ in known}
        self._by_address = {guest.address: guest for guest, _ in known if guest.address is not None}
        self._by_hash = {token: guest for guest, token in known if token is not None}

    def put(self, guest: Guest, token: str | None) -> None:
        """Adds one, with the hash of its token."""
        self._by_id[guest.id] = guest
        if guest.address is not None:
            self._by_address[guest.address] = guest
        if token is not None:
            self._by_hash[token] = guest

    def discard(self, guest: Guest) -> None:
        """Forgets one."""
        self._by_id.pop(guest.id, None)
        self._gone[guest.id] = guest
        while len(self._gone) > MOST_GONE:
            del self._gone[next(iter(self._gone))]
        for found in (self._by_address, self._by_hash):
            # A guest has at most one entry in each, and the token's hash is not part of it.
            for key in [key for key, other in found.items() if other.id == guest.id]:
                del found[key]

    def named(self, name: str) -> Guest | None:
        """The guest of that name, or None if it is not known now."""
        return next((guest for guest in self.current() if guest.name == name), None)

    def all(self) -> list[Guest]:
        """Every guest that is known, expired or not."""
        return list(self._by_id.values())

    def current(self) -> list[Guest]:
        """Every guest whose time is not over."""
        return [guest for guest in self._by_id.values() if self._is_current(guest)]

    def expired(self) -> list[Guest]:
        """Those whose time is over."""
        return [guest for guest in self._by_id.values() if not self._is_current(guest)]

    def is_known(self, guest: Guest) -> bool:
        """Whether this guest, and not another of its name, is still known."""
        return self._by_id.get(guest.id) == guest and self._is_current(guest)

    def of(self, socket_of: int | None, address: str, token: str | None = None) -> Guest | None:
        """The guest that a request comes from, or None.

        `socket_of` is the id of the guest whose socket it came by. The way that it came comes first, and nothing that
        the request says changes that; a token counts for a request that came no known way.
        """
        if socket_of is not None:
            found = self._by_id.get(socket_of)
            if found is None or not self._is_current(found):
                # Its connections last a moment longer, and must not give more than before: a stranger has other rights.
                gone = found or self._gone.get(socket_of) or replace(_FORGOTTEN, id=socket_of)
                return replace(gone, sessions=(), repos={}, only=True)
        else:
            found = self._by_address.get(address)
            if found is None and token is not None and GUEST_TOKEN.fullmatch(token):
                found = self._by_hash.get(hash_of(token))
        return found if found is not None and self._is_current(found) else None

    def _is_current(self, guest: Guest) -> bool:
        return guest.expires_at is None or guest.expires_at > self._clock()


def reader_named(guests: KnownGuests, is_private: Callable[[Repo], bool], name: str | None) -> Callable[[Repo], bool]:
    """Returns whether the guest that an operator names may read a repository, at the time of each call.

    Somebody who is not a known guest may read what is open.
    """

    def may_read(repo: Repo) -> bool:
        guest = None if name is None else guests.named(name)
        if guest is not None and guest.repos.get(repo.name) == repo.id:
            return True
        return not (guest is not None and guest.only) and not is_private(repo)

    return may_read
