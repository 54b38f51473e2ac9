"""Makes guests known and forgets them: the steps that `serve` and a command without it share."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from appliance.core.errors import GitmirrorError, UsageError
from appliance.core.models import Guest, Repo
from appliance.core.process.socket_identity import socket_identity
from appliance.core.serving.net.socket_files import open_directory, remove_dead, temporary_name
from appliance.core.store.guests import GuestOrder, GuestStore, added_document, guest_document
from appliance.core.store.stores import Stores
from appliance.core.text import escape_ascii


def guest_order(request: Mapping[str, Any], find: Callable[[str], Repo], directories: Sequence[str]) -> GuestOrder:
    """The order in a request of the API. `find` finds a repository; `directories` may hold sockets, none means any.

    Raises UnknownRepo, and UsageError for a socket elsewhere.
    """
    unix = request.get("unix")
    if unix is not None and directories:
        _require_below(unix, directories)
    return GuestOrder(
        name=request["name"],
        sessions=tuple(dict.fromkeys(request.get("sessions", ()))),
        repos=tuple(find(name) for name in dict.fromkeys(request.get("repos", ()))),
        only=request.get("only", False),
        unix=unix,
        address=request.get("address"),
        token=request.get("token", False),
        ttl=request.get("ttl"),
    )


def _require_below(unix: str, directories: Sequence[str]) -> None:
    """Raises UsageError if a socket's real directory is in none of `directories`: a link could lead out of them."""
    allowed = [os.path.realpath(directory) for directory in directories]
    with contextlib.suppress(ValueError, OSError):
        parent = os.path.realpath(os.path.dirname(unix))
        if any(Path(parent).is_relative_to(directory) for directory in allowed):
            return
    raise UsageError(
        f"{escape_ascii(unix[:200])!r} is in none of the directories for guests' sockets",
        hint=f"use one below {', '.join(directories)}, or add its directory to socket_directories in [guests]",
    )


def add_alone(stores: Stores, request: Mapping[str, Any], directories: Sequence[str]) -> dict[str, Any]:
    """Makes a guest known from the next start of `serve` on. Raises UsageError, Conflict, UnknownRepo, StoreError."""
    order = guest_order(request, stores.registry.get, directories)
    guests = stores.guests
    for guest in guests.expired():
        _forget(guests, guest)
    others = [guest for guest, _ in guests.all() if guest.name != order.name]
    known = guests.known_as(order)
    guest, token = (known, None) if known is not None else guests.add(order)
    return added_document(guest, token, others)


def guests_alone(stores: Stores) -> list[dict[str, Any]]:
    """The guests that are known, by name, as `guests --json` shows them. Raises StoreError."""
    last, now = stores.guests.last_seen(), time.time()
    return [
        guest_document(guest, last.get(guest.name))
        for guest, _ in stores.guests.all()
        if guest.expires_at is None or guest.expires_at > now
    ]


def remove_alone(stores: Stores, name: str) -> dict[str, Any]:
    """Forgets a guest and removes the files of its sockets that a `serve` left behind. Raises UnknownGuest."""
    guest = stores.guests.get(name)
    _forget(stores.guests, guest)
    return guest_document(guest)


def _forget(guests: GuestStore, guest: Guest) -> None:
    """Removes only files that are still those that `serve` made: another program's may have taken their path."""
    for path, identity in guests.sockets(guest.id).items():
        if socket_identity(path) == identity:
            with contextlib.suppress(OSError):
                os.unlink(path)
    if guest.unix is not None:
        with contextlib.suppress(GitmirrorError):
            directory = open_directory(Path(guest.unix).parent)
            # A `serve` that was killed while it made them leaves them under these names.
            for port in (9418, 9419):
                remove_dead(directory, temporary_name(guest, port))
            os.close(directory)
    guests.remove(guest.name, guest.id)
