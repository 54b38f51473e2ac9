"""Mirrors repositories that nobody registered when a guest requests them and `[[allow]]` allows it.

A guest's request for such a repository is a wish, which goes through two bounded steps. First the upstream is asked
whether the repository exists, without registering anything. Then the repository is registered, and the scheduler makes
its first clone. However many guests wait for one repository, each step happens once.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from appliance.core.access.allowed import AllowedUpstream, AllowedUpstreams, Coming
from appliance.core.errors import GitmirrorError
from appliance.core.git.command import Git, GitError
from appliance.core.git.keyring import Keyring
from appliance.core.models import Repo
from appliance.core.refresh.fair_turns import FairTurns, TurnLimits
from appliance.core.refresh.scheduler import Scheduler
from appliance.core.upstream import parse_upstream

log = logging.getLogger(__name__)

ASKING_DEADLINE = 20.0
"""Seconds that an upstream may take to say whether it has a repository."""
ASKED_PER_MINUTE = 60
"""Requests to one upstream host for names that guests sent, after a burst of ASKED_AT_ONCE."""
ASKED_AT_ONCE = 20
MOST_ASKING = 32
"""The most such requests to one host that run; those that take longer than ASKING_HOLDS delay no other."""
ASKING_AT_ONCE = 4
ASKING_HOLDS = 1.0
CLONES_PER_MINUTE = 30
"""Clones that guests cause, after a burst of CLONES_AT_ONCE."""
CLONES_AT_ONCE = 10
MOST_CLONING = 16
"""The most first clones for guests that run, hung and large ones included, out of the scheduler's MOST_RUNNING."""
CLONING_HOLDS = 5.0
"""Seconds after which a clone delays no other, as in the scheduler's lane: less than a guest waits."""
REMEMBERED = 60.0
"""Seconds for which a name is remembered that the upstream does not have, or that could not be mirrored."""
LONGEST_REMEMBERED = 3600.0
"""The longest such time, after repeated failures of a clone or by an upstream's Retry-After."""
MOST_REMEMBERED = 10_000
MOST_ALONE = 8
"""The most wishes of one peer that continue after its guests have stopped waiting, until they are registered."""
NOT_AGAIN = 15.0
"""Seconds for which a peer that has waited in vain for a name does not wait for that name again."""
OURSELVES = "this node"
"""The peer for which the wishes of the node itself are counted."""


class Registrar(Protocol):
    """The registry, as far as wishes need it."""

    def allowed(self) -> AllowedUpstreams:
        """What `[[allow]]` allows now."""
        ...

    def is_open(self, upstream: AllowedUpstream) -> bool:
        """Whether a guest may have the upstream mirrored: it needs no token, and its name is free or its own."""
        ...

    def find(self, upstream: AllowedUpstream) -> Repo | None:
        """The enabled repository of this upstream, whatever its name, or None."""
        ...

    async def register(self, upstream: AllowedUpstream) -> Repo | None:
        """Registers the upstream if it is not registered; logs why and returns None if that fails. Never raises."""
        ...


@dataclass(eq=False)
class _Wish:
    """One requested upstream. It stays while anybody waits for it, and once its clone runs, until the clone ends.

    `peers` are those who asked. `repo` and `is_settled` are set once it is registered.
    """

    upstream: AllowedUpstream
    of_guest: bool
    peers: set[str] = field(default_factory=set)
    task: asyncio.Task[Coming] | None = None
    waiting: int = 0
    repo: Repo | None = None
    is_settled: asyncio.Event = field(default_factory=asyncio.Event)


class OnDemand:
    """Fulfils wishes. `keyring` gives the credentials in use; git asks upstreams from `directory`, without a mirror."""

    def __init__(
        self,
        registrar: Registrar,
        scheduler: Scheduler,
        git: Git,
        keyring: Callable[[], Keyring],
        directory: Path,
        concurrency: Callable[[], int],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._registrar = registrar
        self._scheduler = scheduler
        self._git = git
        self._keyring = keyring
        self._directory = directory
        self._clock = clock
        self._asking: dict[str, FairTurns] = {}
        # As many as the slots of the scheduler's lane for them, so that no clone waits there out of turn.
        self._cloning = FairTurns(
            TurnLimits(CLONES_PER_MINUTE, CLONES_AT_ONCE, concurrency, CLONING_HOLDS, MOST_CLONING)
        )
        self._wishes: dict[tuple[str, bool], _Wish] = {}
        self._remembered: dict[tuple[str, bool], float] = {}
        self._failures: dict[str, int] = {}
        self._waited: dict[tuple[str, str], float] = {}

    async def wait(self, path: str, peer: str, seconds: float) -> tuple[Coming, AllowedUpstream | None]:
        """Waits up to `seconds` until what a guest of `peer` requests is here, or until it is known that it cannot be.

        Returns what became of the wish, and the upstream if the guest may know it. A peer that waited for this name a
        moment ago does not wait again, because a guest tries several ways, one after the other. Cancelling ends this
        wait alone.
        """
        upstream = self._registrar.allowed().at(path)
        if upstream is None or self._is_remembered(upstream, of_guest=True):
            return Coming.NOTHING, None
        wish, began = self._wish(upstream, peer, of_guest=True), self._clock()
        key = (upstream.name, peer)
        has_waited = self._waited.get(key, 0.0) > began
        try:
            async with asyncio.timeout(0 if has_waited else seconds):
                coming = await self._joined(wish)
        except TimeoutError:
            coming = Coming.ASKED if wish.repo is None else Coming.CLONING
        finally:
            # A client with a timeout as long as ours hangs up a moment earlier.
            if is_over := self._clock() - began > 0.9 * seconds:
                self._waited.pop(key, None)
                self._waited[key] = self._clock() + NOT_AGAIN
                while len(self._waited) > MOST_REMEMBERED:
                    del self._waited[next(iter(self._waited))]
            self._left(wish, goes_on=is_over or has_waited)
        return coming, None if coming is Coming.NOTHING else upstream

    async def bring(self, url: str) -> Repo | None:
        """Has an allowed upstream mirrored for the node itself, with any credential that it needs.

        Returns its repository once its clone has begun, or the one that is here; None if the upstream is not allowed or
        cannot be mirrored now. The wish waits for its turn among those of guests.
        """
        upstream = self._registrar.allowed().of(url)
        if upstream is None:
            return None
        if (found := self._registrar.find(upstream)) is not None or self._is_remembered(upstream, of_guest=False):
            return found
        wish = self._wish(upstream, OURSELVES, of_guest=False)
        try:
            await wish.is_settled.wait()
        finally:
            self._left(wish, goes_on=False)
        return wish.repo

    def http_host(self, host: str) -> str | None:
        """`SCHEME://HOST` if upstreams on that host may be mirrored over HTTP or HTTPS, or None."""
        return self._registrar.allowed().http_host(host)

    async def stop(self) -> None:
        """Ends all wishes. The scheduler ends the clones."""
        tasks = [wish.task for wish in self._wishes.values() if wish.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _wish(self, upstream: AllowedUpstream, peer: str, *, of_guest: bool) -> _Wish:
        """The wish for an upstream, with one more waiter. Each waiter calls `_left` once."""
        key = (upstream.name, of_guest)
        wish = self._wishes.get(key)
        if wish is None:
            wish = self._wishes[key] = _Wish(upstream, of_guest)
            wish.task = asyncio.create_task(self._fulfil(wish), name=f"bring {upstream.name}")
            wish.task.add_done_callback(lambda _: self._settled(wish))
        wish.peers.add(peer)
        wish.waiting += 1
        return wish

    def _settled(self, wish: _Wish) -> None:
        wish.is_settled.set()
        for key in [key for key, other in self._wishes.items() if other is wish]:
            del self._wishes[key]

    async def _joined(self, wish: _Wish) -> Coming:
        assert wish.task is not None
        await asyncio.wait([wish.task])
        return Coming.NOTHING if wish.task.cancelled() else wish.task.result()

    def _left(self, wish: _Wish, *, goes_on: bool) -> None:
        """Notes that a waiter has left. With `goes_on`, the wish continues unless a peer has too many such wishes."""
        wish.waiting -= 1
        if wish.waiting or wish.repo is not None or wish.task is None:
            return
        alone = sum(not other.waiting and not wish.peers.isdisjoint(other.peers) for other in self._wishes.values())
        if not goes_on or alone > MOST_ALONE:
            # Nobody waits any more, and nothing is registered yet. The next request begins another wish.
            wish.task.cancel()
            self._settled(wish)

    async def _fulfil(self, wish: _Wish) -> Coming:
        upstream, of_guest = wish.upstream, wish.of_guest
        try:
            with_credential = not of_guest or self._registrar.is_open(upstream)
            async with self._turns_of(upstream.host).turn(wish.peers):
                if not await self._exists(wish, with_credential=with_credential):
                    return Coming.NOTHING
            # Up to here it is like any other name, so that a guest cannot tell it from one that does not exist.
            if of_guest and not self._registrar.is_open(upstream):
                self._remember(wish, REMEMBERED)
                return Coming.NOTHING
            async with self._cloning.turn(wish.peers):
                return await self._clone(wish)
        except GitmirrorError as error:
            log.info("%s: cannot be mirrored on demand: %s", upstream.name, error.message)
        except Exception:
            log.exception("%s: cannot be mirrored on demand", upstream.name)
        self._remember(wish, REMEMBERED)
        return Coming.NOTHING

    async def _clone(self, wish: _Wish) -> Coming:
        upstream = wish.upstream
        repo = await self._registrar.register(upstream)
        if repo is None:
            self._remember(wish, REMEMBERED)
            return Coming.NOTHING
        wish.repo = repo
        wish.is_settled.set()
        outcome = await self._scheduler.refresh_now(repo)
        if outcome.error is None:
            self._failures.pop(upstream.name, None)
            return Coming.HERE
        failures = self._failures[upstream.name] = self._failures.get(upstream.name, 0) + 1
        self._remember(wish, min(REMEMBERED * 2 ** min(failures - 1, 10), LONGEST_REMEMBERED))
        return Coming.NOTHING

    async def _exists(self, wish: _Wish, *, with_credential: bool) -> bool:
        """Asks the upstream. A failure of any kind is remembered, so that the upstream is not asked again at once."""
        upstream = wish.upstream
        place, words = parse_upstream(upstream.url, allow_local=True), ("ls-remote", "--quiet", upstream.url, "HEAD")
        try:
            if with_credential:
                async with asyncio.timeout(ASKING_DEADLINE), self._keyring().open(place, self._git) as git:
                    await self._ask(git, words)
            else:
                await self._ask(self._git, words)
        except (GitmirrorError, TimeoutError) as error:
            patience = (error.retry_after or 0.0) if isinstance(error, GitError) else 0.0
            self._remember(wish, min(max(REMEMBERED, patience), LONGEST_REMEMBERED))
            log.info("%s is not mirrored on demand: %s", upstream.name, str(error) or "its upstream took too long")
            return False
        return True

    async def _ask(self, git: Git, words: tuple[str, ...]) -> None:
        await git.run(*words, cwd=self._directory, deadline=ASKING_DEADLINE, asks_upstream=True)

    def _turns_of(self, host: str) -> FairTurns:
        """The turns at one upstream host. The hosts are those of `[[allow]]`, whatever guests ask for."""
        limits = TurnLimits(ASKED_PER_MINUTE, ASKED_AT_ONCE, lambda: ASKING_AT_ONCE, ASKING_HOLDS, MOST_ASKING)
        return self._asking.setdefault(host, FairTurns(limits))

    def _remember(self, wish: _Wish, seconds: float) -> None:
        # Separate for the node itself, so that a failure that guests caused does not keep the node from trying.
        key = (wish.upstream.name, wish.of_guest)
        self._remembered.pop(key, None)
        self._remembered[key] = self._clock() + seconds
        while len(self._remembered) > MOST_REMEMBERED:
            oldest = next(iter(self._remembered))
            del self._remembered[oldest]
            self._failures.pop(oldest[0], None)

    def _is_remembered(self, upstream: AllowedUpstream, *, of_guest: bool) -> bool:
        return self._remembered.get((upstream.name, of_guest), 0.0) > self._clock()
