"""Relays one push: reads its ref commands, asks the PushAuthority, and only then lets anything through.

receive-pack always has a live peer here that reads to the end. If it were connected to a guest that dies, it could stop
after it moved a ref and before it reported that. So the guest's side may end at any byte, but the child's side is read
until it closes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import struct
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path

from appliance.core.models import NOTHING_WITHDRAWN, Caller, Confirmation, PushDecision, PushFault, Repo
from appliance.core.process.children import Child
from appliance.core.serving.net.acceptor import Busy
from appliance.core.serving.net.idle import Activity, end_tasks
from appliance.core.serving.net.reading import Share
from appliance.core.serving.net.streams import IdleTimeout, SocketStream
from appliance.core.serving.push.parties import PushAuthority, Sender
from appliance.core.serving.push.whereabouts import ENDED, why_not_there
from appliance.core.serving.wire.pktline import FLUSH, PacketError
from appliance.core.serving.wire.requests import PushRequest, ReportReader, is_refusal, refusal_report

log = logging.getLogger(__name__)

DRAIN_BYTES = 256 * 2**20
"""Bytes of a refused push that are read and discarded, so that the guest's git reads the reason."""
DRAIN_SECONDS = 60.0
PACK_HEAD = 12
"""Bytes of a pack's header: `PACK`, its version, the number of objects (gitformat-pack)."""


INTERRUPTED = "this mirror was stopped before its fleet had stored it; nothing was recorded, push again"


class ReceivePackEnded(Exception):
    """The child ended without its list of refs, which the guest waits for. The text is sent to the guest."""

    def __init__(self) -> None:
        super().__init__(ENDED)


class PushRelay:
    """One push of `caller` to `repo`, between the guest and the child's socket. `writing` locks the repo's `mirror`.

    A `stateless` child sends nothing before it has the guest's commands; others begin with their list of refs. `share`
    is charged for those commands while they arrive. `give_back` releases the guest's slot early.
    """

    def __init__(
        self,
        authority: PushAuthority,
        writing: Callable[[str], AbstractAsyncContextManager[None]],
        push: str,
        repo: Repo,
        mirror: Path,
        caller: Caller,
        guest: Sender,
        child: Child,
        ours: SocketStream,
        share: Share,
        *,
        stateless: bool = False,
        give_back: Callable[[], None] = lambda: None,
    ) -> None:
        self._authority = authority
        self._writing = writing
        self._push = push
        self._repo = repo
        self._mirror = mirror
        self._caller = caller
        self._guest = guest
        self._child = child
        self._ours = ours
        self._share = share
        self._activity = Activity()
        self._stateless = stateless
        self._give_back = give_back
        self._child_sent = asyncio.Event()
        self._advertised = False
        self._child_ended = False
        self._guest_gone = False
        self._sent = 0

    async def run(self, idle: float) -> None:
        """Relays the push to its end.

        Raises IdleTimeout, PacketError, OSError if the guest disconnected, and ReceivePackEnded if the child ended
        without sending the guest anything.
        """
        watch = asyncio.create_task(self._activity.expire(idle))
        work = asyncio.create_task(self._relay())
        try:
            await asyncio.wait({work, watch}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                # With both sides ended, the push ends, and its outcome is then logged as usual.
                self._guest_gone = True
                self._guest.abort()
                await self._child.end()
                await work
                raise IdleTimeout
            await work
        except asyncio.CancelledError:
            self._guest_gone = True
            self._guest.abort()
            await asyncio.shield(self._child.end())
            with contextlib.suppress(TimeoutError, OSError, PacketError):
                await asyncio.wait_for(work, 10)
            raise
        finally:
            await end_tasks(work, watch)

    async def _relay(self) -> None:
        # The advertisement goes out while the guest's commands come in. The child sends no more before it has them.
        advertisement = asyncio.create_task(self._advertise())
        reading = asyncio.create_task(self._read_commands())
        try:
            await asyncio.wait({advertisement, reading}, return_when=asyncio.FIRST_COMPLETED)
            listed = self._stateless or self._advertised
            if self._child_ended and not listed and not reading.done() and not self._guest_gone:
                # The guest sends nothing before it has the list of refs, and would wait for it until the timeout.
                raise ReceivePackEnded
            request = await reading
            if not self._stateless:
                await self._child_sent.wait()
        except BaseException:
            await end_tasks(advertisement, reading)
            raise
        if request is None or not request.total:
            # The guest has nothing to push, or disconnected after the advertisement: let the child finish.
            with contextlib.suppress(OSError):
                await self._ours.send(bytes(request.raw) if request else b"")
            await self._ours.end()
            await advertisement
            await self._guest.end()
            return

        async def count_objects() -> int:
            return await self._read_pack_head(request)

        # A child that ended before it had a command cannot have written anything, so the push is logged as refused.
        fault = request.fault or (ENDED if self._child_ended else None)
        decision = await self._authority.rule(
            self._push, self._repo, self._caller, request.commands, request.total, count_objects, fault,
            request.options,
        )  # fmt: skip
        if decision.accepted:
            await end_tasks(advertisement)
            await self._let_through(request, decision)
        else:
            await self._ours.end()
            await advertisement
            await self._refuse(request, decision)

    async def _advertise(self) -> None:
        """Sends the guest the child's output before any command, until the child ends or this is cancelled."""
        try:
            with contextlib.suppress(OSError):
                while data := await self._receive_from_child():
                    self._activity.touch()
                    if not self._child_sent.is_set() and is_refusal(data):
                        log.error("git daemon refused a push to %s: %r", self._repo.name, data[8:300])
                        self._child_ended = True
                        return
                    self._advertised = data.endswith(FLUSH)
                    self._child_sent.set()
                    await self._guest.send(data)
                self._child_ended = True
        finally:
            self._child_sent.set()

    async def _receive_from_child(self) -> bytes:
        """The next output of the child; empty once it has ended, even by a reset."""
        try:
            return await self._ours.receive()
        except ConnectionError:
            return b""

    async def _read_commands(self) -> PushRequest | None:
        request = PushRequest()
        try:
            # Nothing after them is charged: a push that is ruled on must not be ended before its outcome is known.
            with self._share as share:
                return await self._read_into(request, share)
        except Busy as error:
            request.break_off(str(error))
        return request

    async def _read_into(self, request: PushRequest, share: Share) -> PushRequest | None:
        held = 0
        while not request.done:
            try:
                data = await self._guest.receive()
            except ConnectionError:
                data = b""
            self._activity.touch()
            # A socket that always has more would otherwise keep other tasks from running.
            await asyncio.sleep(0)
            if data:
                request.feed(data)
            elif request.total:
                request.break_off("the push ended before its list of refs was complete")
            else:
                return None
            if request.held > held:
                await share.grow(request.held - held)
                held = request.held
        return request

    async def _read_pack_head(self, request: PushRequest) -> int:
        """The number of objects in the pack's header. Raises PushFault if there is no valid header."""
        while len(request.rest) < PACK_HEAD:
            try:
                data = await self._guest.receive()
            except ConnectionError:
                data = b""
            self._activity.touch()
            if not data:
                raise PushFault("the push ended before its pack began")
            request.more(data)
        magic, version, objects = struct.unpack(">4sLL", request.rest[:PACK_HEAD])
        if magic != b"PACK" or version not in (2, 3):
            raise PushFault("the data after the ref commands is not a pack")
        return int(objects)

    async def _let_through(self, request: PushRequest, decision: PushDecision) -> None:
        reader, waits, confirmation = ReportReader(request.capabilities), self._authority.waits, NOTHING_WITHDRAWN
        astray: PushDecision | None = None
        try:
            async with self._writing(self._repo.name):
                astray = self._refuse_if_astray(decision)
                if astray is not None:
                    await self._child.end()
                    await self._authority.conclude(decision, astray.refusals, self._sent)
                else:
                    try:
                        await self._relay_report(request, reader)
                    finally:
                        if not waits:
                            await self._authority.conclude(decision, reader.outcome(decision.commands), self._sent)
        finally:
            if waits and astray is None:
                confirmation = await self._confirm(decision, reader.outcome(decision.commands))
        if astray is not None:
            await self._refuse(request, astray)
            return
        await self._send_to_guest(reader.answer(confirmation.refused))
        if self._guest_gone:
            raise ConnectionAbortedError("the guest disconnected before it received the outcome")
        await self._guest.end()

    def _refuse_if_astray(self, decision: PushDecision) -> PushDecision | None:
        """The decision on a push whose child works in a mirror that is not served any more; None if it may go on."""
        reason = why_not_there(self._child, self._mirror, may_enter=self._stateless)
        if reason is None:
            return None
        log.warning("push to %s by %s refused: %s", self._repo.name, self._caller.client, reason)
        return replace(decision, refusals={command.ref: reason for command in decision.commands})

    async def _confirm(self, decision: PushDecision, report: Mapping[str, str | None]) -> Confirmation:
        """Waits for the confirmation while it holds nothing that others need, then concludes."""
        confirming = asyncio.create_task(self._authority.confirm(decision, report, self._sent))
        self._give_back()
        try:
            while not (await asyncio.wait({confirming}, timeout=1))[0]:
                self._activity.touch()
        finally:
            if not confirming.done():
                # The guest will not be told, so the turn is withdrawn like one that was not stored.
                await end_tasks(confirming)
            confirmation = Confirmation({ref: INTERRUPTED for ref, reason in report.items() if reason is None})
            if not confirming.cancelled():
                confirmation = confirming.result()
            async with self._writing(self._repo.name):
                await self._authority.conclude(decision, report, self._sent, confirmation)
        return confirmation

    async def _relay_report(self, request: PushRequest, reader: ReportReader) -> None:
        """Relays until the child has ended."""
        upwards = asyncio.create_task(self._send_up(bytes(request.raw) + request.rest))
        try:
            await self._read_report(reader)
        except PacketError:
            await self._child.end()
            raise
        finally:
            await end_tasks(upwards)
            await self._child.wait()

    async def _send_up(self, first: bytes) -> None:
        """Sends the child the commands and the pack, until the guest's side ends or fails."""
        with contextlib.suppress(OSError):
            await self._ours.send(first)
            self._sent += len(first)
            while data := await self._guest.receive():
                self._sent += len(data)
                self._activity.touch()
                await self._ours.send(data)
        await self._ours.end()

    async def _read_report(self, reader: ReportReader) -> None:
        while True:
            data = await self._receive_from_child()
            if not data:
                return
            self._activity.touch()
            await self._send_to_guest(reader.feed(data))

    async def _send_to_guest(self, data: bytes) -> None:
        if data and not self._guest_gone:
            try:
                await self._guest.send(data)
            except OSError:
                self._guest_gone = True

    async def _refuse(self, request: PushRequest, decision: PushDecision) -> None:
        """Sends the reason while it reads on, because git reads the response only after it has sent its whole pack."""
        if self._stateless:
            # An HTTP client that has its response stops sending: git's helper then takes the rest for its own output.
            await self._drain()
        drain = asyncio.create_task(self._drain())
        try:
            await self._guest.send(refusal_report(request, decision))
            await self._guest.end()
            await drain
        finally:
            await end_tasks(drain)

    async def _drain(self) -> None:
        drained = 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_SECONDS):
                while drained < DRAIN_BYTES and (data := await self._guest.receive()):
                    self._activity.touch()
                    drained += len(data)
                    await asyncio.sleep(0)
