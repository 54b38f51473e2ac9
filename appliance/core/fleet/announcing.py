"""Sends the ends of sessions and whether they are kept, which wait in the outbox."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Callable, Sequence

from appliance.core.fleet.link import FleetAway, FleetLink
from appliance.core.fleet.messages import NotOurs, SessionEnd, SessionKept
from appliance.core.fleet.sending import Dispatch
from appliance.core.fleet.wire import VERSION, read
from appliance.core.store.fleet import FleetStore, Outgoing
from appliance.core.store.fleet_outgoing import OutgoingStore, SessionName

log = logging.getLogger(__name__)

_KINDS = ("end", "kept")


class Announcer:
    """Sends what is in `outbox`, in order, of repositories of which `may_send` allows it."""

    def __init__(
        self, link: FleetLink, store: OutgoingStore, outbox: FleetStore, may_send: Callable[[str], bool]
    ) -> None:
        self._link = link
        self._store = store
        self._outbox = outbox
        self._may_send = may_send

    async def count(self) -> int:
        """How many wait and may go out."""
        return sum([self._may_send(str(each.document.get("repo"))) async for each in self._waiting()])

    async def _waiting(self) -> AsyncIterator[Outgoing]:
        """All that wait, oldest first: those that may not go out hold up none behind them."""
        last = 0
        while batch := await asyncio.to_thread(self._outbox.waiting, *_KINDS, after=last):
            for each in batch:
                yield each
            last = batch[-1].id

    async def send(self, dispatch: Dispatch, left_alone: Sequence[int]) -> bool:
        """Sends what it can; returns whether anything went out. `left_alone` are turns that do not go out now."""
        sent = False
        async for each in self._waiting():
            message = self._message(each)
            if message is None:
                await asyncio.to_thread(self._outbox.sent, each.id)
            elif isinstance(message, SessionEnd):
                sent = await self._send_end(dispatch, each, message) or sent
            elif self._may_send(message.repo):
                name = SessionName(message.repo, message.session)
                # The other nodes must know the session first.
                if not await asyncio.to_thread(self._store.is_waited_for, name, left_alone):
                    await dispatch.announce(message, each.id)
                    await asyncio.to_thread(self._outbox.sent, each.id)
                    sent = True
        return sent

    def _message(self, waiting: Outgoing) -> SessionEnd | SessionKept | None:
        document = {"node": self._link.node, **waiting.document, "v": VERSION, "kind": waiting.kind}
        kinds: dict[str, type[SessionEnd] | type[SessionKept]] = {"end": SessionEnd, "kept": SessionKept}
        try:
            return read(json.dumps(document).encode(), kinds[waiting.kind])
        except NotOurs as error:
            log.error("that a session was %s cannot go to the fleet: %s", waiting.kind, error)
            return None

    async def _send_end(self, dispatch: Dispatch, waiting: Outgoing, message: SessionEnd) -> bool:
        """Sends an end, unless the fleet knows nothing of the session because its repository is private.

        Of a repository that was removed nobody knows whether it was; what the fleet has of a session tells. What it
        stored is then removed as far as that succeeds: the end is what counts.
        """
        goes_out = (
            self._may_send(message.repo)
            or message.upto > 0
            or bool(waiting.document.get("rows"))
            # One may have gone out just before a kill, or before the answer of the server was lost.
            or not dispatch.unclear.isdisjoint(message.uids)
            or await dispatch.has_any(message.uids)
        )
        if goes_out:
            await dispatch.announce(message, waiting.id)
        await asyncio.to_thread(self._outbox.sent, waiting.id)
        if goes_out:
            with contextlib.suppress(FleetAway):
                await dispatch.clear({**waiting.document, "bundles": message.uids})
        return goes_out
