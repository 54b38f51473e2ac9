"""Who a request comes from, by what is kept in memory: addresses in all their spellings, and guests that are gone."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from appliance.core.access import known_guests
from appliance.core.access.known_guests import KnownGuests
from appliance.core.config.settings import GuestsConfig
from appliance.core.daemon.guest_registry import GuestRegistry
from appliance.core.errors import Conflict, UsageError
from appliance.core.models import Guest
from appliance.core.serving.net.guest_sockets import GuestSockets
from appliance.core.serving.net.seats import Seats
from appliance.core.store.database import Database, StoreError
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


def test_an_order_after_a_removal_that_failed_is_obeyed(store: GuestStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk kept its row, so the order looks like one that was sent twice; but nobody knew the guest."""
    known = KnownGuests(lambda: 0.0)
    sockets = GuestSockets({}, store.note_sockets, GuestsConfig)
    registry, order = GuestRegistry(store, known, sockets, Seats(1)), GuestOrder("vm-1", address="10.0.0.7")

    def fail(name: str, guest_id: int) -> None:
        raise StoreError("full")

    async def main() -> None:
        await registry.add(order)
        with monkeypatch.context() as patch, pytest.raises(StoreError):
            patch.setattr(store, "remove", fail)
            await registry.remove("vm-1")
        assert known.of(None, "10.0.0.7") is None
        await registry.add(order)
        found = known.of(None, "10.0.0.7")
        assert found is not None and found.name == "vm-1"

    asyncio.run(main())
