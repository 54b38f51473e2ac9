"""Sends what this node records: turns in the order of each session, a few sessions at once, oldest first.

What waits is in SQLite anyway: turns without a place in the stream. So nothing grows while the fleet is away, and a
kill loses nothing. A try costs nothing that guests need: git at low priority, and no lock.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
from collections import deque
from collections.abc import AsyncIterator, Callable

from appliance.core.config.fleet import SYNC
from appliance.core.errors import GitmirrorError
from appliance.core.fleet.announcing import Announcer
from appliance.core.fleet.link import FleetAway, FleetLink
from appliance.core.fleet.messages import TurnRow
from appliance.core.fleet.pauses import ASIDE, PAUSES, Waits
from appliance.core.fleet.sending import CannotSend, Dispatch
from appliance.core.fleet.wire import write
from appliance.core.git.mirrors import Mirrors
from appliance.core.models import Turn
from appliance.core.store.fleet import FleetStore
from appliance.core.store.fleet_outgoing import OutgoingStore, SessionName, Unsent, UnsentTurn
from appliance.core.units import format_duration

log = logging.getLogger(__name__)

AT_ONCE = 4
"""Sessions whose turns go out at once."""
LOOK_EVERY = 5.0
"""Seconds between two looks, for what nobody says: an attachment, or what a command did without `serve`."""
AGAIN = 0.25
"""Seconds before a push that waits tries again."""
MOST_ACKED = 1000
"""Turns of which is known that the fleet has them until they are recorded; any other is sent again."""
_LISTED = 64

_Thing = int | tuple[int, str]
"""A turn by its id, or an attachment by its turn and name."""


class FleetSender:
    """The sender of one node; also what a push waits for under `durability = "sync"`.

    `may_send` says whether what was recorded in a repository may go out now.
    """

    def __init__(
        self,
        link: FleetLink,
        store: OutgoingStore,
        outbox: FleetStore,
        mirrors: Mirrors,
        may_send: Callable[[str], bool],
    ) -> None:
        self._link = link
        self._store = store
        self._announcer = Announcer(link, store, outbox, may_send)
        self._layout = mirrors.layout
        self._may_send = may_send
        self._dispatch = Dispatch(link, store, mirrors, may_send)
        self._wake = asyncio.Event()
        self._queue: deque[SessionName] = deque()
        self._busy: dict[SessionName, asyncio.Task[bool]] = {}
        self._locks: dict[SessionName, tuple[asyncio.Lock, int]] = {}
        self._aside = Waits[_Thing](ASIDE)
        self._paused, self._resting = Waits[SessionName](PAUSES), Waits[FleetSender](PAUSES)
        self._rest: asyncio.Task[None] | None = None
        self._acked: dict[int, tuple[TurnRow, int]] = {}
        self._leftovers: set[str] = set()
        self._unsent = Unsent({}, {}, {})
        self._ends = 0
        self._trouble: str | None = None
        link.on_up(self._link_is_up)

    # -- what others ask -------------------------------------------------------------------------------------

    def wake(self) -> None:
        """Has it look now."""
        self._wake.set()

    def booked(self) -> None:
        """A turn was recorded on this node."""
        self.wake()

    def waiting(self) -> dict[str, int]:
        """How many `turns`, `attachments` and `ends` wait and may go out, as of the last look."""
        turns, files = self._unsent.turns, self._unsent.attachments
        return {
            "turns": sum(count for repo, count in turns.items() if self._may_send(repo)),
            "attachments": sum(count for repo, count in files.items() if self._may_send(repo)),
            "ends": self._ends,
        }

    def trouble(self) -> str | None:
        """Why something waits, beside the trouble of the link: what was refused lately, or what was set aside."""
        if self._link.trouble:
            return None
        if self._trouble:
            return self._trouble
        aside = self._aside.reasons()
        return f"{len(aside)} set aside, among them {aside[0]}" if aside else None

    # -- what a push waits for -------------------------------------------------------------------------------

    @property
    def waits(self) -> bool:
        """Whether guests are told of their turns once the fleet has them."""
        return self._link.is_on and self._link.config.durability == SYNC

    async def store(self, turn: Turn) -> str | None:
        """Sends a turn that is applied and not recorded yet; returns why the fleet does not have it, or None.

        Turns of its session that wait go first. What was not stored is not sent again under this id.
        """
        if not self._may_send(turn.repo):
            return None
        timeout, why = self._link.config.sync_timeout, "the fleet could not store it"
        unsent = await asyncio.to_thread(self._store.described, turn)
        try:
            async with asyncio.timeout(timeout):
                await self._store_soon(unsent)
                return None
        except TimeoutError:
            why = f"the fleet did not store it within {format_duration(timeout)}"
        except Exception as error:
            log.error("turn %d of %s cannot be stored by the fleet: %s", turn.id, turn.session, error)
        finally:
            if turn.id not in self._acked and unsent.uid not in (None, *self._dispatch.unclear):
                self._leftovers.add(str(unsent.uid))
        return f"{why}; nothing was recorded, push again"

    async def _store_soon(self, unsent: UnsentTurn) -> None:
        turn = unsent.turn
        while True:
            await self._link.wait_up()
            try:
                async with self._locked(SessionName(turn.repo, turn.session)) as name:
                    while await self._send_turns(name, before=turn.id):
                        pass
                    # The loop stores the place, once the turn is recorded; unless its row came in before.
                    self._acked[turn.id] = await self._dispatch.turn(unsent, gently=False)
                    for oldest in list(self._acked)[:-MOST_ACKED]:
                        del self._acked[oldest]
                    return
            except FleetAway as error:
                log.info("turn %d of %s is not stored yet: %s", turn.id, turn.session, error)
                await asyncio.sleep(AGAIN)

    # -- the loop --------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Sends until cancelled."""
        await asyncio.to_thread(shutil.rmtree, self._layout.outgoing, ignore_errors=True)
        try:
            while True:
                self._wake.clear()
                try:
                    await self._look()
                except (GitmirrorError, OSError) as error:
                    self._note(f"{error}")
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_EVERY):
                        await self._wake.wait()
        finally:
            tasks = [*self._busy.values(), *([self._rest] if self._rest else [])]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _look(self) -> None:
        self._unsent = await asyncio.to_thread(self._store.unsent)
        self._ends = await self._announcer.count()
        await self._forget_ended()
        if not self._link.is_up or self._resting.has(self):
            return
        if len(self._busy) < AT_ONCE:
            await self._start_more()
        if self._rest is None or self._rest.done():
            self._rest = asyncio.create_task(self._send_rest(), name="ends and attachments")

    async def _forget_ended(self) -> None:
        """What was set aside is no trouble any more once its session has ended."""
        aside = {thing: thing if isinstance(thing, int) else thing[0] for thing in self._aside.things()}
        if aside:
            recorded = await asyncio.to_thread(self._store.recorded, set(aside.values()))
            for thing, turn_id in aside.items():
                if turn_id not in recorded:
                    self._aside.end(thing)

    async def _send_rest(self) -> None:
        try:
            if await self._announcer.send(self._dispatch, self._left_alone()):
                self._went_well()
            await self._send_attachments()
            for uid in list(self._leftovers):
                await self._dispatch.shelf.remove(uid)
                self._leftovers.discard(uid)
        except Exception as error:
            self._failed(error)

    async def _start_more(self) -> None:
        repos = [repo for repo in self._unsent.turns if self._may_send(repo)]
        if not self._queue and repos:
            self._queue.extend(await asyncio.to_thread(self._store.sessions, repos, self._left_alone(), _LISTED))
        while self._queue and len(self._busy) < AT_ONCE:
            name = self._queue.popleft()
            if name not in self._busy and not self._paused.has(name):
                task = self._busy[name] = asyncio.create_task(self._send_session(name), name=f"turns of {name.session}")
                task.add_done_callback(lambda _, name=name: self._ended(name))  # type: ignore[misc]

    def _ended(self, name: SessionName) -> None:
        task = self._busy.pop(name)
        if task.cancelled():
            return
        if (error := task.exception()) is not None:
            log.error("the turns of %s cannot be sent: %r", name.session, error, exc_info=error)
            self._paused.add(name, repr(error))
        elif task.result():
            self.wake()

    async def _send_session(self, name: SessionName) -> bool:
        """Sends turns of one session; returns whether any went out, so that there may be more."""
        try:
            async with self._locked(name):
                sent = await self._send_turns(name)
        except Exception as error:
            self._paused.add(name, f"{error or type(error).__name__}")
            self._failed(error)
            return False
        self._paused.end(name)
        return sent

    async def _send_turns(self, name: SessionName, before: int | None = None) -> bool:
        """Sends the turns of a session that wait, up to a number. The caller holds the session's lock."""
        sent = False
        for unsent in await asyncio.to_thread(self._store.turns, name, self._left_alone(), before):
            turn = unsent.turn
            if not self._may_send(name.repo):
                break
            try:
                row, seq = self._acked.get(turn.id) or await self._dispatch.turn(unsent, gently=True)
            except CannotSend as error:
                if self._may_send(name.repo):
                    self._set_aside(turn.id, f"turn {turn.id} of {name.session} in {name.repo}", error)
                continue
            await asyncio.to_thread(self._store.sent, turn, row.uid, row.node, seq, write(row).decode())
            self._acked.pop(turn.id, None)
            self._aside.end(turn.id)
            self._went_well()
            sent = True
        return sent

    async def _send_attachments(self) -> None:
        repos = [repo for repo in self._unsent.attachments if self._may_send(repo)]
        if not repos:
            return
        for unsent in await asyncio.to_thread(self._store.attachments, repos, _LISTED):
            row = unsent.row
            key = row.turn_id, row.name
            if self._aside.has(key):
                continue
            try:
                seq = await self._dispatch.attachment(unsent)
            except CannotSend as error:
                self._set_aside(key, f"attachment {row.name} of turn {row.turn_id} in {row.repo}", error)
                continue
            await asyncio.to_thread(self._store.attachment_sent, row, seq)
            self._aside.end(key)
            self._went_well()

    # -- small things ----------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def _locked(self, name: SessionName) -> AsyncIterator[SessionName]:
        """The lock of one session, which exists while somebody wants it: rows go out in the order of its turns."""
        lock, wanted = self._locks.get(name, (asyncio.Lock(), 0))
        self._locks[name] = lock, wanted + 1
        try:
            async with lock:
                yield name
        finally:
            lock, wanted = self._locks.pop(name)
            if wanted > 1:
                self._locks[name] = lock, wanted - 1

    def _link_is_up(self) -> None:
        """Ends the pauses, which may be due to the fleet having been away."""
        self._paused, self._resting = Waits(PAUSES), Waits(PAUSES)
        self.wake()

    def _left_alone(self) -> list[int]:
        return [thing for thing in self._aside.things() if isinstance(thing, int) and self._aside.has(thing)]

    def _set_aside(self, thing: _Thing, words: str, error: CannotSend) -> None:
        log.error("%s cannot go to the fleet, and is set aside: %s", words, error.message)
        self._aside.add(thing, f"{words}: {error.message}")

    def _failed(self, error: Exception) -> None:
        """Lets the fleet rest, unless it is away: then there is nothing to ask until it is back."""
        if self._link.is_up:
            self._resting.add(self, "")
        self._note(f"{error or type(error).__name__}")

    def _note(self, trouble: str) -> None:
        if trouble != self._trouble:
            log.warning("what was recorded does not reach the fleet: %s", trouble)
        self._trouble = trouble

    def _went_well(self) -> None:
        self._trouble = None
        self._resting.end(self)
