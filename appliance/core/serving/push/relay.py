"""Carries one push: reads its ref commands, has them ruled on, and only then lets anything through.

receive-pack always has a live peer here that reads to the end: a guest that dies otherwise makes it stop between
"ref moved" and "told so". So the guest's side may end at any byte; the child's side is read until it closes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import struct
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from appliance.core.models import PushDecision, PushFault, RefCommand, Repo
from appliance.core.process.children import Child
from appliance.core.serving.net.acceptor import Busy
from appliance.core.serving.net.idle import Activity, end_tasks
from appliance.core.serving.net.reading import Share
from appliance.core.serving.net.streams import IdleTimeout, SocketStream
from appliance.core.serving.wire.pktline import FLUSH, PacketError
from appliance.core.serving.wire.requests import PushRequest, ReportReader, is_refusal, refusal_report

log = logging.getLogger(__name__)

DRAIN_BYTES = 256 * 2**20
"""Bytes of a refused push that are read and thrown away, so that the guest's git gets to read why."""
DRAIN_SECONDS = 60.0
PACK_HEAD = 12
"""Bytes of a pack's head: `PACK`, its version, the number of objects (gitformat-pack)."""


ENDED = "git receive-pack ended before the push began: the operator of this mirror has to look at its log"


class ReceivePackEnded(Exception):
    """The child ended without its list of refs, which the guest waits for; the text is for the guest."""

    def __init__(self) -> None:
        super().__init__(ENDED)


class Guest(Protocol):
    """The guest's side of a push: a socket, or the body of a request and its answer."""

    async def receive(self) -> bytes:
        """What has come; empty at the end. Raises OSError."""
        ...

    async def send(self, data: bytes) -> None:
        """Sends all of it. Raises OSError."""
        ...

    async def end(self) -> None:
        """The answer is whole."""
        ...

    def abort(self) -> None:
        """Cuts the connection: whoever waits for the guest waits no more."""
        ...


class PushAuthority(Protocol):
    """Who rules on pushes; the recording room, wired in by the service."""

    def open(self) -> str:
        """A new push's id."""
        ...

    def environment(self, push: str) -> dict[str, str]:
        """What its hooks are told."""
        ...

    async def rule(
        self,
        push: str,
        repo: Repo,
        client: str,
        commands: Sequence[RefCommand],
        total: int,
        count_objects: Callable[[], Awaitable[int]],
        fault: str | None = None,
    ) -> PushDecision:
        """Decides and logs the attempt."""
        ...

    async def conclude(self, ruling: PushDecision, report: Mapping[str, str | None], size: int) -> None:
        """Logs what became of it."""
        ...


class PushRelay:
    """One push of `client` to `repo`, between the guest and the child's socket. `writing` guards the mirror.

    A `stateless` child says nothing before it has the guest's commands; another begins with its list of refs. `share`
    is charged with those commands while they come in.
    """

    def __init__(
        self,
        desk: PushAuthority,
        writing: Callable[[str], AbstractAsyncContextManager[None]],
        push: str,
        repo: Repo,
        client: str,
        guest: Guest,
        child: Child,
        ours: SocketStream,
        share: Share,
        *,
        stateless: bool = False,
    ) -> None:
        self._desk = desk
        self._writing = writing
        self._push = push
        self._repo = repo
        self._client = client
        self._guest = guest
        self._child = child
        self._ours = ours
        self._share = share
        self._activity = Activity()
        self._stateless = stateless
        self._spoke = asyncio.Event()
        self._advertised = False
        self._child_ended = False
        self._guest_gone = False
        self._sent = 0

    async def run(self, idle: float) -> None:
        """Carries the push to its end.

        Raises IdleTimeout, OSError (the guest is gone), PacketError, and ReceivePackEnded when none answers the guest.
        """
        watch = asyncio.create_task(self._activity.expire(idle))
        work = asyncio.create_task(self._carry())
        try:
            await asyncio.wait({work, watch}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                # The guest's end and the child's end the push; what became of it is then concluded as ever.
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

    async def _carry(self) -> None:
        # The advertisement goes out while the guest's commands come in; the child says no more before it has them.
        advertisement = asyncio.create_task(self._advertise())
        reading = asyncio.create_task(self._read_commands())
        try:
            await asyncio.wait({advertisement, reading}, return_when=asyncio.FIRST_COMPLETED)
            listed = self._stateless or self._advertised
            if self._child_ended and not listed and not reading.done() and not self._guest_gone:
                # The guest says nothing before it has the list, and waits for it as long as it is let.
                raise ReceivePackEnded
            request = await reading
            if not self._stateless:
                await self._spoke.wait()
        except BaseException:
            await end_tasks(advertisement, reading)
            raise
        if request is None or not request.total:
            # Nothing to push, or a guest that only looked: let the child say the rest and go.
            with contextlib.suppress(OSError):
                await self._ours.send(bytes(request.raw) if request else b"")
            await self._ours.end()
            await advertisement
            await self._guest.end()
            return

        async def count_objects() -> int:
            return await self._read_pack_head(request)

        # Nothing can have been written by a child that ended before it had a command: that is a refusal, logged as one.
        fault = request.fault or (ENDED if self._child_ended else None)
        ruling = await self._desk.rule(
            self._push, self._repo, self._client, request.commands, request.total, count_objects, fault
        )
        if ruling.accepted:
            await end_tasks(advertisement)
            async with self._writing(self._repo.name):
                await self._let_through(request, ruling)
        else:
            await self._ours.end()
            await advertisement
            await self._refuse(request, ruling)

    async def _advertise(self) -> None:
        """What the child says before it has any command; it ends when the child is told that none comes."""
        try:
            with contextlib.suppress(OSError):
                while data := await self._receive_from_child():
                    self._activity.touch()
                    if not self._spoke.is_set() and is_refusal(data):
                        log.error("git daemon refuses a push to %s: %r", self._repo.name, data[8:300])
                        self._child_ended = True
                        return
                    self._advertised = data.endswith(FLUSH)
                    self._spoke.set()
                    await self._guest.send(data)
                self._child_ended = True
        finally:
            self._spoke.set()

    async def _receive_from_child(self) -> bytes:
        """What the child says next; empty once it has ended, by a reset too."""
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
            # A socket that always has more never gives the others their turn.
            await asyncio.sleep(0)
            if data:
                request.feed(data)
            elif request.total:
                request.break_off("the push ended before its list of refs was whole")
            else:
                return None
            if len(request.raw) > held:
                await share.grow(len(request.raw) - held)
                held = len(request.raw)
        return request

    async def _read_pack_head(self, request: PushRequest) -> int:
        """How many objects the pack says it holds. Raises PushFault when it does not come so far."""
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
            raise PushFault("what follows the refs is no pack")
        return int(objects)

    async def _let_through(self, request: PushRequest, ruling: PushDecision) -> None:
        reader = ReportReader(request.capabilities)
        upwards = asyncio.create_task(self._send_up(bytes(request.raw) + request.rest))
        try:
            await self._read_answer(reader)
        except PacketError:
            await self._child.end()
            raise
        finally:
            await end_tasks(upwards)
            await self._child.wait()
            await self._desk.conclude(ruling, reader.outcome(ruling.commands), self._sent)
        await self._tell_guest(bytes(reader.held))
        if self._guest_gone:
            raise ConnectionAbortedError("the guest left before it was told the outcome")
        await self._guest.end()

    async def _send_up(self, first: bytes) -> None:
        """The pack, until the guest ends or breaks; either is the end of what the child gets."""
        with contextlib.suppress(OSError):
            await self._ours.send(first)
            self._sent += len(first)
            while data := await self._guest.receive():
                self._sent += len(data)
                self._activity.touch()
                await self._ours.send(data)
        await self._ours.end()

    async def _read_answer(self, reader: ReportReader) -> None:
        while True:
            data = await self._receive_from_child()
            if not data:
                return
            self._activity.touch()
            await self._tell_guest(reader.feed(data))

    async def _tell_guest(self, data: bytes) -> None:
        if data and not self._guest_gone:
            try:
                await self._guest.send(data)
            except OSError:
                self._guest_gone = True

    async def _refuse(self, request: PushRequest, ruling: PushDecision) -> None:
        """Says why while it reads on: git looks at the answer only once it has sent its whole pack."""
        drain = asyncio.create_task(self._drain())
        try:
            await self._guest.send(refusal_report(request, ruling))
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
