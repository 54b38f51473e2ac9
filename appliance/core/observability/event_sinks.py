"""Hands events to a platform: as lines to a command that runs all the while, or one by one to a URL."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import subprocess
import time
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from appliance.core.config.settings import EventsConfig
from appliance.core.events.facts import TOLD, Document
from appliance.core.observability.delivery import STDERR, OutletError, post, write_all
from appliance.core.observability.event_stream import EventStream, Subscription
from appliance.core.process.children import Child, Children

log = logging.getLogger(__name__)

FOR_PLATFORMS = frozenset(name for kind in TOLD if kind.goes_out for name in kind.names)
"""The names of the events that go out."""

RESTART_FIRST, RESTART_MOST = 1.0, 60.0
"""Seconds until a command that ended is run again, doubled each time that it did not live for RESTART_MOST."""
TRIES = 4
RETRY_FIRST = 0.5
LAST_WORDS = 2.0
"""Seconds that a command has to end by itself once its stdin was closed."""

Begin = Callable[[Coroutine[Any, Any, None], str], asyncio.Task[None]]


class EventSinks:
    """The outlets of `[events]`. Nothing is watched, and so nothing costs, while none is configured."""

    def __init__(self, feed: EventStream, children: Children, begin: Begin) -> None:
        self._feed = feed
        self._children = children
        self._begin = begin
        self._config = EventsConfig()
        self._tasks: list[asyncio.Task[None]] = []

    def apply(self, config: EventsConfig) -> None:
        """Makes `config` hold, also at a reload; what did not change goes on."""
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
        waiting: deque[Document] = deque()
        delay = RESTART_FIRST
        with self._feed.watching(FOR_PLATFORMS) as watcher:
            while True:
                began = time.monotonic()
                try:
                    child = self._children.start(argv, env=os.environ, stdin=subprocess.PIPE, stderr=STDERR)
                except OSError as error:
                    log.error("the command of [events] cannot be started: %s: %s", argv[0], error.strerror)
                else:
                    code = await self._stream(child, watcher, waiting)
                    log.warning("the command of [events], %s, ended with %d", argv[0], code)
                lived = time.monotonic() - began
                delay = RESTART_FIRST if lived > RESTART_MOST else min(delay, RESTART_MOST)
                await asyncio.sleep(delay)
                delay *= 2

    async def _stream(self, child: Child, watcher: Subscription, waiting: deque[Document]) -> int:
        """Writes events until the command ends; returns its exit code. An event half written is written again."""
        stdin = child.process.stdin
        assert stdin is not None
        os.set_blocking(stdin.fileno(), False)
        writing = asyncio.create_task(self._write(stdin.fileno(), watcher, waiting))
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

    async def _write(self, descriptor: int, watcher: Subscription, waiting: deque[Document]) -> None:
        while True:
            while waiting:
                await write_all(descriptor, json.dumps(waiting[0]).encode() + b"\n")
                waiting.popleft()
            waiting.extend(await watcher.take())

    async def _to_url(self, url: str) -> None:
        with self._feed.watching(FOR_PLATFORMS) as watcher:
            while True:
                for event in await watcher.take():
                    await self._post(url, event)

    async def _post(self, url: str, event: Document) -> None:
        for number in range(TRIES):
            try:
                await post(url, json.dumps(event).encode() + b"\n")
            except OutletError as error:
                log.warning("an event (%s) was not taken: %s", event["event"], error.message)
                await asyncio.sleep(RETRY_FIRST * 2**number)
            else:
                return
