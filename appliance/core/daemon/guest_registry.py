"""Adds, removes and ends known guests: in the database, in what requests look up, and on disk as sockets."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from appliance.core.access.known_guests import KnownGuests
from appliance.core.errors import GitmirrorError
from appliance.core.models import Guest
from appliance.core.serving.net.guest_sockets import GuestSockets
from appliance.core.serving.net.seats import Seats
from appliance.core.store.guests import GuestOrder, GuestStore, UnknownGuest, added_document, guest_document

log = logging.getLogger(__name__)

LOOK_EVERY = 0.5
"""Seconds between two looks for guests whose time is over. Their requests are refused at once in any case."""


@dataclass
class GuestRegistry:
    """Keeps `known` and `sockets` in step with `store`. `seats` has the connections of all guests."""

    store: GuestStore
    known: KnownGuests
    sockets: GuestSockets
    seats: Seats
    problems: dict[int, str] = field(default_factory=dict)
    """Why a guest cannot come by its sockets, by its id."""
    _one_at_a_time: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def open(self) -> None:
        """Reads the guests and opens their sockets, when `serve` starts. A socket that fails does not stop the rest.

        Raises StoreError.
        """
        async with self._one_at_a_time:
            await self._follow()
            for guest in self.known.all():
                try:
                    self.sockets.open(guest)
                except GitmirrorError as error:
                    self.problems[guest.id] = error.message
                    log.error("the guest %s cannot come: %s", guest.name, error.message)

    async def add(self, order: GuestOrder) -> tuple[dict[str, Any], bool]:
        """Makes a guest known. Returns its document, with `token` and `shared`, and whether it is new.

        It is not new if this very order made it known before. Raises UsageError, Conflict, GitmirrorError, and then it
        is not known.
        """
        async with self._one_at_a_time:
            for expired in self.known.expired():
                await self._forget(expired)
            others = [guest for guest in self.known.all() if guest.name != order.name]
            known = await asyncio.to_thread(self.store.known_as, order)
            if known is not None:
                return added_document(known, None, others), False
            guest, token = await asyncio.to_thread(self.store.add, order)
            try:
                self.sockets.open(guest)
            except BaseException:
                await asyncio.to_thread(self.store.remove, guest.name, guest.id)
                raise
            await self._follow()
        return added_document(guest, token, others), True

    async def remove(self, name: str) -> dict[str, Any]:
        """Forgets a guest, ends its connections and removes its sockets. Raises UnknownGuest, StoreError."""
        async with self._one_at_a_time:
            guest = await asyncio.to_thread(self.store.get, name)
            await self._forget(guest)
        return guest_document(guest)

    async def _forget(self, guest: Guest) -> None:
        """Forgets this guest, and not another one that has its name by now."""
        with contextlib.suppress(UnknownGuest):
            await asyncio.to_thread(self.store.remove, guest.name, guest.id)
        await self._follow()
        self._end(guest)

    async def documents(self) -> list[dict[str, Any]]:
        """Every known guest, by name, as `guests --json` shows it. Raises StoreError."""
        last = await asyncio.to_thread(self.store.last_seen)
        return [
            guest_document(guest, last.get(guest.name), self.problems.get(guest.id))
            for guest in sorted(self.known.current(), key=lambda guest: guest.name)
        ]

    def gauges(self) -> Iterator[tuple[str, str, float]]:
        """The gauges for /metrics."""
        known = self.known.current()
        yield "gitmirror_known_guests", "Guests that are known.", len(known)
        cannot = sum(guest.id in self.problems for guest in known)
        yield "gitmirror_known_guests_cut_off", "Known guests that cannot come by their sockets.", cannot

    def pulse(self) -> dict[str, Any]:
        """How many guests are known, and what only a running `serve` knows: why some cannot come, by their names."""
        names = {guest.id: guest.name for guest in self.known.current()}
        problems = {names[guest]: problem for guest, problem in self.problems.items() if guest in names}
        return {"count": len(names), "problems": problems}

    async def run(self) -> None:
        """Removes guests whose time is over, without end."""
        while True:
            await asyncio.sleep(LOOK_EVERY)
            for guest in self.known.expired():
                try:
                    log.info("the guest %s is no longer known: its time is over", guest.name)
                    async with self._one_at_a_time:
                        await self._forget(guest)
                except GitmirrorError as error:
                    log.error("the guest %s cannot be removed yet: %s", guest.name, error.message)
                    self._end(guest)

    def _end(self, guest: Guest) -> None:
        self.problems.pop(guest.id, None)
        self.sockets.close(guest.id)
        self.seats.end_guest(guest.id)

    async def _follow(self) -> None:
        self.known.follow(await asyncio.to_thread(self.store.all))
