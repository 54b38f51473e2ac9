"""Finds LFS objects here, or fetches them from the upstream: each one once, however many ask."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import OrderedDict
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from appliance.core.errors import Forbidden, GitmirrorError, NoRoom, NotFound, TooLarge, TryLater
from appliance.core.lfs.bounds import Key, has_its_share, key_of, put
from appliance.core.lfs.flight import Flight, end_all
from appliance.core.lfs.pointers import Pointer
from appliance.core.lfs.stock import LfsStock
from appliance.core.models import Repo

if TYPE_CHECKING:
    from appliance.core.lfs.upstream import LfsUpstreams
    from appliance.core.lfs.upstream_lfs import Action

log = logging.getLogger(__name__)

REMEMBERED = 60.0
"""Seconds for which it is remembered that an object cannot be had."""
AT_ONCE = 100
"""Objects that the upstream is asked for in one request."""
AHEAD = 2
"""Objects that one `fetch` fetches at once, so that guests who wait for one find a free place."""
ATTEMPTS = 3
STEP = 2**26
"""Bytes for which room is made at a time, so that what an upstream only announces evicts nothing."""
PAUSE = 1.0
"""Seconds before the second attempt; twice as many before the third."""
MOST_FLIGHTS = 2048
MOST_ASKED = 10_000
"""Objects for which upstreams are being asked, or will be."""


class LfsObjects:
    """The objects of all repositories. Belongs to one event loop."""

    def __init__(self, stock: LfsStock, upstreams: LfsUpstreams) -> None:
        self.stock = stock
        self.upstreams = upstreams
        self._flights: dict[Key, Flight] = {}
        self._asking: dict[Key, asyncio.Task[None]] = {}
        self._actions: OrderedDict[Key, Action] = OrderedDict()
        self._faults: OrderedDict[Key, tuple[float, GitmirrorError]] = OrderedDict()
        self.hits = self.misses = self.fetched = self.fetched_bytes = self.failed = 0

    @property
    def is_on(self) -> bool:
        """Whether objects are stored at all (`[cache] lfs_budget`)."""
        return self.stock.budget > 0

    # For those who build workspaces

    def path_if_here(self, repo: Repo, oid: str) -> Path | None:
        """The object's file, or None; marks it used. It can be opened for a minute, and read as long as it is open."""
        return self.stock.path(repo, oid) if self.is_on else None

    async def fetch(self, repo: Repo, pointers: Sequence[Pointer]) -> set[str]:
        """Fetches what is missing from the upstream. Returns the ids of those that are here then. Never raises.

        Those that are here are read if they were touched, or not read since the start.
        """
        here: set[str] = set()
        if not self.is_on:
            return here
        wanted, goes_on = list(dict.fromkeys(pointers)), True
        for at in range(0, len(wanted), AT_ONCE):
            # Each look at a file takes time on the event loop, and a repository may have fifty thousand.
            await asyncio.sleep(0)
            part = wanted[at : at + AT_ONCE]
            for pointer in part:
                await self.stock.check(repo, pointer.oid)
            if goes_on:
                await self.offer(repo, part, None)
                waiting = iter(part)
                goes_on = all(await asyncio.gather(*(self._fetch_ahead(repo, waiting) for _ in range(AHEAD))))
            here |= {pointer.oid for pointer in part if self.stock.path(repo, pointer.oid) is not None}
        return here

    async def _fetch_ahead(self, repo: Repo, waiting: Iterator[Pointer]) -> bool:
        """Fetches one after the other. Returns False once the upstream cannot be asked, or there is no room."""
        for pointer in waiting:
            try:
                if (flight := self._fly(repo, pointer)) is not None:
                    await flight.ends()
                    if flight.fault is not None:
                        raise flight.fault
            except (TryLater, NoRoom):
                return False
            except GitmirrorError:
                continue
        return True

    # For guests

    async def offer(
        self, repo: Repo, pointers: Sequence[Pointer], seconds: float | None
    ) -> dict[Pointer, GitmirrorError | None]:
        """Whether each object can be had: None if it is here or the upstream has it, else why not.

        Of an upstream that has not answered after `seconds`, or for which too many questions wait, it is said that it
        can be had; None waits for the answer.
        """
        missing = [each for each in pointers if self._must_ask(repo, each)]
        for at in range(0, len(missing), AT_ONCE):
            if not has_its_share(self._asking, repo, MOST_ASKED):
                self._start_asking(repo, missing[at : at + AT_ONCE])
        tasks = {task for each in pointers if (task := self._asking.get(key_of(repo, each))) is not None}
        if tasks:
            await asyncio.wait(tasks, timeout=seconds)
        return {each: None if self.stock.path(repo, each.oid) else self._fault(repo, each) for each in pointers}

    async def open(self, repo: Repo, oid: str, size: int | None, seconds: float) -> Path | Flight:
        """The object's file, or the object as it arrives. Raises GitmirrorError, TryLater after `seconds`.

        A flight must be opened before anything is awaited.
        """
        await self.stock.check(repo, oid)
        if (path := self.stock.path(repo, oid)) is not None:
            self.hits += 1
            return path
        if size is None:
            raise NotFound("this LFS object is not here; ask the batch API for it")
        self.misses += 1
        if (flight := self._fly(repo, Pointer(oid, size))) is not None:
            if not await flight.begins(seconds):
                raise TryLater("the upstream has not sent this LFS object yet; try again", retry_after=5)
            if flight.fault is not None:
                raise flight.fault
            if not flight.is_over:
                return flight
        path = self.stock.path(repo, oid)
        if path is None:
            raise TryLater("this LFS object was just evicted; try again", retry_after=1)
        return path

    # Asking

    def _must_ask(self, repo: Repo, pointer: Pointer) -> bool:
        key = key_of(repo, pointer)
        if key in self._asking or key in self._flights or self.stock.path(repo, pointer.oid) is not None:
            return False
        action = self._actions.get(key)
        return self._fault(repo, pointer) is None and not (action is not None and action.is_current)

    def _start_asking(self, repo: Repo, pointers: Sequence[Pointer]) -> None:
        task = asyncio.create_task(self._ask(repo, pointers), name="LFS batch")
        for pointer in pointers:
            self._asking[key_of(repo, pointer)] = task

    async def _ask(self, repo: Repo, pointers: Sequence[Pointer]) -> None:
        try:
            found: dict[Pointer, Action | GitmirrorError]
            try:
                found = await self.upstreams.ask(repo, pointers)
            except GitmirrorError as error:
                found = dict.fromkeys(pointers, error)
                log.info("%s: LFS objects cannot be had: %s", repo.name, error.message)
            for pointer, answer in found.items():
                if isinstance(answer, GitmirrorError):
                    self._remember(repo, pointer, answer)
                else:
                    put(self._actions, key_of(repo, pointer), answer)
        finally:
            for pointer in pointers:
                self._asking.pop(key_of(repo, pointer), None)

    def _remember(self, repo: Repo, pointer: Pointer, fault: GitmirrorError) -> None:
        # A failure that may pass is remembered only briefly: long enough that many who ask cause no storm of requests.
        seconds = min(REMEMBERED, fault.retry_after) if isinstance(fault, TryLater) else REMEMBERED
        put(self._faults, key_of(repo, pointer), (time.monotonic() + seconds, fault))

    def _fault(self, repo: Repo, pointer: Pointer) -> GitmirrorError | None:
        until, fault = self._faults.get(key_of(repo, pointer), (0.0, None))
        return fault if time.monotonic() < until else None

    async def _action(self, repo: Repo, pointer: Pointer) -> Action:
        """How the object is fetched, as known or asked anew. Raises GitmirrorError."""
        key = key_of(repo, pointer)
        known = self._actions.get(key)
        if key not in self._asking and (known is None or not known.is_current):
            self._start_asking(repo, [pointer])
        if (task := self._asking.get(key)) is not None:
            await asyncio.wait([task])
        if (fault := self._fault(repo, pointer)) is not None:
            raise fault
        if (action := self._actions.pop(key, None)) is None:
            raise TryLater("the upstream was not asked for this LFS object; try again", retry_after=1)
        return action

    # Fetching

    def _fly(self, repo: Repo, pointer: Pointer) -> Flight | None:
        """The flight of an object, begun if there is none; None if it is here. Raises GitmirrorError."""
        if self.stock.path(repo, pointer.oid) is not None:
            return None
        if (fault := self._fault(repo, pointer)) is not None:
            raise fault
        if pointer.size > self.stock.budget:
            raise TooLarge("this LFS object is larger than [cache] lfs_budget of this node")
        key = key_of(repo, pointer)
        flight = self._flights.get(key)
        if flight is None:
            if has_its_share(self._flights, repo, MOST_FLIGHTS):
                raise TryLater("too many LFS objects are being fetched; try again", retry_after=2)
            flight = self._flights[key] = Flight(repo.name, pointer)
            flight.task = asyncio.create_task(self._bring(repo, flight), name="LFS object")
        return flight

    async def _bring(self, repo: Repo, flight: Flight) -> None:
        """Fetches an object, in several attempts as long as no guest has seen bytes of a failed one."""
        pointer = flight.pointer
        fault: GitmirrorError | None = None
        try:
            for attempt in range(ATTEMPTS):
                try:
                    await self._attempt(repo, flight)
                    fault = None
                    break
                except (TryLater, Forbidden) as error:
                    # A signed address may have expired, so that the upstream is asked for another one.
                    fault = error
                    if flight.readers or attempt == ATTEMPTS - 1 or self._fault(repo, pointer) is not None:
                        break
                    flight.forget()
                    await asyncio.sleep(PAUSE * 2**attempt)
        except GitmirrorError as error:
            fault = error
        except OSError as error:
            fault = GitmirrorError(f"LFS objects cannot be stored on this node: {error.strerror}")
        except asyncio.CancelledError:
            fault = TryLater("this node stops fetching LFS objects; try again", retry_after=5)
            raise
        finally:
            self._flights.pop(key_of(repo, pointer), None)
            if fault is not None:
                self.failed += 1
                log.warning("%s: the LFS object %s was not fetched: %s", repo.name, pointer.oid, fault.message)
                if not isinstance(fault, NoRoom) and self._fault(repo, pointer) is None:
                    self._remember(repo, pointer, fault)
            flight.end(fault)

    async def _attempt(self, repo: Repo, flight: Flight) -> None:
        pointer, loop = flight.pointer, asyncio.get_running_loop()
        action = await self._action(repo, pointer)
        path = self.stock.begin(repo)
        reserved, arrived, is_over = 0, 0, False

        async def make_room(most: int) -> None:
            nonlocal reserved
            if is_over:
                # The thread had not noticed yet that it was cancelled, and nobody would give the room back.
                raise TryLater("the LFS object is not fetched any more", retry_after=1)
            if not reserved:
                self.stock.require_room(pointer.size)
            self.stock.make_room(most)
            reserved += most

        def reserve(wanted: int) -> None:
            if wanted > reserved or not reserved:
                most = min(max(STEP, wanted - reserved), pointer.size - reserved)
                asyncio.run_coroutine_threadsafe(make_room(most), loop).result()

        def begin(_: bytes) -> None:
            # Not earlier, because a guest may state any size, and the upstream has confirmed this one.
            reserve(0)

        def sink(data: bytes) -> None:
            nonlocal arrived
            arrived += len(data)
            reserve(arrived)
            written = flight.write(data)
            if written == pointer.size:
                flight.settle()
            loop.call_soon_threadsafe(flight.advance, written)

        try:
            flight.start(path)
            await self.upstreams.fetch(repo, pointer, action, begin, sink)
            if pointer.size == 0:
                flight.settle()
            self.stock.add(repo, pointer.oid, path, pointer.size)
            self.fetched += 1
            self.fetched_bytes += pointer.size
        finally:
            is_over = True
            self.stock.give_back(reserved)
            with contextlib.suppress(OSError):
                path.unlink()

    # The life of the store

    async def start(self, mirrored: Collection[str]) -> None:
        """Finds what an earlier `serve` left of the repositories that have a mirror. Never raises."""
        self.stock.look()
        try:
            await asyncio.to_thread(self.stock.load)
        except OSError as error:
            log.error("the LFS objects on disk cannot be read: %s", error)
        if mirrored:
            self.stock.keep_only(mirrored)
        await self.stock.set_budget(self.stock.budget)

    async def recover(self, mirrored: Collection[str]) -> None:
        """Checks a directory that could not be used again, and finds what is in it if it can be used now."""
        if self.stock.trouble and self.stock.look():
            await self.start(mirrored)

    def forget(self, repo: Repo) -> None:
        """Stops fetching for a repository that is not followed any more. What is here stays until it is purged."""
        for key, flight in list(self._flights.items()):
            if key.repo == repo.id and flight.task is not None:
                flight.task.cancel()
        for known in (self._actions, self._faults):
            for key in [key for key in known if key.repo == repo.id]:
                del known[key]

    async def purge(self, name: str) -> None:
        """Removes all objects of a repository that is removed."""
        await end_all([flight.task for flight in self._flights.values() if flight.repo == name])
        # A removal that has not begun must not be cancelled together with whoever waits for it.
        await asyncio.shield(asyncio.wrap_future(self.stock.purge(name)))

    async def stop(self) -> None:
        """Ends what is being fetched."""
        await end_all([*self._asking.values(), *(flight.task for flight in self._flights.values())])

    def gauges(self) -> Iterator[tuple[str, str, float]]:
        """The current values for /metrics: name, help text, value."""
        yield from self.stock.gauges()
        yield "lfs_hits", "LFS objects that guests asked for and that were here, since the start.", self.hits
        yield "lfs_misses", "LFS objects that guests asked for and that were not here, since the start.", self.misses
        yield "lfs_fetched", "LFS objects fetched from upstreams since the start.", self.fetched
        yield "lfs_fetched_bytes", "Bytes of LFS objects fetched from upstreams since the start.", self.fetched_bytes
        yield "lfs_fetching", "LFS objects that are being fetched.", len(self._flights)
        yield "lfs_failed", "LFS objects that could not be fetched since the start.", self.failed
