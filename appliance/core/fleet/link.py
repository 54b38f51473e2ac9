"""The connection of one node to its fleet: it is made, kept and lost in the background, and every call has a deadline.

nats-py is imported when a fleet is configured, so a node alone pays nothing for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

from appliance.core.config.fleet import FleetConfig
from appliance.core.errors import GitmirrorError
from appliance.core.fleet.names import FleetNames

if TYPE_CHECKING:
    from nats.aio.client import Client
    from nats.js import JetStreamContext

log = logging.getLogger(__name__)

CALL = 5.0
"""Seconds that a call may take unless it says otherwise."""
CONNECT = 2.0
"""Seconds that one server may take to answer."""
RETRY_EVERY = 1.0
"""Seconds between two tries to connect, and to make the streams."""
LEASE_SECONDS = 3600.0
"""Seconds after which NATS drops a lease that nobody renews. When others may take it over is theirs to decide."""
NODE_SECONDS = 86400.0
"""Seconds after which NATS drops what a node said of itself."""

Result = TypeVar("Result")
OnUp = Callable[[], None]


class FleetAway(GitmirrorError):
    """The fleet cannot be reached, or did not answer in time."""


class FleetLink:
    """The connection that `config` describes. `names` are those of what belongs to the fleet."""

    def __init__(self, config: FleetConfig) -> None:
        self.config = config
        self.names = FleetNames(config.name)
        self.node = config.node_name
        self._client: Client | None = None
        self._context: JetStreamContext | None = None
        self._up = asyncio.Event()
        self._down = asyncio.Event()
        self._on_up: list[OnUp] = []
        self._trouble: str | None = "not connected yet"

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
        """Why the fleet cannot be used, or None."""
        return self._trouble if self.is_on and not self.is_up else None

    def on_up(self, callback: OnUp) -> None:
        """Has `callback` called each time that the fleet can be used again."""
        self._on_up.append(callback)

    async def wait_up(self) -> None:
        """Waits until the fleet can be used."""
        await self._up.wait()

    @property
    def client(self) -> Client:
        """The connection, for core NATS. Raises FleetAway."""
        if self._client is None or not self.is_up:
            raise FleetAway(f"the fleet cannot be reached: {self._trouble}", hint="`fleet status` says more")
        return self._client

    @property
    def context(self) -> JetStreamContext:
        """JetStream. Raises FleetAway."""
        if self._context is None or not self.is_up:
            raise FleetAway(f"the fleet cannot be reached: {self._trouble}", hint="`fleet status` says more")
        return self._context

    async def call(self, work: Callable[[JetStreamContext], Awaitable[Result]], timeout: float = CALL) -> Result:
        """Does `work` with JetStream within `timeout` seconds. Raises FleetAway.

        Answers that are no trouble, such as a key that is not there, are raised as nats-py's own errors.
        """
        import nats.errors

        try:
            async with asyncio.timeout(timeout):
                return await work(self.context)
        except (TimeoutError, OSError, nats.errors.Error) as error:
            if _is_answer(error):
                raise
            raise FleetAway(f"the fleet did not answer: {error or type(error).__name__}") from error

    async def run(self) -> None:
        """Keeps the connection until cancelled."""
        if not self.is_on:
            await asyncio.Event().wait()
        try:
            while True:
                try:
                    await _whole(self._open())
                except Exception as error:
                    self._lost(f"{error or type(error).__name__}")
                else:
                    await self._down.wait()
                await asyncio.sleep(RETRY_EVERY)
        finally:
            await self._close()

    async def _open(self) -> None:
        import nats

        if self._client is None or self._client.is_closed:
            self._client = await nats.connect(**self._options())
        self._context = self._client.jetstream(timeout=CALL)
        await self._make_streams(self._context)
        self._down.clear()
        self._trouble = None
        self._up.set()
        log.info("fleet %s: connected as %s", self.config.name, self.node)
        for callback in self._on_up:
            callback()

    def _options(self) -> dict[str, Any]:
        options: dict[str, Any] = {
            "servers": list(self.config.servers),
            "name": f"gitmirror {self.node}",
            "connect_timeout": CONNECT,
            "reconnect_time_wait": RETRY_EVERY,
            "max_reconnect_attempts": -1,
            "allow_reconnect": True,
            "disconnected_cb": self._on_disconnected,
            "reconnected_cb": self._on_reconnected,
            "error_cb": self._on_error,
        }
        if self.config.tls_ca:
            options["tls"] = ssl.create_default_context(cafile=self.config.tls_ca)
        return options

    async def _make_streams(self, context: JetStreamContext) -> None:
        """Makes the streams and buckets that are not there yet."""
        from nats.js.api import KeyValueConfig, ObjectStoreConfig, StreamConfig
        from nats.js.errors import NotFoundError

        names, replicas = self.names, self.config.replicas
        for stream in (
            StreamConfig(name=names.turns, subjects=[names.turns_of("*")], num_replicas=replicas),
            StreamConfig(
                name=names.heads,
                subjects=[names.heads_of("*")],
                num_replicas=replicas,
                deny_delete=True,
                deny_purge=True,
            ),
        ):
            try:
                await context.stream_info(str(stream.name))
            except NotFoundError:
                await context.add_stream(stream)
        for bucket, ttl in ((names.registry, None), (names.nodes, NODE_SECONDS), (names.leases, LEASE_SECONDS)):
            try:
                await context.key_value(bucket)
            except NotFoundError:
                await context.create_key_value(KeyValueConfig(bucket=bucket, history=1, ttl=ttl, replicas=replicas))
        try:
            await context.object_store(names.objects)
        except NotFoundError:
            await context.create_object_store(names.objects, config=ObjectStoreConfig(replicas=replicas))

    def _lost(self, why: str) -> None:
        if self.is_up or self._trouble != why:
            log.warning("fleet %s cannot be used: %s", self.config.name, why)
        self._trouble = why
        self._up.clear()
        self._down.set()

    async def _on_disconnected(self) -> None:
        self._lost("the connection was lost")

    async def _on_reconnected(self) -> None:
        self._down.set()

    async def _on_error(self, error: Exception) -> None:
        if not self.is_up:
            self._trouble = f"{error or type(error).__name__}"

    async def _close(self) -> None:
        self._up.clear()
        if self._client is not None:
            with contextlib.suppress(Exception):
                async with asyncio.timeout(CONNECT):
                    await self._client.close()


async def _whole(work: Coroutine[Any, Any, None]) -> None:
    """Does `work`, and ends when it is cancelled: nats-py drops a cancellation that comes while it connects."""
    task = asyncio.ensure_future(work)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        task.cancel()
        await asyncio.wait({task}, timeout=CONNECT)
        raise


def _is_answer(error: BaseException) -> bool:
    """Whether an error is an answer of JetStream's, such as that a key is not there, and no sign of trouble."""
    from nats.js.errors import APIError, KeyNotFoundError, KeyWrongLastSequenceError, NotFoundError

    if isinstance(error, KeyNotFoundError | KeyWrongLastSequenceError | NotFoundError):
        return True
    return isinstance(error, APIError) and error.code is not None and 400 <= error.code < 500 and error.code != 408
