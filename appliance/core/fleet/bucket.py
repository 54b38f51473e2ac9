"""The bucket of the registry in NATS: what nats-py answers and raises becomes `Remote` and errors of ours."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

from appliance.core.fleet.link import CALL, FleetAway, FleetLink
from appliance.core.fleet.messages import NotOurs, RepoEntry
from appliance.core.fleet.names import key_of, name_of
from appliance.core.fleet.registry_rules import Remote, data_of, parse
from appliance.core.process.cancellable import cancellable
from appliance.core.text import escape

if TYPE_CHECKING:
    from nats.js import JetStreamContext
    from nats.js.kv import KeyValue

log = logging.getLogger(__name__)

MOST_COMPLAINTS = 100
"""How many entries that cannot be read are logged, each once."""

Result = TypeVar("Result")


class Overtaken(Exception):
    """The key has another revision than the one that a change was made on."""


class RegistryBucket:
    """The bucket of `link`'s fleet. Every method raises FleetAway."""

    def __init__(self, link: FleetLink) -> None:
        self._link = link
        self._complained: set[tuple[str, str]] = set()

    async def identify(self) -> tuple[str, int]:
        """Which bucket it is (one that is made anew is another) and its newest revision. Makes it if it is missing."""
        from nats.js.api import KeyValueConfig
        from nats.js.errors import NotFoundError

        name, replicas = self._link.names.registry, self._link.config.replicas

        async def ask(context: JetStreamContext) -> tuple[str, int]:
            try:
                bucket = await context.key_value(name)
            except NotFoundError:
                bucket = await context.create_key_value(KeyValueConfig(bucket=name, history=1, replicas=replicas))
            info = (await bucket.status()).stream_info
            return f"{name} {info.created.isoformat() if info.created else ''}", info.state.last_seq

        return await self._ask(ask)

    async def get(self, name: str) -> Remote:
        """What the bucket has under a name."""
        from nats.js.errors import KeyNotFoundError

        async def ask(bucket: KeyValue) -> Remote:
            try:
                found = await bucket.get(key_of(name))
            except KeyNotFoundError:
                return Remote()
            return self._remote(found)

        return await self._with_bucket(ask)

    async def put(self, entry: RepoEntry, revision: int) -> int:
        """Replaces what has this revision, 0 for nothing; returns the new one. Raises Overtaken."""
        from nats.js.errors import KeyWrongLastSequenceError

        async def ask(bucket: KeyValue) -> int:
            key, data = key_of(entry.name), data_of(entry)
            try:
                # `create` also takes the place of a key that was deleted.
                return await (bucket.update(key, data, last=revision) if revision else bucket.create(key, data))
            except KeyWrongLastSequenceError:
                raise Overtaken from None

        return await self._with_bucket(ask)

    @contextlib.asynccontextmanager
    async def watch(self) -> AsyncIterator[RegistryWatcher]:
        """Everything that is in the bucket, and then each change."""
        # Its methods have no types.
        watcher: Any = await self._with_bucket(lambda bucket: bucket.watchall())
        try:
            yield RegistryWatcher(watcher, self._remote)
        finally:
            with contextlib.suppress(Exception):
                async with asyncio.timeout(CALL):
                    await watcher.stop()

    def _remote(self, found: KeyValue.Entry) -> Remote:
        if found.operation in ("DEL", "PURGE"):
            return Remote(found.revision or 0, is_gone=True)
        try:
            return Remote(found.revision or 0, parse(name_of(found.key), found.value))
        except NotOurs as reason:
            complaint = (found.key, str(reason))
            if complaint not in self._complained and len(self._complained) < MOST_COMPLAINTS:
                self._complained.add(complaint)
                log.warning("the fleet's registry has under %s what cannot be read: %s", escape(found.key), reason)
            return Remote(found.revision or 0)

    async def _with_bucket(self, work: Callable[[KeyValue], Awaitable[Result]]) -> Result:
        async def ask(context: JetStreamContext) -> Result:
            return await work(await context.key_value(self._link.names.registry))

        return await self._ask(ask)

    async def _ask(self, work: Callable[[JetStreamContext], Awaitable[Result]]) -> Result:
        import nats.errors

        try:
            return await self._link.call(work)
        except nats.errors.Error as error:
            # What a caller expects, it has caught: this is a bucket that is full, missing or forbidden.
            raise FleetAway(f"the fleet's registry cannot be used: {error or type(error).__name__}") from error


class RegistryWatcher:
    """What a watcher of the bucket tells, by name. `remote_of` reads an entry."""

    def __init__(self, watcher: Any, remote_of: Callable[[KeyValue.Entry], Remote]) -> None:
        self._watcher = watcher
        self._remote_of = remote_of

    async def whole(self) -> tuple[dict[str, Remote], int]:
        """All that the bucket had when the watcher began, and the newest revision in it. Raises FleetAway."""
        found: dict[str, Remote] = {}
        seen = 0
        while True:
            is_there, entry = await self._next(CALL)
            if not is_there:
                raise FleetAway("the fleet's registry was not read in time")
            if entry is None:
                return found, seen
            seen = max(seen, entry.revision or 0)
            self._add(found, entry)

    async def updates(self, seconds: float) -> dict[str, Remote]:
        """The changes until now; waits for the first one for so long."""
        found: dict[str, Remote] = {}
        is_there, entry = await self._next(seconds)
        while is_there:
            if entry is not None:
                self._add(found, entry)
            is_there, entry = await self._next(0.001)
        return found

    def _add(self, found: dict[str, Remote], entry: KeyValue.Entry) -> None:
        name = name_of(entry.key)
        if name is not None:
            found[name] = self._remote_of(entry)

    async def _next(self, seconds: float) -> tuple[bool, KeyValue.Entry | None]:
        import nats.errors

        try:
            return True, await cancellable(self._watcher.updates(seconds))
        except nats.errors.TimeoutError:
            return False, None
        except nats.errors.Error as error:
            raise FleetAway(f"the fleet's registry cannot be watched: {error or type(error).__name__}") from error
