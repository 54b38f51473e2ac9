"""Finds LFS objects here, or fetches them from the upstream: each one once, however many ask."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import OrderedDict
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from appliance.core.errors import Forbidden, GitmirrorError, NoRoom, NotFound, TooLarge, TryLater
from appliance.core.lfs.flight import Flight
from appliance.core.lfs.pointers import Pointer
from appliance.core.lfs.stock import Evicted, LfsStock
from appliance.core.models import Repo

if TYPE_CHECKING:
    from appliance.core.lfs.upstream import LfsUpstreams
    from appliance.core.lfs.upstream_lfs import Action

log = logging.getLogger(__name__)
_Value = TypeVar("_Value")

REMEMBERED = 60.0
"""Seconds for which it is remembered that an object cannot be had."""
AT_ONCE = 100
"""Objects that the upstream is asked for in one request."""
AHEAD = 2
"""Objects that one `fetch` fetches at once, so that guests who wait for one find a free place."""
ATTEMPTS = 3
PAUSE = 1.0
"""Seconds before the second attempt; twice as many before the third."""
MOST_FLIGHTS = 2048
MOST_KNOWN = 20_000
"""The most answers of upstreams that are remembered."""


class _Key(NamedTuple):
    """The size is part of it, so that who states a wrong one gets an error that is not for the others."""

    repo: int
    oid: str
    size: int


class LfsObjects:
    """The objects of all repositories. Belongs to one event loop."""

    def __init__(self, stock: LfsStock, upstreams: LfsUpstreams) -> None:
        self.stock = stock
        self.upstreams = upstreams
        self._flights: dict[_Key, Flight] = {}
        self._asking: dict[_Key, asyncio.Task[None]] = {}
        self._actions: OrderedDict[_Key, Action] = OrderedDict()
        self._faults: OrderedDict[_Key, tuple[float, GitmirrorError]] = OrderedDict()
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
        """Fetches what is missing from the upstream. Returns the ids of those that are here then. Never raises."""
        if not self.is_on:
            return set()
        wanted = list(dict.fromkeys(pointers))
        await self.offer(repo, wanted, None)
        waiting = iter(wanted)
        await asyncio.gather(*(self._fetch_ahead(repo, waiting) for _ in range(AHEAD)))
        return {pointer.oid for pointer in wanted if self.stock.path(repo, pointer.oid) is not None}

    async def _fetch_ahead(self, repo: Repo, waiting: Iterator[Pointer]) -> None:
        """Fetches one after the other, until the upstream cannot be asked or there is no room."""
        for pointer in waiting:
            try:
                if (flight := self._fly(repo, pointer)) is not None:
                    await flight.ends()
                    if flight.fault is not None:
                        raise flight.fault
            except (TryLater, NoRoom):
                return
            except GitmirrorError:
                continue

    # For guests

    async def offer(
        self, repo: Repo, pointers: Sequence[Pointer], seconds: float | None
    ) -> dict[Pointer, GitmirrorError | None]:
        """Whether each object can be had: None if it is here or the upstream has it, else why not.

        Of an upstream that has not answered after `seconds`, it is said that it can be had; None waits for the answer.
        """
        missing = [each for each in pointers if self._must_ask(repo, each)]
        for at in range(0, len(missing), AT_ONCE):
            self._start_asking(repo, missing[at : at + AT_ONCE])
        tasks = {task for each in pointers if (task := self._asking.get(_key(repo, each))) is not None}
        if tasks:
            await asyncio.wait(tasks, timeout=seconds)
        return {each: None if self.stock.path(repo, each.oid) else self._fault(repo, each) for each in pointers}

    async def open(self, repo: Repo, oid: str, size: int | None, seconds: float) -> Path | Flight:
        """The object's file, or the object as it arrives. Raises GitmirrorError, TryLater after `seconds`.

        A flight must be opened before anything is awaited.
        """
        pointer = None if size is None else Pointer(oid, size)
        await self.stock.check(repo, oid)
        if (path := self.stock.path(repo, oid)) is not None:
            self.hits += 1
            return path
        if pointer is None:
            raise NotFound("this LFS object is not here; ask the batch API for it")
        self.misses += 1
        flight = self._fly(repo, pointer)
        if flight is not None:
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
        key = _key(repo, pointer)
        if key in self._asking or key in self._flights or self.stock.path(repo, pointer.oid) is not None:
            return False
        action = self._actions.get(key)
        return self._fault(repo, pointer) is None and not (action is not None and action.is_current)

    def _start_asking(self, repo: Repo, pointers: Sequence[Pointer]) -> None:
        task = asyncio.create_task(self._ask(repo, pointers), name="LFS batch")
        for pointer in pointers:
            self._asking[_key(repo, pointer)] = task

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
                    _put(self._actions, _key(repo, pointer), answer)
        finally:
            for pointer in pointers:
                self._asking.pop(_key(repo, pointer), None)

    def _remember(self, repo: Repo, pointer: Pointer, fault: GitmirrorError) -> None:
        # What may work later is told for a moment only, so that many who ask do not make a storm of requests.
        seconds = min(REMEMBERED, fault.retry_after) if isinstance(fault, TryLater) else REMEMBERED
        _put(self._faults, _key(repo, pointer), (time.monotonic() + seconds, fault))

    def _fault(self, repo: Repo, pointer: Pointer) -> GitmirrorError | None:
        until, fault = self._faults.get(_key(repo, pointer), (0.0, None))
        return fault if time.monotonic() < until else None

    async def _action(self, repo: Repo, pointer: Pointer) -> Action:
        """How the object is fetched, as known or asked anew. Raises GitmirrorError."""
        key = _key(repo, pointer)
        known = self._actions.get(key)
        if key not in self._asking and (known is None or not known.is_current):
            self._start_asking(repo, [pointer])
        if (task := self._asking.get(key)) is not None:
            await asyncio.wait([task])
        if (fault := self._fault(repo, pointer)) is not None:
            raise fault
        action = self._actions.pop(key, None)
        if action is None:
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
        key = _key(repo, pointer)
        flight = self._flights.get(key)
        if flight is None:
            if len(self._flights) >= MOST_FLIGHTS:
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
                    await asyncio.sleep(PAUSE * 2**attempt)
        except GitmirrorError as error:
            fault = error
        except OSError as error:
            fault = GitmirrorError(f"LFS objects cannot be stored on this node: {error.strerror}")
        except asyncio.CancelledError:
            fault = TryLater("this node stops fetching LFS objects; try again", retry_after=5)
            raise
        finally:
            self._flights.pop(_key(repo, pointer), None)
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
        reserved = False

        async def make_room() -> None:
            nonlocal reserved
            self.stock.make_room(pointer.size)
            reserved = True

        def begin(_: bytes) -> None:
            # Not earlier, because a guest may state any size, and the upstream has confirmed this one.
            asyncio.run_coroutine_threadsafe(make_room(), loop).result()

        def sink(data: bytes) -> None:
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
            if reserved:
                self.stock.give_back(pointer.size)
            with contextlib.suppress(OSError):
                path.unlink()

    # The life of the store

    async def start(self, mirrored: Collection[str]) -> None:
        """Finds what an earlier `serve` left of the repositories that have a mirror. Never raises."""
        try:
            await asyncio.to_thread(self.stock.load)
        except OSError as error:
            log.error("the LFS objects on disk cannot be read: %s", error)
        if mirrored:
            self.stock.keep_only(mirrored)
        self.stock.set_budget(self.stock.budget)

    def evict_oldest(self, reason: str) -> Evicted | None:
        """Removes the object that was used longest ago, for `reason`, which is logged; None if none can go now."""
        return self.stock.evict_oldest(reason)

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
        tasks = [flight.task for flight in self._flights.values() if flight.repo == name and flight.task]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.stock.purge(name)

    async def stop(self) -> None:
        """Ends what is being fetched."""
        tasks = [*self._asking.values(), *(flight.task for flight in self._flights.values() if flight.task is not None)]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def gauges(self) -> Iterator[tuple[str, str, float]]:
        """The current values for /metrics: name, help text, value."""
        stock = self.stock
        yield "lfs_bytes", "Bytes of LFS objects on disk.", stock.bytes
        yield "lfs_budget_bytes", "The most bytes that LFS objects may take on disk.", stock.budget
        yield "lfs_objects", "LFS objects on disk.", len(stock)
        yield "lfs_hits", "LFS objects that guests asked for and that were here, since the start.", self.hits
        yield "lfs_misses", "LFS objects that guests asked for and that were not here, since the start.", self.misses
        yield "lfs_fetched", "LFS objects fetched from upstreams since the start.", self.fetched
        yield "lfs_fetched_bytes", "Bytes of LFS objects fetched from upstreams since the start.", self.fetched_bytes
        yield "lfs_fetching", "LFS objects that are being fetched.", len(self._flights)
        yield "lfs_failed", "LFS objects that could not be fetched since the start.", self.failed
        yield "lfs_evicted", "LFS objects removed to make room since the start.", stock.evicted
        yield "damaged_lfs_objects", "LFS objects that were found changed, since the start.", stock.damaged


def _key(repo: Repo, pointer: Pointer) -> _Key:
    return _Key(repo.id, pointer.oid, pointer.size)


def _put(known: OrderedDict[_Key, _Value], key: _Key, value: _Value) -> None:
    known[key] = value
    known.move_to_end(key)
    while len(known) > MOST_KNOWN:
        known.popitem(last=False)
