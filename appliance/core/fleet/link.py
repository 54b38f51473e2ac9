"""The connection of one node to its fleet: it is made, kept and lost in the background, and every call has a deadline.

nats-py is imported when a fleet is configured, so a node alone pays nothing for it.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from appliance.core.config.fleet import FleetConfig
from appliance.core.errors import GitmirrorError
from appliance.core.fleet.credentials import read_access
from appliance.core.fleet.names import FleetNames
from appliance.core.fleet.refusals import NatsRefusals, is_answer, without_quorum, words_of

if TYPE_CHECKING:
    from nats.js import JetStreamContext

    from appliance.core.fleet.client import OneServer

log = logging.getLogger(__name__)

CALL = 5.0
"""Seconds that a call may take unless it says otherwise."""
RETRY_EVERY = 1.0
"""Seconds between two rounds over the servers."""
LOOK_EVERY = 5.0
"""Seconds between two looks whether JetStream still answers. A call that failed has it looked at once."""
LOOK = 2.0
"""Seconds that such a look may take: longer than an answer takes, shorter than the election of a new leader."""
SETTLED = 10.0
"""Seconds after which every node should have read what is in the stream, and have said so."""
GIVE_UP = 15.0
"""Seconds without an answer of JetStream, longer than an election takes, after which another server is tried."""
_QUORUM = "more than half of the servers of its cluster must run; see the log of nats-server"
MOST_NAMED = 3
"""Servers of which `trouble` says why they cannot be used."""

Result = TypeVar("Result")
OnUp = Callable[[], None]


class FleetAway(GitmirrorError):
    """The fleet cannot be reached, did not answer in time, or refused to store something."""


class FleetLink:
    """The connection that `config` describes. `names` are those of what belongs to the fleet.

    Each time that the connection was lost a new one is made, in which nothing of the old is left: subscriptions and
    watches end with it. Whoever has one makes it anew in `on_up`, or after `wait_up`.
    """

    def __init__(self, config: FleetConfig) -> None:
        self.config = config
        self.names = FleetNames(config.name)
        self.node = config.node_name
        self.remarks: list[str] = []
        self._client: OneServer | None = None
        self._context: JetStreamContext | None = None
        self._up = asyncio.Event()
        self._look_now = asyncio.Event()
        self._on_up: list[OnUp] = []
        self._trouble = "not connected yet"
        self._refusals = NatsRefusals(config.name)
        self._calls: set[asyncio.Task[Any]] = set()
        self._ends: deque[tuple[float, int]] = deque(maxlen=100)
        self._said: set[str] = set()
        self._server: str | None = None
        self._tried = random.randrange(len(config.servers) or 1)
        self._discovered: dict[str, str] = {}

    @property
    def is_on(self) -> bool:
        """Whether a fleet is configured."""
        return self.config.is_on

    @property
    def is_up(self) -> bool:
        """Whether the fleet can be used now: connected, with its streams and buckets there."""
        return self._up.is_set()

    @property
    def trouble(self) -> str | None:
        """Why the fleet cannot be used, or what of it was refused lately, and what to do; None if all is well."""
        if not self.is_on:
            return None
        return self._refusals.text() if self.is_up else self._trouble

    @property
    def settled_seq(self) -> int:
        """The end of the stream of turns SETTLED seconds ago: whoever has not read that far by now is behind."""
        before = time.monotonic() - SETTLED
        return next((seq for at, seq in reversed(self._ends) if at <= before), 0)

    def on_up(self, callback: OnUp) -> None:
        """Has `callback` called each time that the fleet can be used again, also when its streams were made anew."""
        self._on_up.append(callback)

    async def wait_up(self) -> None:
        """Waits until the fleet can be used."""
        await self._up.wait()

    @property
    def client(self) -> OneServer:
        """The connection, for core NATS. Raises FleetAway."""
        if self._client is None or not self.is_up:
            raise self._away()
        return self._client

    @property
    def context(self) -> JetStreamContext:
        """JetStream. Raises FleetAway."""
        if self._context is None or not self.is_up:
            raise self._away()
        return self._context

    async def call(self, work: Callable[[JetStreamContext], Awaitable[Result]], timeout: float = CALL) -> Result:
        """Does `work` with JetStream within `timeout` seconds. Raises FleetAway.

        Answers that are no trouble, such as a key that is not there, are raised as nats-py's own errors.
        """
        import nats.errors

        try:
            return await self._bounded(work(self.context), timeout)
        except (TimeoutError, OSError, nats.errors.Error) as error:
            if is_answer(error):
                raise
            # Whether it was this call's fault or the fleet cannot be used, a look will tell.
            self._look_now.set()
            words = self._refusals.note(error) or words_of(error)
            raise FleetAway(f"the fleet did not do it: {words}", hint="`fleet status` says more") from error

    async def _bounded(self, work: Awaitable[Result], timeout: float) -> Result:
        """The result of `work` within `timeout` seconds, even if it ignores its cancellation, as nats-py does at times.

        Raises TimeoutError, and ConnectionError when the connection is lost meanwhile.
        """
        task = asyncio.ensure_future(work)
        self._calls.add(task)
        task.add_done_callback(self._forget)
        try:
            await asyncio.wait((task,), timeout=timeout)
        finally:
            if not task.done():
                task.cancel()
        if not task.done():
            raise TimeoutError(f"no answer within {timeout:g} s")
        if task.cancelled():
            raise ConnectionError("the connection was lost")
        return task.result()

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._calls.discard(task)
        if not task.cancelled():
            # Of one that ended after its deadline nobody asks; without this asyncio would print it.
            task.exception()

    # -- the connection ------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Keeps the connection until cancelled."""
        if not self.is_on:
            await asyncio.Event().wait()
        try:
            while True:
                try:
                    await self._connect()
                    await self._keep()
                except GitmirrorError as error:
                    self._down(_in_one(error))
                finally:
                    await self._close()
                await asyncio.sleep(RETRY_EVERY)
        finally:
            self._down("serve ends", say=False)

    async def _connect(self) -> None:
        """Connects to the next server that can be used. Raises GitmirrorError."""
        from appliance.core.fleet.client import CannotConnect, connect

        # Read each time, because it may have been renewed.
        access = await asyncio.to_thread(read_access, self.config)
        failures: dict[str, CannotConnect] = {}
        urls = list(self.config.servers)
        # Another one first than the last time, because that may have been cut off from the others.
        urls = urls[self._tried % len(urls) :] + urls[: self._tried % len(urls)]
        for url in [*urls, *(url for url in self._discovered if url not in urls)]:
            self._tried += 1
            try:
                self._client = await connect(url, access, tls_name=self._discovered.get(url), on_error=self._complained)
            except CannotConnect as error:
                failures[url] = error
                continue
            self._server = url
            self._context = self._client.jetstream(timeout=CALL)
            self._discover(url)
            return
        raise FleetAway(_all_failed({url: error for url, error in failures.items() if url in urls}))

    def _discover(self, url: str) -> None:
        """Notes the other servers of its cluster, for when none of the configured ones can be reached."""
        assert self._client is not None
        name = urlsplit(url).hostname or ""
        self._discovered = {other.geturl(): name for other in self._client.discovered_servers}

    async def _keep(self) -> None:
        """Makes the streams, and looks now and then whether they answer. Returns when another server is to be tried."""
        client, silent_since = self._client, time.monotonic()
        assert client is not None
        while not client.lost.is_set():
            try:
                await (self._look() if self.is_up else self._make_streams())
            except GitmirrorError as error:
                self._down(_in_one(error))
                # A server that answers may be waiting for the others to elect a leader; one that is silent is gone.
                if time.monotonic() - silent_since > GIVE_UP or not await self._answers(client):
                    return
                pause = RETRY_EVERY
            else:
                silent_since, pause = time.monotonic(), LOOK_EVERY
            self._look_now.clear()
            await _first_of(client.lost.wait(), self._look_now.wait() if self.is_up else None, timeout=pause)
        self._down(f"the connection to {self._server} was lost")

    async def _answers(self, client: OneServer) -> bool:
        """Whether the server itself answers."""
        try:
            await self._bounded(client.flush(timeout=1), 1)
        except Exception:
            return False
        return True

    async def _make_streams(self) -> None:
        from appliance.core.fleet.streams import make_streams

        context = self._context
        assert context is not None
        self.remarks = await self._asked(make_streams(context, self.names, self.config.replicas), 2 * CALL)
        await self._look()
        self._trouble, self._said = "", set()
        self._up.set()
        log.info("fleet %s: connected to %s as %s", self.config.name, self._server, self.node)
        for remark in self.remarks:
            log.warning("fleet %s: %s", self.config.name, remark)
        for callback in self._on_up:
            try:
                callback()
            except Exception:
                log.exception("fleet %s: a part of serve cannot begin anew", self.config.name)

    async def _look(self) -> None:
        """Asks for the stream of turns, and whether it can be written. Raises FleetAway."""
        from nats.js.errors import NotFoundError

        assert self._context is not None
        try:
            info = await self._asked(self._context.stream_info(self.names.turns), LOOK)
        except NotFoundError:
            # Somebody deleted it, or the servers lost their data: all is made anew, and everybody begins anew.
            raise FleetAway("the streams of the fleet are gone: they are made anew") from None
        if words := without_quorum(info.cluster):
            raise FleetAway(f"{self._server}: {words}", hint=_QUORUM)
        self._ends.append((time.monotonic(), info.state.last_seq))

    async def _asked(self, work: Coroutine[Any, Any, Result], timeout: float) -> Result:
        """The result of `work`, with errors in an operator's words. Raises GitmirrorError, NotFoundError."""
        from nats.js.errors import NotFoundError

        try:
            return await self._bounded(work, timeout)
        except (GitmirrorError, NotFoundError):
            raise
        except (TimeoutError, OSError) as error:
            if refused := self._refusals.text():
                raise FleetAway(f"{self._server}: {refused}") from error
            raise FleetAway(
                f"{self._server}: JetStream does not answer ({words_of(error)})",
                hint=_QUORUM,
            ) from error
        except Exception as error:
            # An answer that is no JetStream's can make nats-py fail in any way.
            words = self._refusals.note(error) or f"JetStream said: {words_of(error)}"
            raise FleetAway(f"{self._server}: {words}") from error

    def _complained(self, error: Exception) -> None:
        """Notes what the server complains of by itself, such as a subject that the user may not use."""
        self._refusals.note(error)

    def _down(self, why: str, *, say: bool = True) -> None:
        # Once for each cause until all is well again: going through the servers, the same ones come again and again.
        if say and why not in self._said:
            self._said.add(why)
            log.warning("fleet %s cannot be used: %s", self.config.name, why)
        self._trouble = why
        self._up.clear()

    def _away(self) -> FleetAway:
        return FleetAway(f"the fleet cannot be used: {self._trouble}", hint="`fleet status` says more")

    async def _close(self) -> None:
        from appliance.core.fleet.client import discard

        client, self._client, self._context = self._client, None, None
        for call in list(self._calls):
            call.cancel()
        if client is not None:
            await discard(client)


def _in_one(error: GitmirrorError) -> str:
    return f"{error.message} ({error.hint})" if error.hint else error.message


def _all_failed(failures: dict[str, Any]) -> str:
    """`nats://a:4222: Connection refused; nats://b:4222: ... (what to do)`."""
    urls: dict[str, list[str]] = {}
    for url, error in list(failures.items())[:MOST_NAMED]:
        urls.setdefault(error.message, []).append(url)
    said = [f"{', '.join(those)}: {message}" for message, those in urls.items()]
    more = f"; and {len(failures) - MOST_NAMED} more" if len(failures) > MOST_NAMED else ""
    hints = dict.fromkeys(error.hint for error in failures.values())
    return f"{'; '.join(said)}{more} ({'; '.join(hint for hint in hints if hint)})"


async def _first_of(*waits: Coroutine[Any, Any, Any] | None, timeout: float) -> None:
    tasks = [asyncio.ensure_future(wait) for wait in waits if wait is not None]
    try:
        await asyncio.wait(tasks, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
