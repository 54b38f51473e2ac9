"""Who asks the upstream of a repository: the node that holds its lease.

A lease is a key of a bucket, written by compare-and-set, so two nodes never take it both. Its holder writes it again at
each look; that tells it whether another node has taken over. No clock is compared. A node takes the lease of another
over only after that one did not answer it.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from appliance.core.fleet.link import FleetAway, FleetLink
from appliance.core.fleet.messages import LeaseEntry, NotOurs
from appliance.core.fleet.names import key_of
from appliance.core.fleet.wire import read, write
from appliance.core.models import Repo
from appliance.core.upstream import read_upstream

if TYPE_CHECKING:
    from nats.js import JetStreamContext
    from nats.js.kv import KeyValue

Result = TypeVar("Result")

ANSWERS_IN = 1.0
"""Seconds that NATS may take. Then the node asks the upstream itself."""
FIRST_IN = 2.0
"""Seconds after the start for which refreshes wait for the first connection."""
AWAY_FOR = 5.0
"""Seconds for which a NATS that did not answer is not asked again, so that refreshes do not queue up behind it."""


@dataclass(frozen=True)
class Lease:
    """The lease of one repository as it stands at `revision`, held by `node`."""

    node: str
    revision: int
    is_ours: bool


def lease_key(repo: Repo) -> str:
    """The key of a repository's lease: nodes that have another upstream under its name have another lease."""
    identity = "\n".join(read_upstream(repo.url).identity)
    return f"{key_of(repo.name)}.{hashlib.sha256(identity.encode('utf-8', 'surrogateescape')).hexdigest()[:12]}"


class Leases:
    """The leases of the fleet. `clock` is monotonic."""

    def __init__(self, link: FleetLink, clock: Callable[[], float] = time.monotonic) -> None:
        self._link = link
        self._clock = clock
        self._held: dict[str, int] = {}
        self._away_until = 0.0
        self._began, self._is_first, self._first_trouble = clock(), True, link.trouble
        self._bucket: tuple[JetStreamContext, KeyValue] | None = None

    async def wait_first(self) -> None:
        """Waits for the first connection after the start, FIRST_IN seconds at most, or until it has failed once.

        Without this a node that starts would ask upstreams for all that its neighbours have.
        """
        while self._is_first and not self._link.is_up:
            if self._link.trouble != self._first_trouble or self._clock() - self._began > FIRST_IN:
                break
            await asyncio.sleep(0.05)
        self._is_first = False

    @property
    def is_there(self) -> bool:
        """Whether it is worth asking: the fleet is up, and has answered of late."""
        return self._link.is_up and self._clock() >= self._away_until

    async def take(self, repo: Repo, over: Lease | None = None) -> Lease:
        """Takes or renews the lease unless another node holds it; returns it as it stands then. Raises FleetAway.

        `over` is the lease of a node that does not answer; it is taken over if it still stands.
        """
        key, value = lease_key(repo), write(LeaseEntry(self._link.node, repo.name))

        async def work(context: JetStreamContext) -> Lease:
            bucket = await self._open(context)
            last = over.revision if over is not None else self._held.get(key)
            if last is not None and (taken := await _update(bucket, key, value, last)) is not None:
                return self._ours(key, taken)
            self._held.pop(key, None)
            standing = await _get(bucket, key)
            if standing is not None and standing.node not in ("", self._link.node):
                return standing
            # It is free, or this node had it before it was started again.
            taken = await _update(bucket, key, value, standing.revision if standing is not None else 0)
            if taken is not None:
                return self._ours(key, taken)
            if (standing := await _get(bucket, key)) is None:
                raise FleetAway(f"the lease of {repo.name} cannot be taken")
            return standing

        return await self._asked(work)

    async def release(self, repo: Repo) -> None:
        """Gives the lease up, so that another node may try what this one could not. Never raises."""
        key = lease_key(repo)
        revision = self._held.pop(key, None)
        if revision is None:
            return

        async def work(context: JetStreamContext) -> None:
            await (await self._open(context)).delete(key, last=revision)

        try:
            await self._asked(work)
        except FleetAway:
            return

    def _ours(self, key: str, revision: int) -> Lease:
        self._held[key] = revision
        return Lease(self._link.node, revision, is_ours=True)

    async def _open(self, context: JetStreamContext) -> KeyValue:
        if self._bucket is None or self._bucket[0] is not context:
            self._bucket = context, await context.key_value(self._link.names.leases)
        return self._bucket[1]

    async def _asked(self, work: Callable[[JetStreamContext], Awaitable[Result]]) -> Result:
        import nats.errors
        import nats.js.errors

        if not self.is_there:
            raise FleetAway("the fleet did not answer a moment ago")
        try:
            return await self._link.call(work, timeout=ANSWERS_IN)
        except (nats.errors.Error, FleetAway) as error:
            self._bucket = None
            if isinstance(error, nats.js.errors.KeyWrongLastSequenceError):
                raise FleetAway("another node was faster") from error
            self._away_until = self._clock() + AWAY_FOR
            raise error if isinstance(error, FleetAway) else FleetAway(f"the fleet refused: {error}") from error


async def _get(bucket: KeyValue, key: str) -> Lease | None:
    """The lease as it stands; None if nobody holds it."""
    from nats.js.errors import KeyNotFoundError

    try:
        entry = await bucket.get(key)
    except KeyNotFoundError:
        return None
    try:
        node = read(entry.value, LeaseEntry).node
    except NotOurs:
        # Whoever wrote it, no node answers for it, and the next look writes it anew.
        node = ""
    return Lease(node, entry.revision or 0, is_ours=False)


async def _update(bucket: KeyValue, key: str, value: bytes, last: int) -> int | None:
    """Writes the lease if its revision is `last` (0: it is free); returns the new one, or None if it is not."""
    from nats.js.errors import KeyWrongLastSequenceError

    try:
        return await (bucket.update(key, value, last=last) if last else bucket.create(key, value))
    except KeyWrongLastSequenceError:
        return None
