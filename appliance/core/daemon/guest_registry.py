"""Adds, removes and ends known guests: in the database, in what requests look up, and on disk as sockets."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from appliance.core.access.known_guests import KnownGuests
from appliance.core.models import Guest
from appliance.core.process.endurance import Endurance
from appliance.core.serving.net.guest_sockets import GuestSockets
from appliance.core.serving.net.seats import Seats
from appliance.core.store.database import StoreError
from appliance.core.store.guests import GuestOrder, GuestStore, UnknownGuest, added_document, guest_document
from appliance.core.store.tokens import hash_of

log = logging.getLogger(__name__)

LOOK_EVERY = 0.5
"""Seconds between two looks for guests whose time is over. Their requests are refused at once in any case."""
RETRY_EVERY = 2.0
"""Seconds between two attempts to open the sockets that could not be opened."""
CHECK_EVERY = 10.0
"""Seconds between two looks for sockets whose file somebody removed. A look at 1,000 guests takes 10 ms in a thread."""
MOST_NAMED = 5


@dataclass
class GuestRegistry:
    """Keeps `known` and `sockets` in step with `store`. `seats` has the connections of all guests."""

    store: GuestStore
    known: KnownGuests
    sockets: GuestSockets
    seats: Seats
    problems: dict[int, str] = field(default_factory=dict)
    """Why a guest cannot come by its sockets, by its id."""
    unread: str | None = "they were not read yet"
    """Why the guests could not be read; until they can, nobody is known."""
    _ended: set[int] = field(default_factory=set)
    """Guests whose time is over, and that cannot be removed from the database yet."""
    _one_at_a_time: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def open(self, kept: Mapping[str, socket.socket]) -> None:
        """Reads the guests and opens their sockets, when `serve` starts; `kept` are those that systemd kept for it.

        A guest whose sockets cannot be opened does not stop the rest. Raises StoreError, and `run` tries again.
        """
        self.sockets.inherit(kept)
        await self._read()

    async def add(self, order: GuestOrder) -> tuple[dict[str, Any], bool]:
        """Makes a guest known. Returns its document, with `token` and `shared`, and whether it is new.

        It is not new if this very order made it known before. Raises UsageError, Conflict, GitmirrorError, and then it
        is not known.
        """
        async with self._one_at_a_time:
            for expired in self.known.expired():
                await self._forget_expired(expired)
            others = [guest for guest in self.known.all() if guest.name != order.name]
            known = await asyncio.to_thread(self.store.known_as, order)
            if known is not None:
                if not self.known.is_known(known):
                    # Its removal could not be stored, or the guests could not be read.
                    self.known.put(known, None)
                    await self._open([known])
                return added_document(known, None, others), False
            guest, token = await asyncio.to_thread(self.store.add, order)
            try:
                await self._open_one(guest)
            except BaseException:
                with contextlib.suppress(StoreError):
                    await asyncio.to_thread(self.store.remove, guest.name, guest.id)
                raise
            self.known.put(guest, None if token is None else hash_of(token))
        return added_document(guest, token, others), True

    async def remove(self, name: str) -> dict[str, Any]:
        """Forgets a guest, ends its connections and removes its sockets. Raises UnknownGuest, StoreError.

        Its sockets are removed first, because a kill after the database forgot them would leave them for ever. When the
        database then cannot be written, the guest is shut out, but `serve` will know it again after a restart.
        """
        async with self._one_at_a_time:
            guest = await asyncio.to_thread(self.store.get, name)
            await self._shut_out(guest)
            try:
                with contextlib.suppress(UnknownGuest):
                    await asyncio.to_thread(self.store.remove, guest.name, guest.id)
            except StoreError:
                log.error("the guest %s was shut out, but it is known again after a restart", name)
                raise
        return guest_document(guest)

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
        yield "known_guests", "Guests that are known.", len(known)
        cannot = sum(guest.id in self.problems for guest in known)
        yield "known_guests_cut_off", "Known guests that cannot come by their sockets.", cannot

    def pulse(self) -> dict[str, Any]:
        """How many guests are known, and what only a running `serve` knows: why some cannot come, by their names."""
        names = {guest.id: guest.name for guest in self.known.current()}
        problems = {names[guest]: problem for guest, problem in self.problems.items() if guest in names}
        return {"count": len(names), "problems": problems}

    def trouble(self) -> str | None:
        """The warning about guests that are not known, or cannot come, although they should."""
        if self.unread is not None:
            return (
                "the known guests cannot be read, so nobody is known; their sockets are closed, and private "
                f"repositories need a read token: {self.unread}"
            )
        if not self.problems:
            return None
        names = {guest.id: guest.name for guest in self.known.all()}
        told = [f"{names[number]} ({why})" for number, why in self.problems.items() if number in names]
        if not told:
            return None
        more = f" and {len(told) - MOST_NAMED} more" if len(told) > MOST_NAMED else ""
        return f"guests that cannot come by their sockets: {'; '.join(told[:MOST_NAMED])}{more}"

    async def run(self) -> None:
        """Removes guests whose time is over, and opens sockets that are gone or could not be opened. Never ends."""
        endurance, loop = Endurance(log, "looking after known guests"), asyncio.get_running_loop()
        retry_at, check_at = loop.time() + RETRY_EVERY, loop.time() + CHECK_EVERY
        while True:
            await asyncio.sleep(LOOK_EVERY)
            for guest in self.known.expired():
                with endurance.over(guest.name):
                    await self._expire(guest)
            if loop.time() >= check_at:
                check_at = loop.time() + CHECK_EVERY
                with endurance.over("sockets"):
                    await self._check()
            if loop.time() >= retry_at:
                retry_at = loop.time() + RETRY_EVERY
                with endurance.over("retries"):
                    await self._retry()

    async def _expire(self, guest: Guest) -> None:
        """Raises StoreError, and then it is shut out all the same."""
        if guest.id not in self._ended:
            log.info("the guest %s is no longer known: its time is over", guest.name)
            self._ended.add(guest.id)
        async with self._one_at_a_time:
            await self._forget_expired(guest)

    async def _forget_expired(self, guest: Guest) -> None:
        """Forgets this guest, and not another one that has its name by now. Raises StoreError."""
        self._end(guest)
        with contextlib.suppress(UnknownGuest):
            await asyncio.to_thread(self.store.remove, guest.name, guest.id)
        await self._shut_out(guest)
        self._ended.discard(guest.id)

    async def _shut_out(self, guest: Guest) -> None:
        is_open = guest.id in self.sockets
        self.known.discard(guest)
        self._end(guest)
        if not is_open and guest.unix is not None:
            with contextlib.suppress(StoreError):
                self.sockets.clean(guest, await asyncio.to_thread(self.store.sockets))

    def _end(self, guest: Guest) -> None:
        self.problems.pop(guest.id, None)
        self.sockets.close(guest.id)
        self.seats.end_guest(guest.id)

    # -- sockets ---------------------------------------------------------------------------------------------

    async def _read(self) -> None:
        """Reads all guests, and opens their sockets. Raises StoreError."""
        async with self._one_at_a_time:
            try:
                guests = await asyncio.to_thread(self.store.all)
            except StoreError as error:
                self.unread = error.message
                raise
            self.unread = None
            self.known.follow(guests)
            over = self.known.expired()
            if over:
                remembered = await asyncio.to_thread(self.store.sockets)
                for guest in over:
                    self.sockets.clean(guest, remembered)
            await self._open(guest for guest in self.known.all() if guest not in over)
            self.sockets.forget_inherited()

    async def _open_one(self, guest: Guest) -> None:
        """Opens the sockets of a new guest. Raises GitmirrorError."""
        if guest.unix is None:
            return
        made, problems = await asyncio.to_thread(self.sockets.open, [guest], {})
        for error in problems.values():
            raise error
        self.sockets.accept(made, {guest.id: guest})

    async def _open(self, guests: Iterable[Guest]) -> None:
        """Opens the sockets of guests that are known, and notes why it cannot. Raises StoreError."""
        closed = {guest.id: guest for guest in guests if guest.unix is not None and guest.id not in self.sockets}
        if not closed:
            return
        remembered = await asyncio.to_thread(self.store.sockets)
        try:
            made, problems = await asyncio.to_thread(self.sockets.open, closed.values(), remembered)
        except StoreError as error:
            self.problems.update(dict.fromkeys(closed, error.message))
            raise
        self.sockets.accept(made, closed)
        for number in made:
            if self.problems.pop(number, None) is not None:
                log.info("the guest %s can come again", closed[number].name)
        for number, problem in problems.items():
            if self.problems.get(number) != problem.message:
                log.error("the guest %s cannot come: %s", closed[number].name, problem.message)
            self.problems[number] = problem.message

    async def _retry(self) -> None:
        """Raises StoreError."""
        if self.unread is not None:
            await self._read()
        if self.problems:
            async with self._one_at_a_time:
                expired = self.known.expired()
                await self._open(
                    guest for guest in self.known.all() if guest.id in self.problems and guest not in expired
                )
        self.sockets.hand_over_again()

    async def _check(self) -> None:
        """Closes the sockets that nobody can reach any more, so that they are opened again. Raises StoreError."""
        async with self._one_at_a_time:
            for number in await asyncio.to_thread(self.sockets.lost):
                self.sockets.close(number)
                self.problems[number] = "its socket was removed or replaced"
        if self.problems:
            await self._retry()
