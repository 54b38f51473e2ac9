"""Answers protocol v2 for git:// and HTTP, one command at a time; uses the response cache for fetches if possible."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from appliance.core.errors import GitmirrorError
from appliance.core.events.facts import FetchBegan, FetchEnded, Publish, RepoEvent
from appliance.core.git.mirror import Mirror
from appliance.core.git.ref_sets import AGENTS
from appliance.core.models import Caller, Hydration, Repo
from appliance.core.serving.fetch.away import MOST_NAMED, AwaySessions, SessionAway, named_sessions
from appliance.core.serving.fetch.cached_response import CachedResponse, CacheResult
from appliance.core.serving.fetch.negotiation import Negotiation
from appliance.core.serving.fetch.ref_snapshots import RefSnapshot, RefSnapshots, is_understood
from appliance.core.serving.fetch.relayed import Relayed
from appliance.core.serving.fetch.request_memo import RequestMemo
from appliance.core.serving.fetch.response_cache import ENDING, ResponseCache
from appliance.core.serving.fetch.transfers import ABORTED, COMPLETE, Transfers, outcome_of, taken_of
from appliance.core.serving.fetch.upload_pack import Spool, UploadPack
from appliance.core.serving.net.aside import aside
from appliance.core.serving.net.reading import Budget
from appliance.core.serving.net.streams import Sink, SocketStream
from appliance.core.serving.wire.pktline import PacketError, PacketSplitter, packet
from appliance.core.serving.wire.v2 import MANY_LINES, FetchShape, V2Request
from appliance.core.store.database import StoreError

log = logging.getLogger(__name__)

_DONE = packet(b"done\n")


@dataclass(frozen=True, kw_only=True)
class ShapeAsked(RepoEvent):
    """A guest sent a fetch whose response may be cached, so it may be warmed too."""

    shape: FetchShape


class Engine:
    """Answers fetches from the mirrors that `mirror_of` finds."""

    def __init__(
        self,
        cache: ResponseCache,
        snapshots: RefSnapshots,
        upload_pack: UploadPack,
        mirror_of: Callable[[str], Mirror],
        publish: Publish,
        away: AwaySessions,
    ) -> None:
        self._away = away
        self._cache = cache
        self._snapshots = snapshots
        self._upload_pack = upload_pack
        self._mirror_of = mirror_of
        self._publish = publish
        self._advertisements: dict[int, bytes] = {}
        self.transfers = Transfers()
        self.memo = RequestMemo()
        self.budget = Budget()

    async def advertise(self, repo: Repo) -> bytes:
        """The capabilities of protocol v2, exactly as git prints them. Raises UploadPackError."""
        known = self._advertisements.get(repo.id)
        if known is None:
            known = await self._upload_pack.collect(self._mirror_of(repo.name).path, b"", "--advertise-refs", version=2)
            self._advertisements[repo.id] = known
        return known

    async def advertise_v0(self, repo: Repo, version: int, sink: Sink) -> None:
        """Sends refs and capabilities of protocol v0 or v1 over HTTP. Raises UploadPackError, IdleTimeout, OSError."""
        mirror = self._mirror_of(repo.name).path
        await self._upload_pack.stream(mirror, b"", sink, "--advertise-refs", version=version)

    async def answer_v0(
        self, repo: Repo, body: Spool, version: int, sink: Sink, caller: Caller, stream: SocketStream
    ) -> None:
        """Answers one request of protocol v0 or v1 over HTTP. Raises UploadPackError, IdleTimeout, OSError."""
        meter, received = _Meter(sink, stream), bytes(body.head)
        if received.endswith(_DONE) and body.size == len(received):
            caller.on_last()
        with self._relaying(repo, lambda: received, version, meter, caller):
            await self._upload_pack.stream(self._mirror_of(repo.name).path, body, meter, version=version)

    def hand_over(
        self, repo: Repo, relayed: Relayed, version: int, caller: Caller
    ) -> contextlib.AbstractContextManager[None]:
        """Records a fetch of protocol v0 or v1 that git daemon serves in the block."""
        return self._relaying(repo, lambda: bytes(relayed.received), version, relayed, caller)

    @contextlib.contextmanager
    def _relaying(
        self, repo: Repo, received: Callable[[], bytes], version: int, meter: _Meter | Relayed, caller: Caller
    ) -> Iterator[None]:
        transfer = self.transfers.begin(repo, "", f"v{version}", caller, meter.taken)
        transfer.way, outcome = CacheResult.DIRECT, COMPLETE
        try:
            yield
        except BaseException as error:
            outcome = outcome_of(error)
            raise
        finally:
            self.transfers.end(transfer)
            request = _parse_v0(received())
            if request.wants[1]:
                # Without a want, the guest only looked at the refs, which is no fetch.
                self._cache.counts[CacheResult.DIRECT] += outcome != ABORTED
                shape = f"{request.text}, v{version}"
                self._record(repo, request, CacheResult.DIRECT, meter, transfer.since, caller, outcome, shape)

    async def prepare(self, repo: Repo, request: V2Request) -> None:
        """Call before a slot is taken: waits for the sessions that the request names and other nodes took.

        Raises SessionAway, rather than have a guest go on from an older turn; UploadPackError.
        """
        if request.command != "ls-refs" or not self._away.is_on:
            return
        for session in islice(dict.fromkeys(named_sessions(request.arguments)), MOST_NAMED):
            try:
                wanted = await self._away.newest(repo, session)
                if wanted is not None and (await self._snapshots.get(repo)).tip(f"{AGENTS}{session}") != wanted:
                    await self._away.bring_newest(repo, session)
            except StoreError as error:
                # What is here is served; nobody knows whether there is more.
                log.error("%s: whether another node has the session %s is not known: %s", repo.name, session, error)
            except GitmirrorError as error:
                raise SessionAway(error.message) from error

    async def answer(self, repo: Repo, request: V2Request, sink: Sink, caller: Caller, stream: SocketStream) -> None:
        """Answers one command through `sink`, which sends by `stream`.

        Raises AnswerFailed, UploadPackError, IdleTimeout, OSError.
        """
        if request.command == "ls-refs" and is_understood(request):
            snapshot = await self._snapshots.get(repo)
            await _list_refs(snapshot, request.arguments, sink)
        elif request.command == "fetch":
            await self._fetch(repo, request, sink, caller, stream)
        else:
            await self._upload_pack.stream(self._mirror_of(repo.name).path, request.encode(), sink)

    async def open_answer(self, repo: Repo, shape: FetchShape, *, warming: bool = False) -> CachedResponse | None:
        """The response to a fetch that may be cached: found there, or begun now. None if the cache cannot write it.

        Raises UploadPackError.
        """
        tags = (await self._snapshots.get(repo)).tags if shape.include_tag else ""
        mirror = self._mirror_of(repo.name).path

        async def produce(output: int, on_begun: Callable[[], None]) -> None:
            large = len(shape.wants) > MANY_LINES
            request = await aside(_encode, shape) if large else _encode(shape)
            await self._upload_pack.write(mirror, request, output, on_begun, slowly=warming)

        key = shape.key(repo.id, tags)
        await self._cache.check(key)
        return self._cache.get(key, repo.id, produce, pinned=warming)

    async def _fetch(self, repo: Repo, request: V2Request, sink: Sink, caller: Caller, stream: SocketStream) -> None:
        start = time.monotonic() - caller.waited
        meter = _Meter(sink, stream)
        large = len(request.arguments) > MANY_LINES
        if large:
            await aside(request.prepare)
        shape = request.shape
        result, outcome = CacheResult.DIRECT, COMPLETE
        want, text = request.wants[0], request.text
        self._publish(
            FetchBegan(
                repo=repo,
                want=want,
                shape=text,
                client=caller.client,
                protocol=caller.protocol,
                guest=caller.guest_name,
            )
        )
        transfer = self.transfers.begin(repo, want, text, caller, meter.taken)
        try:
            if shape is not None:
                self._publish(ShapeAsked(repo=repo, shape=shape))
            response = await self.open_answer(repo, shape) if shape is not None else None
            if response is None:
                transfer.way = result
                self._cache.counts[result] += 1
                encoded = await aside(request.encode) if large else request.encode()
                with _watching(stream, meter):
                    await self._direct(repo, encoded, meter, request.is_done, caller.on_last)
            else:
                transfer.way = result = response.way
                transfer.size = response.whole_size
                caller.on_last()
                try:
                    # One that is there needs no watch, because all of it is being sent.
                    is_there = response.size is not None
                    with contextlib.nullcontext() if is_there else _watching(stream, meter):
                        await send_answer(response, meter)
                finally:
                    response.close()
        except BaseException as error:
            outcome = outcome_of(error)
            if outcome == ABORTED and transfer.way is not None:
                self._cache.counts[result] -= 1
            raise
        finally:
            self.transfers.end(transfer)
            self._record(repo, request, result, meter, start, caller, outcome)

    async def _direct(self, repo: Repo, encoded: bytes, sink: Sink, done: bool, on_last: Callable[[], None]) -> None:
        mirror = self._mirror_of(repo.name).path
        if done:
            on_last()
            await self._upload_pack.stream(mirror, encoded, sink)
            return
        negotiation = Negotiation(sink, on_last)
        await self._upload_pack.stream(mirror, encoded, negotiation)
        await negotiation.finish()

    def _record(
        self,
        repo: Repo,
        request: V2Request,
        result: CacheResult,
        meter: _Meter | Relayed,
        start: float,
        caller: Caller,
        outcome: str,
        shape: str | None = None,
    ) -> None:
        (want, wants), now = request.wants, time.monotonic()
        fetch = Hydration(
            repo=repo.name,
            want=want,
            wants=wants,
            shape=shape or request.text,
            way=result,
            bytes=meter.sent if outcome == COMPLETE else max(meter.sent, meter.taken()),
            first_byte=(meter.first or now) - start,
            seconds=now - start,
            client=caller.client,
            protocol=caller.protocol,
            guest=caller.guest_name,
            outcome=outcome,
        )
        self._publish(FetchEnded(repo=repo, fetch=fetch))


class _Meter:
    """Counts the bytes sent to a guest, and notes when the first of them went out.

    `taken` counts those of `stream` that the guest has taken, also in the middle of a file.
    """

    def __init__(self, sink: Sink, stream: SocketStream) -> None:
        self._sink = sink
        self.taken = taken_of(stream, stream.sent)
        self.sent = 0
        self.first: float | None = None
        self._last: bytes | tuple[int, int] = b""
        """What was sent last: bytes, or the descriptor of a file and where the piece ended."""

    async def send(self, data: bytes) -> None:
        self.first = self.first or time.monotonic()
        await self._sink.send(data)
        self.sent += len(data)
        self._last = data

    async def send_file(self, file: int, offset: int, count: int) -> None:
        self.first = self.first or time.monotonic()
        await self._sink.send_file(file, offset, count)
        self.sent += count
        self._last = (file, offset + count)

    def has_ended(self) -> bool:
        """Whether what was sent ends as an answer does. A file must still be open."""
        if isinstance(self._last, bytes):
            return self._last.endswith(ENDING)
        file, end = self._last
        return os.pread(file, len(ENDING), end - len(ENDING)) == ENDING


@contextlib.contextmanager
def _watching(stream: SocketStream, meter: _Meter) -> Iterator[None]:
    """Raises ConnectionResetError in the block once the guest has hung up, unless it has got all of its answer.

    git hangs up as soon as it has the pack, which may be before upload-pack has ended.
    """
    try:
        with stream.noticing_hang_up():
            yield
    except ConnectionResetError:
        if not meter.has_ended():
            raise


async def send_answer(response: CachedResponse, sink: Sink) -> None:
    """Sends a response to its end, while it grows. If it fails, sends what there is, then raises AnswerFailed."""
    offset = 0
    while (size := await response.ready_beyond(offset)) > offset:
        await sink.send_file(response.file(), offset, size - offset)
        offset = size


def _encode(shape: FetchShape) -> bytes:
    return shape.request().encode()


async def _list_refs(snapshot: RefSnapshot, arguments: Sequence[bytes], sink: Sink) -> None:
    pieces, light = snapshot.ls_refs(arguments), snapshot.is_light(arguments)
    while piece := next(pieces, b"") if light else await aside(next, pieces, b""):
        await sink.send(piece)


def _parse_v0(received: bytes) -> V2Request:
    """The request of a v0 or v1 guest as lines of v2, as far as `received` holds it."""
    lines = []
    with contextlib.suppress(PacketError):
        for payload in PacketSplitter().feed(received):
            # Cuts off the capabilities, which follow the first want on its line.
            lines.append(b" ".join((payload or b"").removesuffix(b"\n").split(b" ")[:2]))
    return V2Request("fetch", (), tuple(lines))
