"""The heads of this node's audit log, published where no node can take them back.

Whoever has a node's disk can make its log anew, and a chain of hashes that was made anew is intact. What was published
before shows it: `log_check` compares both.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import TYPE_CHECKING, NamedTuple

from appliance.core.errors import GitmirrorError
from appliance.core.fleet.link import CALL, FleetAway, FleetLink
from appliance.core.fleet.messages import LogHead, NotOurs
from appliance.core.fleet.stream_reading import read_stream
from appliance.core.fleet.wire import read, write
from appliance.core.process.endurance import Endurance
from appliance.core.store.log_heads import LogHeads, Span
from appliance.core.store.told import Head
from appliance.core.units import rfc3339

if TYPE_CHECKING:
    from nats.aio.msg import Msg
    from nats.js.api import StreamInfo

log = logging.getLogger(__name__)

EVERY = 60.0
"""Seconds between two heads, if the log grew: what a log that is cut off can lose unnoticed."""
RETRY_EVERY = 5.0
"""Seconds until a head that could not be published is tried again."""
AT_STOP = 2.0
"""Seconds that a stop waits for the last head to be published."""
BATCH = 1000
"""Heads that are read from the stream and looked up at a time."""


class PublishedHead(NamedTuple):
    """A head as it stands in the stream: `at` is when the server stored it, in RFC 3339, and `seq` its place."""

    said: LogHead
    at: str
    seq: int

    @property
    def head(self) -> Head:
        """The event."""
        return Head(self.said.id, self.said.hash)


class HeadPublisher:
    """Publishes the newest event of the audit log when it changed, every `every` seconds at most."""

    def __init__(
        self, link: FleetLink, heads: LogHeads, clock: Callable[[], float] = time.time, every: float = EVERY
    ) -> None:
        self._link = link
        self._heads = heads
        self._clock = clock
        self._every = every
        self._published: Span | None = None
        self._knows = False
        self._wake = asyncio.Event()
        self._endurance = Endurance(log, "publishing the head of the audit log")
        link.on_up(self._on_up)

    async def run(self) -> None:
        """Publishes until cancelled."""
        while True:
            await self._link.wait_up()
            self._wake.clear()
            done = False
            with self._endurance.over(self._link.node):
                await self.publish()
                done = True
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._every if done else min(self._every, RETRY_EVERY)):
                    await self._wake.wait()

    async def publish(self, timeout: float = CALL) -> None:
        """Publishes the newest event, unless it is published already. Raises FleetAway and StoreError."""
        span = await asyncio.to_thread(self._heads.span)
        if span is None:
            return
        if not self._knows:
            await self._compare(span, timeout)
        if span == self._published:
            return
        head = LogHead(self._link.node, span.log, *span.newest, rfc3339(self._clock()))
        names = self._link.names
        await self._link.call(
            lambda context: context.publish(
                names.heads_of(head.node), write(head), timeout=timeout, stream=names.heads
            ),
            timeout,
        )
        self._published = span

    async def finish(self) -> None:
        """Publishes once more before a stop, if the fleet can be reached. Never raises, and takes `AT_STOP` at most."""
        if self._link.is_up:
            with self._endurance.over(self._link.node):
                await self.publish(AT_STOP)

    async def _compare(self, span: Span, timeout: float) -> None:
        """Learns what this node published last, and complains if that is not in the log."""
        last = await last_head(self._link, self._link.node, timeout)
        if last is not None:
            self._published = Span(last.said.log, last.head)
            if last.said.log == span.log and not await asyncio.to_thread(self._heads.held, [last.head]):
                log.error(
                    "event %d of the audit log was published at %s and is not in the log: `audit verify --fleet` "
                    "says what to do",
                    last.head.id,
                    last.at,
                )
        else:
            self._published = None
        self._knows = True

    def _on_up(self) -> None:
        # The stream may be another one by now.
        self._knows = False
        self._wake.set()


async def last_head(link: FleetLink, node: str, timeout: float = CALL) -> PublishedHead | None:
    """The newest head that was published in the name of `node`; None if none was, or it cannot be read.

    Raises FleetAway.
    """
    from nats.js.errors import NotFoundError

    names = link.names
    try:
        raw = await link.call(lambda context: context.get_last_msg(names.heads, names.heads_of(node)), timeout)
    except NotFoundError:
        return None
    try:
        said = _read(raw.data, node)
    except NotOurs:
        return None
    return PublishedHead(said, rfc3339(raw.time.timestamp()) if raw.time else "", raw.seq or 0)


async def heads_of(link: FleetLink, node: str) -> AsyncGenerator[list[PublishedHead | NotOurs], None]:
    """Everything that was published in the name of `node` until now, oldest first, in batches. Raises FleetAway.

    NotOurs stands for what is no head of that node.
    """
    batch = list[PublishedHead | NotOurs]()
    async with contextlib.aclosing(read_stream(link, link.names.heads, link.names.heads_of(node))) as messages:
        async for message in messages:
            batch.append(_published(message, node))
            if len(batch) == BATCH:
                yield batch
                batch = []
    if batch:
        yield batch


async def fault_of_stream(link: FleetLink) -> str | None:
    """What shows that heads were, or may be, taken out of the stream; None if nothing does. Raises FleetAway.

    A stream keeps its promise not to delete only as long as nobody may change or remove it: the server lets whoever
    may update a stream bound it, although nobody can delete from it.
    """
    info: StreamInfo = await link.call(lambda context: context.stream_info(link.names.heads))
    config, state = info.config, info.state
    if state.first_seq > 1 or state.num_deleted:
        return f"its first {state.first_seq - 1} messages are gone" if state.first_seq > 1 else "messages are gone"
    if not (config.deny_delete and config.deny_purge):
        return "messages may be deleted from it"
    if any(bound and bound > 0 for bound in (config.max_msgs, config.max_bytes, config.max_msgs_per_subject)):
        return "it is bounded, so that it drops its oldest messages"
    if config.max_age:
        return "its messages expire"
    return None


def _published(message: Msg, node: str) -> PublishedHead | NotOurs:
    try:
        said = _read(message.data, node)
    except NotOurs as fault:
        return fault
    at = rfc3339(message.metadata.timestamp.timestamp())
    return PublishedHead(said, at, message.metadata.sequence.stream)


def _read(data: bytes | None, node: str) -> LogHead:
    said = read(data, LogHead)
    if said.node != node:
        raise NotOurs("it is of another node")
    if not 0 < said.id < 2**63:
        raise NotOurs("id is out of range")
    return said


@contextlib.asynccontextmanager
async def visiting(link: FleetLink, seconds: float = 2 * CALL) -> AsyncIterator[FleetLink]:
    """A connection for the time of a command. Raises FleetAway if there is none within so many seconds."""
    if not link.is_on:
        raise GitmirrorError(
            "this node belongs to no fleet", hint='name its NATS servers: [fleet] servers = ["nats://nats-1:4222"]'
        )
    running = asyncio.create_task(link.run())
    try:
        try:
            async with asyncio.timeout(seconds):
                await link.wait_up()
        except TimeoutError:
            raise FleetAway(
                f"the fleet {link.config.name} cannot be reached: {link.trouble}",
                hint="run it again once `fleet status` says that this node is connected",
            ) from None
        yield link
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
