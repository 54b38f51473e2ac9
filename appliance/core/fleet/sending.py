"""Sends one thing to the fleet: a turn with its bundle, an attachment, or the end of a session."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from appliance.core.errors import GitmirrorError, NotFound, TooLarge, UsageError
from appliance.core.fleet.bundles import make_bundle
from appliance.core.fleet.link import FleetLink
from appliance.core.fleet.messages import Attached, NotOurs, SessionEnd, SessionKept, TurnAttached, TurnRow
from appliance.core.fleet.objects import ObjectShelf
from appliance.core.fleet.wire import LARGEST, Message, write
from appliance.core.git.command import GitError
from appliance.core.git.mirror import Mirror
from appliance.core.git.mirrors import Mirrors
from appliance.core.store.fleet_outgoing import OutgoingStore, UnsentAttachment, UnsentTurn

_files = itertools.count()


class CannotSend(GitmirrorError):
    """This cannot go out, whatever the state of the fleet: the reason is in what would be sent."""


@dataclass(frozen=True)
class _Bundled:
    size: int
    sha256: str
    needs: tuple[str, ...]


class Dispatch:
    """Sends by `link` what is in the mirrors and below their layout. `may_send` is asked again before each step.

    All methods raise CannotSend, FleetAway, nats-py's errors, OSError and StoreError.
    """

    def __init__(
        self, link: FleetLink, store: OutgoingStore, mirrors: Mirrors, may_send: Callable[[str], bool]
    ) -> None:
        self._link = link
        self._store = store
        self._mirrors = mirrors
        self._may_send = may_send
        self.shelf = ObjectShelf(link)
        self.unclear: set[str] = set()
        """The turns whose row may be in the stream, although nobody said so."""

    async def turn(self, unsent: UnsentTurn, *, gently: bool) -> tuple[TurnRow, int]:
        """Sends a turn; returns its row, and its place in the stream.

        The bundle of an earlier try is used as it is, because nodes may have its digest from a row that was stored
        without our hearing of it.
        """
        turn, uid = unsent.turn, unsent.uid
        if uid is None:
            raise CannotSend("the log does not have its attempt")
        bundled = await self._bundled(unsent, uid, gently)
        row = TurnRow(
            uid=uid, node=self._link.node, id=turn.id, repo=turn.repo, session=turn.session, commit=turn.commit,
            old=unsent.old, base=turn.base, at=turn.at, subject=turn.subject, commits=turn.commits,
            files_changed=turn.files_changed, insertions=turn.insertions, deletions=turn.deletions,
            client=turn.client, guest=turn.guest, bytes=turn.bytes, bundle=uid if bundled else None,
            bundle_size=bundled.size if bundled else 0, bundle_sha256=bundled.sha256 if bundled else None,
            needs=bundled.needs if bundled else (), notes=unsent.notes,
        )  # fmt: skip
        self.unclear.add(uid)
        seq = await self._publish(row, uid)
        self.unclear.discard(uid)
        return row, seq

    async def _bundled(self, unsent: UnsentTurn, uid: str, gently: bool) -> _Bundled | None:
        turn, mirror = unsent.turn, self._mirrors(unsent.turn.repo)
        self._require_permission(turn.repo)
        if found := await self.shelf.find(uid):
            with contextlib.suppress(ValueError, TypeError):
                return _Bundled(found.size, found.sha256, tuple(map(str, json.loads(found.note))))
        if not mirror.is_there():
            raise CannotSend(f"the mirror of {turn.repo} is not there")
        if gently:
            mirror = Mirror(mirror.path, mirror.git.gently())
        path = self._scratch()
        try:
            made = await make_bundle(mirror, turn.commit, f"refs/agents/{turn.session}", path)
            if made is None:
                return None
            self._require_permission(turn.repo)
            await self.shelf.put(uid, path, json.dumps(made.needs))
        except (GitError, NotFound, UsageError, TooLarge) as error:
            raise CannotSend(error.message) from error
        finally:
            path.unlink(missing_ok=True)
        return _Bundled(made.size, made.sha256, made.needs)

    async def attachment(self, unsent: UnsentAttachment) -> int:
        """Sends an attachment; returns the place of its row in the stream."""
        row = unsent.row
        self._require_permission(row.repo)
        stored = await self.shelf.find(row.sha256)
        if stored is None or (stored.size, stored.sha256) != (row.size, row.sha256):
            path = self._mirrors.layout.attachments / row.path
            if not await asyncio.to_thread(path.is_file):
                raise CannotSend(f"the file of the attachment {row.name} is not there")
            if (await self.shelf.put(row.sha256, path)).sha256 != row.sha256:
                await self.shelf.remove(row.sha256)
                raise CannotSend(f"the file of the attachment {row.name} is damaged")
        attached = Attached(row.name, row.size, row.sha256)
        message = TurnAttached(unsent.uid, self._link.node, row.repo, unsent.session, attached)
        return await self._publish(message, f"{unsent.uid}.{row.name}")

    async def announce(self, message: SessionEnd | SessionKept, number: int) -> None:
        """Sends the end of a session, or that it is kept. `number` is its number among what this node sends."""
        await self._publish(message, f"{message.KIND}.{self._link.node}.{number}.{message.repo}.{message.session}")

    async def has_any(self, uids: Iterable[str]) -> bool:
        """Whether the fleet has the bundle of any of these turns, which is stored before its row."""
        for uid in uids:
            if await self.shelf.find(uid):
                return True
        return False

    async def clear(self, ended: dict[str, Any]) -> None:
        """Removes the objects and the rows of a session that was ended, as `stored_in_fleet` has them."""
        for uid in ended.get("bundles", ()):
            await self.shelf.remove(str(uid))
        for sha256 in ended.get("files", ()):
            if not await asyncio.to_thread(self._store.is_attached, str(sha256)):
                await self.shelf.remove(str(sha256))
        for seq in ended.get("rows", ()):
            await self._drop_row(int(seq))

    async def _drop_row(self, seq: int) -> None:
        from nats.js.errors import APIError

        # An answer such as that the row is not there; that the fleet is away is a FleetAway.
        with contextlib.suppress(APIError):
            await self._link.call(lambda context: context.delete_msg(self._link.names.turns, seq))

    async def _publish(self, message: Message, number: str) -> int:
        """Publishes a row, which the stream takes once even if it is sent twice within two minutes."""
        try:
            message.check()
        except NotOurs as error:
            raise CannotSend(f"no node would take it: {error}") from None
        data, names = write(message), self._link.names
        if len(data) > LARGEST:
            raise CannotSend(f"its row has {len(data)} bytes")
        subject, headers = names.turns_of(self._link.node), {"Nats-Msg-Id": number}
        ack = await self._link.call(lambda context: context.publish(subject, data, stream=names.turns, headers=headers))
        return int(ack.seq)

    def _require_permission(self, repo: str) -> None:
        if not self._may_send(repo):
            raise CannotSend(f"{repo} is private, and not replicated")

    def _scratch(self) -> Path:
        directory = self._mirrors.layout.outgoing
        directory.mkdir(parents=True, exist_ok=True)
        return directory / str(next(_files))
