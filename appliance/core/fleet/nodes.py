"""The nodes of a fleet: each says every few seconds that it is there, and listens to the others.

A node's entry has a key of its own in the bucket of nodes. Whether a node is alive is judged by how long ago its entry
changed, on this machine's monotonic clock; clocks of two machines are never compared.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from appliance import __version__
from appliance.core.errors import Conflict, GitmirrorError, NotFound
from appliance.core.fleet.addresses import is_local, is_url
from appliance.core.fleet.link import FleetAway, FleetLink
from appliance.core.fleet.messages import NodeEntry, NodeForgotten, NotOurs
from appliance.core.fleet.names import NODE_SECONDS, key_of
from appliance.core.fleet.wire import read, write
from appliance.core.process.cancellable import cancellable
from appliance.core.units import rfc3339

if TYPE_CHECKING:
    from nats.js import JetStreamContext
    from nats.js.kv import KeyValue

log = logging.getLogger(__name__)

SAY_EVERY = 5.0
"""Seconds between two entries of a node, as long as the fleet is small."""
RETRY_EVERY = 0.5
"""Seconds until an entry that was not stored is written again, as when a bucket that was just made has no leader yet.
Without the entry the others know no address of this node, and ask upstreams in its place."""
UNKNOWN_FOR = 2.0
"""Seconds after each connection during which a node that has not been heard of yet is waited for."""
MANY_NODES = 30
"""Above so many nodes each says half as often that it is there, because each hears all of them."""
ALIVE = 30.0
"""Seconds since its entry changed for which a node counts as alive."""
DEAF = 20.0
"""Seconds without this node's own entry coming back after which the bucket is watched anew: a consumer that is lost
with its server tells nobody."""
TWIN_SHOWN = 60.0
"""Seconds for which another node of this node's name is told of after it was last heard."""

FORGOTTEN = "forgotten."
"""What the key of a NodeForgotten begins with; the key of a node has no dot."""

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def boot_id() -> str:
    """What tells this boot of this machine from all others; empty where that cannot be seen.

    The sandbox of the systemd unit hides it (ProcSubset=pid): nodes that share a machine then fetch from each other by
    an address that is not loopback's, or not at all.
    """
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""


@dataclass(frozen=True)
class Described:
    """What of this node's entry changes; see `NodeEntry`. `waiting` is by kind."""

    url: str | None
    repos: int
    sessions: int
    behind: int
    lag: float | None
    waiting: Mapping[str, int]
    seq: int


@dataclass
class _Known:
    """An entry, when it changed by the own clock, and how many turns its node had yet to read then."""

    entry: NodeEntry
    revision: int
    changed_at: float
    stored_at: float
    turns_behind: int
    is_settled: bool
    """Whether `changed_at` is right: an entry that was there before is as old as NATS says."""


class Nodes:
    """What this node knows of the nodes of its fleet, itself included. `describe` is called in a thread.

    Without a fleet it knows none.
    """

    def __init__(
        self,
        link: FleetLink,
        describe: Callable[[], Described],
        *,
        machine: str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._link = link
        self._describe = describe
        self._clock = clock
        self._known: dict[str, _Known] = {}
        self._heard_at = self._up_at = -math.inf
        self._own_revision: int | None = None
        self._stored: tuple[float, float] | None = None
        self._twin: tuple[float, NodeEntry] | None = None
        self._skipped: set[str] = set()
        self.machine = boot_id() if machine is None else machine
        self.started_at = rfc3339(time.time())
        self.described = Described(None, 0, 0, 0, None, {}, 0)
        link.on_up(self._note_up)

    # -- what is known -------------------------------------------------------------------------------------

    def names(self) -> list[str]:
        """The nodes that have said something within a day, by name."""
        now = self._clock()
        return sorted(name for name, known in self._known.items() if now - known.changed_at < NODE_SECONDS)

    def entry(self, node: str) -> NodeEntry | None:
        """What a node last said of itself, or None."""
        known = self._known.get(node)
        return known.entry if known else None

    def seen(self, node: str) -> float:
        """Seconds since a node's entry changed; infinite for one that is not known."""
        known = self._known.get(node)
        return max(0.0, self._clock() - known.changed_at) if known else math.inf

    def is_alive(self, node: str) -> bool:
        """Whether a node has said something within ALIVE seconds."""
        return self.seen(node) < ALIVE

    def turns_behind(self, node: str) -> int:
        """How many messages of the stream of turns a node had not read when it last spoke, but for the newest."""
        known = self._known.get(node)
        return known.turns_behind if known else 0

    def url_of(self, node: str) -> str | None:
        """Where this node can fetch from that one, or None. An address of loopback counts on the same machine only."""
        entry = self.entry(node)
        if entry is None or not entry.url or not is_url(entry.url):
            return None
        if is_local(entry.url) and not (self.machine and entry.machine == self.machine):
            return None
        return entry.url

    async def wait_url_of(self, node: str) -> str | None:
        """As `url_of`, for a node that has just answered a question: its answer can arrive before its entry.

        Waits for the entry of a node that has not been heard of, until UNKNOWN_FOR seconds after the connection began.
        """
        while node not in self._known and self._clock() - self._up_at < UNKNOWN_FOR:
            await asyncio.sleep(0.05)
        return self.url_of(node)

    def server_time(self) -> float | None:
        """Unix seconds by the clock of the servers; None unless they stored this node's entry within DEAF seconds."""
        if self._stored is None or not self._link.is_up:
            return None
        written, heard_at = self._stored
        since = self._clock() - heard_at
        return written + since if since < DEAF else None

    @property
    def twin(self) -> NodeEntry | None:
        """The entry of another node that calls itself by this node's name now, or None."""
        if self._twin is None or self._clock() - self._twin[0] > TWIN_SHOWN:
            return None
        return self._twin[1]

    # -- saying and hearing --------------------------------------------------------------------------------

    async def run(self) -> None:
        """Says that this node is there, and listens to the others, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._speak(), name="this node's entry")
            group.create_task(self._listen(), name="entries of the other nodes")

    def _note_up(self) -> None:
        self._up_at = self._clock()

    async def _speak(self) -> None:
        while True:
            await self._link.wait_up()
            try:
                await self.say()
            except FleetAway as error:
                log.debug("this node's entry was not stored: %s", error.message)
                await asyncio.sleep(RETRY_EVERY)
            else:
                await asyncio.sleep(SAY_EVERY if len(self._known) <= MANY_NODES else 2 * SAY_EVERY)

    async def say(self) -> None:
        """Writes this node's entry now. Raises FleetAway."""
        # A broken database leaves the counts as they were: the others must still hear that this node is there.
        with contextlib.suppress(GitmirrorError):
            self.described = await asyncio.to_thread(self._describe)
        now = self.described
        entry = NodeEntry(
            self._link.node, __version__, self.started_at, rfc3339(time.time()), now.url, self.machine, now.repos,
            now.sessions, now.behind, now.lag, sum(now.waiting.values()), now.seq,
        )  # fmt: skip
        subject = f"$KV.{self._link.names.nodes}.{key_of(self._link.node)}"
        stored = await self._link.call(lambda context: context.publish(subject, write(entry)))
        if self._own_revision is None:
            self._own_revision = stored.seq

    async def forget(self, node: str) -> None:
        """Has every node of the fleet forget one that is gone. Raises NotFound, Conflict, FleetAway.

        A mark of its own says so, because a node may write no other node's entry. A node that was forgotten and speaks
        again is back.
        """
        if node not in self.names():
            raise NotFound(f"the fleet has no node {node!a:.150}", hint="`fleet status` lists its nodes")
        if node == self._link.node or self.is_alive(node):
            raise Conflict(
                f"{node} is alive, and would say so again", hint=f"stop serve on {node}, and try again after 30 s"
            )
        key, said = f"{FORGOTTEN}{key_of(node)}", NodeForgotten(node, self._link.node)
        subject = f"$KV.{self._link.names.nodes}.{key}"
        stored = await self._link.call(lambda context: context.publish(subject, write(said)))
        self._forget(node, stored.seq)

    def _forget(self, node: str, revision: int) -> None:
        known = self._known.get(node)
        if known is not None and known.revision < revision and node != self._link.node:
            del self._known[node]

    async def _listen(self) -> None:
        while True:
            await self._link.wait_up()
            try:
                await self._watch()
            except FleetAway as error:
                log.debug("the bucket of nodes cannot be watched: %s", error.message)
            await asyncio.sleep(1)

    async def _watch(self) -> None:
        """Reads what nodes say until the connection is lost, or nothing comes any more. Raises FleetAway."""
        client, bucket = self._link.client, self._link.names.nodes

        async def begin(context: JetStreamContext) -> Any:
            return await (await context.key_value(bucket)).watchall()

        watcher = await self._link.call(begin)
        self._heard_at = self._clock()
        # Revisions of a bucket that was made anew start at one.
        self._own_revision = None
        try:
            while self._link.is_up and self._link.client is client and self._clock() - self._heard_at < DEAF:
                with contextlib.suppress(TimeoutError):
                    entry = await cancellable(watcher.updates(timeout=1))
                    if entry is not None:
                        self._hear(entry)
        finally:
            with contextlib.suppress(FleetAway):
                await self._link.call(lambda _: watcher.stop(), timeout=1)

    def _hear(self, stored: KeyValue.Entry) -> None:
        revision = stored.revision or 0
        try:
            if stored.key.startswith(FORGOTTEN):
                self._forget(read(stored.value, NodeForgotten).node, revision)
                return
            entry = read(stored.value, NodeEntry)
            if key_of(entry.node) != stored.key:
                raise NotOurs(f"it speaks for {entry.node}")
        except NotOurs as error:
            if stored.key not in self._skipped:
                self._skipped.add(stored.key)
                log.warning(
                    "fleet %s: the entry of the node %s is skipped: %s", self._link.names.fleet, stored.key, error
                )
            return
        now = self._clock()
        # nats-py calls it a number and gives a datetime.
        written = cast(datetime, stored.created).timestamp()
        known = self._known.get(entry.node)
        if known is None or known.revision != revision:
            behind = max(0, self._link.settled_seq - entry.seq)
            self._known[entry.node] = _Known(entry, revision, now, written, behind, known is not None)
        if entry.node == self._link.node:
            self._heard_own(entry, revision, written, now)

    def _heard_own(self, entry: NodeEntry, revision: int, written: float, now: float) -> None:
        self._heard_at = now
        if (entry.started_at, entry.machine) == (self.started_at, self.machine):
            self._stored = written, now
            # NATS stored this just now, which says how old the entries are that were there before.
            for known in self._known.values():
                if not known.is_settled:
                    known.changed_at, known.is_settled = now - max(0.0, written - known.stored_at), True
        elif self._own_revision is not None and revision > self._own_revision:
            if self.twin is None:
                log.error(
                    "fleet %s: another node calls itself %s, too (started %s, at %s): give each a name of its own in "
                    "[fleet] node", self._link.names.fleet, entry.node, entry.started_at, entry.url,
                )  # fmt: skip
            self._twin = now, entry
