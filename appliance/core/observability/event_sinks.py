"""Passes events to a platform: as lines to a command that keeps running, or as one POST each to a URL."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import subprocess
import time
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from appliance.core.config.settings import EventsConfig
from appliance.core.events.facts import TOLD
from appliance.core.events.fleet_facts import TOLD_IN_A_FLEET
from appliance.core.observability.delivery import STDERR, OutletError, post, write_all
from appliance.core.observability.event_stream import EventStream, StreamedEvent, Subscription
from appliance.core.process.children import Child, Children

log = logging.getLogger(__name__)

FOR_PLATFORMS = frozenset(name for kind in (*TOLD, *TOLD_IN_A_FLEET) if kind.goes_out for name in kind.names)
"""The names of the events that are passed to platforms."""

RESTART_FIRST, RESTART_MOST = 1.0, 60.0
"""Seconds until a command that ended is restarted. The delay doubles each time it ran for less than RESTART_MOST."""
TRIES = 4
RETRY_FIRST = 0.5
"""Seconds until an event that could not be posted is tried again. The delay doubles after each further failure."""
LAST_WORDS = 2.0
"""Seconds that a command has to exit by itself after its stdin was closed."""

Begin = Callable[[Coroutine[Any, Any, None], str], asyncio.Task[None]]


class EventSinks:
    """The command and the URL of `[events]`. They subscribe only if configured, so otherwise they cost nothing."""

    def __init__(self, stream: EventStream, children: Children, begin: Begin) -> None:
        self._event_stream = stream
        self._children = children
        self._begin = begin
        self._config = EventsConfig()
        self._tasks: list[asyncio.Task[None]] = []

    def apply(self, config: EventsConfig) -> None:
        """Applies `config`, at the start and at a reload. If it has not changed, the running tasks continue."""
        if config == self._config:
            return
        self._config = config
        for task in self._tasks:
            task.cancel()
        self._tasks = []
        if config.command:
            self._tasks.append(self._begin(self._to_command(config.command), "events to a command"))
        if config.url:
            self._tasks.append(self._begin(self._to_url(config.url), "events to a URL"))

    async def _to_command(self, argv: Sequence[str]) -> None:
        waiting: deque[StreamedEvent] = deque()
        delay = RESTART_FIRST
        with self._event_stream.watching(FOR_PLATFORMS) as subscription:
            while True:
                began = time.monotonic()
                try:
                    child = self._children.start(argv, env=os.environ, stdin=subprocess.PIPE, stderr=STDERR)
                except OSError as error:
                    log.error("the command of [events] cannot be started: %s: %s", argv[0], error.strerror)
                else:
                    code = await self._stream(child, subscription, waiting)
                    log.warning("the command of [events], %s, ended with code %d", argv[0], code)
                lived = time.monotonic() - began
                delay = RESTART_FIRST if lived > RESTART_MOST else min(delay, RESTART_MOST)
                await asyncio.sleep(delay)
                delay *= 2

    async def _stream(self, child: Child, subscription: Subscription, waiting: deque[StreamedEvent]) -> int:
        """Writes events until the command ends; returns its exit code. The next command gets a cut-off event again."""
        stdin = child.process.stdin
        assert stdin is not None
        os.set_blocking(stdin.fileno(), False)
        writing = asyncio.create_task(self._write(stdin.fileno(), subscription, waiting))
        ended = asyncio.create_task(child.wait())
        try:
            await asyncio.wait({writing, ended}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)
            with contextlib.suppress(OSError):
                stdin.close()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(ended), LAST_WORDS)
            code = await child.end()
        return code

    async def _write(self, descriptor: int, subscription: Subscription, waiting: deque[StreamedEvent]) -> None:
        while True:
            while waiting:
                await write_all(descriptor, waiting[0].json + b"\n")
                waiting.popleft()
            waiting.extend(await subscription.take())

    async def _to_url(self, url: str) -> None:
        with self._event_stream.watching(FOR_PLATFORMS) as subscription:
            while True:
                for event in await subscription.take():
                    await self._post(url, event)

    async def _post(self, url: str, event: StreamedEvent) -> None:
        for number in range(TRIES):
            try:
                await post(url, event.json + b"\n")
            except OutletError as error:
                log.warning("an event (%s) could not be delivered: %s", event.name, error.message)
                await asyncio.sleep(RETRY_FIRST * 2**number)
            else:
                return
