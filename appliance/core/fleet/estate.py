"""What the fleet has of a node that is gone: its turns, what was decided about them, and the heads of its log."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from appliance.core.fleet.heads import heads_of
from appliance.core.fleet.link import FleetLink
from appliance.core.fleet.log_check import LostEvents
from appliance.core.fleet.messages import (
    Attached,
    NodeEntry,
    NotOurs,
    RepoEntry,
    SessionEnd,
    SessionKept,
    TurnAttached,
    TurnRow,
)
from appliance.core.fleet.names import key_of
from appliance.core.fleet.stream_reading import read_stream
from appliance.core.fleet.wire import Message, read
from appliance.core.process.cancellable import cancellable
from appliance.core.store.audit import UNKNOWN
from appliance.core.store.fleet_turns import FIRST_AWAY

if TYPE_CHECKING:
    from nats.js import JetStreamContext
    from nats.js.kv import KeyValue

Said = TurnRow | TurnAttached | SessionEnd | SessionKept
_SAID: tuple[type[Said], ...] = (TurnRow, TurnAttached, SessionEnd, SessionKept)


@dataclass(frozen=True)
class PlacedTurn:
    """A turn, and its place in the fleet's order."""

    seq: int
    row: TurnRow


@dataclass
class Ledger:
    """The stream of turns, added up: which turns are there, not ended, in the fleet's order.

    `every` has also those that were ended, by commit, because later turns may build on their bundles.
    """

    turns: dict[str, PlacedTurn] = field(default_factory=dict)
    kept: set[tuple[str, str]] = field(default_factory=set)
    every: dict[tuple[str, str], TurnRow] = field(default_factory=dict)
    skipped: int = 0
    _seen: set[str] = field(default_factory=set)
    _ends: set[SessionEnd] = field(default_factory=set)
    _of_session: defaultdict[tuple[str, str], list[str]] = field(default_factory=lambda: defaultdict(list))

    def add(self, seq: int, message: Message) -> None:
        """Adds the next message of the stream. The first row of a turn counts."""
        if isinstance(message, TurnRow):
            self.every.setdefault((message.repo, message.commit), message)
            if message.uid not in self._seen:
                self._seen.add(message.uid)
                self.turns[message.uid] = PlacedTurn(seq, message)
                self._of_session[message.repo, message.session].append(message.uid)
                if message.client == UNKNOWN:
                    self.kept.add((message.repo, message.session))
        elif isinstance(message, TurnAttached) and message.uid in self.turns:
            self._attach(message.uid, message.attachment)
        elif isinstance(message, SessionEnd) and message not in self._ends:
            self._ends.add(message)
            self._end(message)
        elif isinstance(message, SessionKept):
            (self.kept.add if message.kept else self.kept.discard)((message.repo, message.session))

    def taken_by(self, node: str) -> list[PlacedTurn]:
        """The turns that a node took, in the fleet's order, without those whose ids no node gives, or gives twice."""
        found, ids = [], set[int]()
        for placed in self.turns.values():
            row = placed.row
            if row.node == node and 0 < row.id < FIRST_AWAY and row.id not in ids:
                ids.add(row.id)
                found.append(placed)
        return found

    def _attach(self, uid: str, attachment: Attached) -> None:
        placed = self.turns[uid]
        if all(each.name != attachment.name for each in placed.row.attachments):
            row = replace(placed.row, attachments=(*placed.row.attachments, attachment))
            self.turns[uid] = PlacedTurn(placed.seq, row)

    def _end(self, end: SessionEnd) -> None:
        self._seen.update(end.uids)
        of_session = (end.repo, end.session)
        named, left = set(end.uids), []
        for uid in self._of_session.pop(of_session, ()):
            if self.turns[uid].seq <= end.upto or uid in named:
                del self.turns[uid]
            else:
                left.append(uid)
        # Whatever is left is a new session, as on every node.
        self.kept.discard(of_session)
        if left:
            self._of_session[of_session] = left
        if any(self.turns[uid].row.client == UNKNOWN for uid in left):
            self.kept.add(of_session)


@dataclass
class Estate:
    """Everything that makes a node anew. `logs` are the logs that were published in its name, by their last heads.

    `nodes` are the other nodes that were heard while this was read, and `is_alive` is whether the node itself was.
    """

    node: str
    repos: dict[str, RepoEntry] = field(default_factory=dict)
    ledger: Ledger = field(default_factory=Ledger)
    logs: list[LostEvents] = field(default_factory=list)
    nodes: dict[str, NodeEntry] = field(default_factory=dict)
    is_alive: bool = False


async def read_estate(link: FleetLink, node: str, watch: float) -> Estate:
    """Reads what the fleet has of `node`, and listens for `watch` seconds who is alive. Raises FleetAway."""
    estate, listening = Estate(node), asyncio.create_task(heard(link, watch))
    try:
        estate.repos = await _registry(link)
        async with contextlib.aclosing(read_stream(link, link.names.turns, link.names.turns_of("*"))) as messages:
            async for message in messages:
                try:
                    said: Said = read(message.data, *_SAID)
                    if message.subject != link.names.turns_of(said.node):
                        raise NotOurs("it speaks for another node")
                except NotOurs:
                    estate.ledger.skipped += 1
                else:
                    estate.ledger.add(message.metadata.sequence.stream, said)
        estate.logs = await _logs(link, node)
        estate.nodes = await listening
    finally:
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)
    estate.is_alive = estate.nodes.pop(node, None) is not None
    return estate


async def heard(link: FleetLink, seconds: float, until: Collection[str] = ()) -> dict[str, NodeEntry]:
    """The nodes whose entry changes within so many seconds; returns as soon as one of `until` does. Raises FleetAway.

    Clocks of two machines are never compared, so this takes its time.
    """

    async def begin(context: JetStreamContext) -> Any:
        return await (await context.key_value(link.names.nodes)).watchall()

    watcher, found, is_new = await link.call(begin), dict[str, NodeEntry](), False
    deadline = time.monotonic() + seconds
    try:
        while (left := deadline - time.monotonic()) > 0 and not any(name in found for name in until):
            with contextlib.suppress(TimeoutError):
                stored = await cancellable(watcher.updates(timeout=left))
                if stored is None:
                    # The end of what was there before.
                    is_new = True
                elif is_new and (entry := _entry(stored)) is not None:
                    found[entry.node] = entry
    finally:
        with contextlib.suppress(Exception):
            await watcher.stop()
    return found


def _entry(stored: KeyValue.Entry) -> NodeEntry | None:
    try:
        entry = read(stored.value, NodeEntry)
    except NotOurs:
        return None
    return entry if key_of(entry.node) == stored.key else None


async def _registry(link: FleetLink) -> dict[str, RepoEntry]:
    """The repositories that are registered in the fleet, by name."""

    async def every(context: JetStreamContext) -> list[bytes | None]:
        from nats.js.errors import KeyNotFoundError, NoKeysError

        bucket, values = await context.key_value(link.names.registry), []
        with contextlib.suppress(NoKeysError):
            for key in await bucket.keys():
                with contextlib.suppress(KeyNotFoundError):
                    values.append((await bucket.get(key)).value)
        return values

    found = {}
    for value in await link.call(every, 60.0):
        with contextlib.suppress(NotOurs):
            entry = read(value, RepoEntry)
            if not entry.removed:
                found[entry.name] = entry
    return found


async def _logs(link: FleetLink, node: str) -> list[LostEvents]:
    """The logs that were published in the name of `node`."""
    logs: dict[str, LostEvents] = {}
    async with contextlib.aclosing(heads_of(link, node)) as batches:
        async for batch in batches:
            for each in batch:
                if isinstance(each, NotOurs):
                    continue
                if each.said.log in logs:
                    logs[each.said.log].add(each)
                else:
                    logs[each.said.log] = LostEvents(each.said.log, False, 0, each, each)
    return list(logs.values())
