"""Reads the stream of turns, ends and keeps from where this node has read it, and applies it to SQLite in batches.

A connection, a leader or a consumer that is lost costs nothing but time: a consumer belongs to nobody, and the next one
begins after what was applied. Messages that were deleted leave gaps, which are passed over.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Any

from appliance.core.events.facts import Publish
from appliance.core.events.fleet_facts import SessionShared, TurnsArrived
from appliance.core.fleet.link import FleetAway, FleetLink
from appliance.core.fleet.messages import Attached, NotOurs, SessionEnd, SessionKept, TurnAttached, TurnRow
from appliance.core.fleet.wire import read
from appliance.core.models import Repo
from appliance.core.process.cancellable import cancellable
from appliance.core.process.endurance import Endurance
from appliance.core.recording.attachments import is_attachment_name
from appliance.core.recording.ended_elsewhere import EndedElsewhere
from appliance.core.recording.notes import is_note
from appliance.core.store.fleet_turns import Applied, Arrived, FleetTurnStore
from appliance.core.store.turn_details import MOST_ATTACHMENTS
from appliance.core.text import escape_ascii
from appliance.core.units import rfc3339

if TYPE_CHECKING:
    from nats.aio.msg import Msg
    from nats.js import JetStreamContext

log = logging.getLogger(__name__)

MOST_AT_ONCE = 100
"""Messages of a batch: more would keep the pushes of this node waiting for the database for longer than 0.1 s."""
MOST_BYTES = 4 * 2**20
"""Bytes of the messages of a batch, beside those of the last one."""
QUIET = 5.0
"""Seconds without a message after which the end of the stream is asked for, in case the consumer is gone."""
RETRY_EVERY = 0.5
"""Seconds between two consumers."""
CLEAN_EVERY = 300.0
"""Seconds after which refs that could not be deleted are tried again."""
GONE = 30.0
"""Seconds after which the server forgets a consumer that nobody reads."""
_HEARTBEAT = 5.0
_BUFFERED = 32 * 2**20

Kind = TurnRow | TurnAttached | SessionEnd | SessionKept
_KINDS: tuple[type[Kind], ...] = (TurnRow, TurnAttached, SessionEnd, SessionKept)


class Incoming:
    """Applies the stream to `store`. `repo_of` finds a registered repository; `publish` tells what a batch changed."""

    def __init__(
        self,
        link: FleetLink,
        store: FleetTurnStore,
        ended: EndedElsewhere,
        repo_of: Callable[[str], Repo | None],
        publish: Publish,
    ) -> None:
        self._link = link
        self._store = store
        self._ended = ended
        self._repo_of = repo_of
        self._publish = publish
        self._endurance = Endurance(log, "reading the fleet's turns")
        self._skipped: set[str] = set()
        self._clean = asyncio.Event()
        self.position = 0
        """How far the stream was read."""

    async def run(self) -> None:
        """Reads until cancelled."""
        with self._endurance.over("the name of this node"):
            await asyncio.to_thread(self._store.join, self._link.node)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._read())
            tasks.create_task(self._keep_clean())

    async def _read(self) -> None:
        import nats.errors

        while True:
            await self._link.wait_up()
            with self._endurance.over("the stream"):
                try:
                    await self._follow()
                except (nats.errors.Error, TimeoutError) as error:
                    raise FleetAway(f"the stream of turns cannot be read: {error or type(error).__name__}") from error
            await asyncio.sleep(RETRY_EVERY)

    async def _follow(self) -> None:
        """Reads with one consumer until it is of no use any more. Raises GitmirrorError, and nats-py's errors."""
        position, created = await self._begin()
        subscription = await self._link.call(lambda context: self._subscribe(context, position + 1))
        try:
            expected = 1
            while True:
                messages = await self._batch(subscription)
                if not messages:
                    if await self._is_behind(created):
                        return
                    continue
                # Some may have been lost on the way. Then they are asked for again.
                whole = [each for number, each in enumerate(messages) if _number(each) == expected + number]
                expected += len(whole)
                # In a thread, because a batch would keep guests waiting.
                arrived = await asyncio.to_thread(list, map(self._arrived, whole))
                await self._apply(arrived)
                if len(arrived) < len(messages):
                    return
        finally:
            with contextlib.suppress(Exception):
                await subscription.unsubscribe()

    async def _begin(self) -> tuple[int, str]:
        """Where to read on, and which stream it is. Raises GitmirrorError."""
        name = self._link.names.turns
        info = await self._link.call(lambda context: context.stream_info(name))
        last, created = info.state.last_seq, str(info.created)
        position = await asyncio.to_thread(self._store.begin, created, last, await self._last_read(last))
        self.position = position
        if info.state.messages and info.state.first_seq > position + 1:
            log.warning("messages of the stream %s up to %d were deleted before this node read them", name,
                        info.state.first_seq - 1)  # fmt: skip
        return position, created

    async def _last_read(self, last: int) -> str | None:
        """The digest of what stands in the stream where this node has read to; None if nothing does."""
        from nats.js.errors import NotFoundError

        position = await asyncio.to_thread(self._store.position)
        if not 0 < position <= last:
            return None
        try:
            found = await self._link.call(lambda context: context.get_msg(self._link.names.turns, position))
        except NotFoundError:
            return None
        return digest_of(found.data or b"")

    async def _subscribe(self, context: JetStreamContext, first: int) -> Any:
        from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

        return await context.subscribe(
            self._link.names.turns_of("*"),
            stream=self._link.names.turns,
            config=ConsumerConfig(
                deliver_policy=DeliverPolicy.BY_START_SEQUENCE,
                opt_start_seq=first,
                ack_policy=AckPolicy.NONE,
                max_deliver=1,
                mem_storage=True,
                num_replicas=1,
                inactive_threshold=GONE,
            ),
            manual_ack=True,
            idle_heartbeat=_HEARTBEAT,
            flow_control=True,
            pending_bytes_limit=_BUFFERED,
        )

    async def _batch(self, subscription: Any) -> list[Msg]:
        """The next messages; none if nothing came for QUIET seconds."""
        import nats.errors

        try:
            messages = [await cancellable(subscription.next_msg(timeout=QUIET))]
            size = len(messages[0].data)
            while subscription.pending_msgs and len(messages) < MOST_AT_ONCE and size < MOST_BYTES:
                messages.append(await cancellable(subscription.next_msg(timeout=QUIET)))
                size += len(messages[-1].data)
        except nats.errors.TimeoutError:
            return []
        return messages

    async def _is_behind(self, created: str) -> bool:
        """Whether there is something to read although nothing came, or the stream is another one."""
        info = await self._link.call(lambda context: context.stream_info(self._link.names.turns))
        return str(info.created) != created or info.state.last_seq != self.position

    async def _apply(self, arrived: list[Arrived]) -> None:
        if not arrived:
            return
        applied = await asyncio.to_thread(self._store.apply, arrived)
        self.position = arrived[-1].seq
        self._tell(applied)
        if applied.ended:
            self._clean.set()

    def _tell(self, applied: Applied) -> None:
        for reason in applied.refused:
            self._skip(reason)
        changed: defaultdict[str, list[str]] = defaultdict(list)
        for repo, session in sorted(applied.changed):
            changed[repo].append(session)
        for name, sessions in changed.items():
            if repo_here := self._repo_of(name):
                self._publish(TurnsArrived(repo=repo_here, sessions=tuple(sessions)))
        for (name, session), (node, reason) in applied.ended.items():
            log.info("%s: session %s was ended on node %s: %s", name, session, node, escape_ascii(reason))
        for met in applied.met:
            level = logging.INFO if met.continues else logging.WARNING
            how = "after" if met.continues else "without the turn before it, which is"
            log.log(level, "%s: session %s has turns of the nodes %s: %s took %s %s one of another node", met.repo,
                    met.session, ", ".join(met.nodes), met.node, met.commit[:12], how)  # fmt: skip
            if repo_here := self._repo_of(met.repo):
                self._publish(
                    SessionShared(
                        repo=repo_here, session=met.session, nodes=met.nodes, node=met.node, commit=met.commit,
                        continues=met.continues,
                    )
                )  # fmt: skip

    def _arrived(self, stored: Msg) -> Arrived:
        seq, subject, data = stored.metadata.sequence.stream, stored.subject, stored.data
        digest = digest_of(data)
        try:
            message: Kind = read(data, *_KINDS)
            if subject != self._link.names.turns_of(message.node):
                # The server lets a node publish on its own subject alone.
                raise NotOurs(f"it speaks for {message.node} on the subject of another node")
            return Arrived(seq, message.KIND, fields_of(message), data.decode(), digest)
        except (NotOurs, UnicodeDecodeError) as error:
            self._skip(str(error))
            return Arrived(seq, digest=digest)

    def _skip(self, reason: str) -> None:
        if reason not in self._skipped:
            if len(self._skipped) > 1000:
                self._skipped.clear()
            self._skipped.add(reason)
            log.warning("a message in the stream %s is skipped: %s", self._link.names.turns, reason)

    async def _keep_clean(self) -> None:
        """Deletes the refs of sessions that other nodes ended, also of those that ended before a kill."""
        while True:
            self._clean.clear()
            with self._endurance.over("sessions that other nodes ended"):
                await self._ended.clean()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CLEAN_EVERY):
                    await self._clean.wait()


def _number(message: Msg) -> int:
    """Which one it is of those that the consumer sent."""
    return int(message.metadata.sequence.consumer)


def digest_of(data: bytes) -> str:
    """By what a message is recognised as the one that was read."""
    return hashlib.sha256(data).hexdigest()


def fields_of(message: Kind) -> Mapping[str, Any]:
    """The fields of a message as they are stored. Raises NotOurs for what no node of this version sends."""
    fields = asdict(message)
    if isinstance(message, TurnRow):
        fields["at"] = _time(message.at)
        fields["notes"] = {key: storable_text(value) for key, value in message.notes.items() if is_note(key, value)}
        fields["attachments"] = [asdict(each) for each in message.attachments if _is_attached(each)][:MOST_ATTACHMENTS]
        for name in ("client", "guest"):
            fields[name] = fields[name] and escape_ascii(fields[name])
        fields["subject"] = storable_text(message.subject)
    if isinstance(message, TurnAttached) and not _is_attached(message.attachment):
        raise NotOurs("an attachment has no attachment's name")
    if isinstance(message, SessionEnd):
        fields["reason"] = escape_ascii(message.reason)
    return fields


def storable_text(text: str) -> str:
    """Text as SQLite stores it: without halves of characters, which JSON may have."""
    return text.encode("utf-8", "replace").decode()


def _time(text: str) -> str:
    try:
        return rfc3339(datetime.fromisoformat(text).timestamp())
    except (ValueError, OverflowError):
        raise NotOurs("at is no time") from None


def _is_attached(attached: Attached) -> bool:
    return is_attachment_name(attached.name) and 0 <= attached.size < 2**40
