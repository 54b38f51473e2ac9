"""Who a request comes from, by what is kept in memory: addresses in all their spellings, and guests that are gone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from appliance.core.access import known_guests
from appliance.core.access.known_guests import KnownGuests
from appliance.core.errors import Conflict, UsageError
from appliance.core.models import Guest
from appliance.core.store.database import Database
from appliance.core.store.guests import GuestOrder, GuestStore

GUEST = Guest(
    1, "vm-1", ("*",), {}, only=False, unix="/v", address=None, has_token=False, created_at=0, expires_at=None
)


@pytest.fixture
def store(tmp_path: Path) -> GuestStore:
    """Without guests."""
    return GuestStore(Database(tmp_path / "gitmirror.db"), lambda: 0.0)


@pytest.mark.parametrize(
    ("told", "comes_as"),
    [
        ("::ffff:10.0.0.7", "10.0.0.7"),
        ("::FFFF:A00:7", "10.0.0.7"),
        ("FD00:0:0::A", "fd00::a"),
        ("::ffff:0:0:7", "::ffff:0:0:7"),
        ("fe80::1%eth0", "fe80::1%eth0"),
    ],
)
def test_an_address_is_found_as_connections_have_it(store: GuestStore, told: str, comes_as: str) -> None:
    """A dual-stack socket reports IPv4 addresses as such, so a guest of the other spelling would be a stranger."""
    guest, _ = store.add(GuestOrder("vm-1", address=told))
    assert guest.address == comes_as
    with pytest.raises(Conflict):
        store.add(GuestOrder("vm-2", address=comes_as))


@pytest.mark.parametrize(
    "address", ["fe80::1", "fd00::1%eth0", "fe80::1%2", "fe80::1%a b", "fe80::1%a\n", "::", "0.0.0.0", "224.0.0.1"]
)
def test_an_address_from_which_nobody_comes_is_refused(store: GuestStore, address: str) -> None:
    """The guest would silently be a stranger, who may be allowed more."""
    with pytest.raises(UsageError):
        store.add(GuestOrder("vm-1", address=address))


def test_a_socket_never_makes_a_stranger(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even that of a guest that was forgotten long ago."""
    monkeypatch.setattr(known_guests, "MOST_GONE", 1)
    known = KnownGuests(lambda: 0.0)
    for number in (1, 2):
        guest = replace(GUEST, id=number, name=f"vm-{number}")
        known.put(guest, None)
        known.discard(guest)
    for number in (1, 2, 3):
        found = known.of(number, "unix:vm-1")
        assert found is not None and found.only and not found.sessions and not found.repos
