"""Reads requests of protocol v2 strictly, within bounds, and without blocking the event loop (gitprotocol-v2)."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable

from appliance.core.serving.fetch.ref_snapshots import TOO_MANY_PREFIXES
from appliance.core.serving.fetch.request_memo import RequestMemo
from appliance.core.serving.net.reading import Share
from appliance.core.serving.wire.pktline import FLUSH, LARGEST, PacketError, packet_length
from appliance.core.serving.wire.v2 import V2Request

MOST_REQUEST_BYTES = 32 * 2**20
TURN = 2**18
"""Bytes of one request that are read before other tasks run, if they arrive without a wait."""
SLICE = 2000
"""Lines of one request that are parsed before other tasks run."""
MOST_LINES = 600_000
"""Lines of one request. A checkout of linux asks for 78,635 blobs in one request, in lines of 50 bytes each."""
LINE_COST = 160
"""Bytes of memory that a line needs in addition to its own bytes: once parsed, and again in the shape of the fetch."""

_LEFT = "the guest disconnected in the middle of a request"


class V2Reader:
    """Reads requests from a stream, one after the other. Looks up large ones in `memo`."""

    def __init__(self, memo: RequestMemo | None = None) -> None:
        self._buffer = bytearray()
        self._memo = memo

    @property
    def has_more(self) -> bool:
        """Whether the first bytes of the next request arrived together with the last one."""
        return bool(self._buffer)

    async def read(self, receive: Callable[[], Awaitable[bytes]], share: Share) -> V2Request | None:
        """The next request, charged to `share`; None if the guest has ended its side.

        Raises PacketError if it is malformed or too large, and Busy if there is no memory for it.
        """
        arguments: list[bytes] = []
        raw = bytearray()
        try:
            return await self._read(receive, share, arguments, raw)
        except BaseException:
            # Its traceback can keep the frames of the request until the next garbage collection, which is not charged.
            arguments.clear()
            raw.clear()
            self._buffer.clear()
            raise

    async def _read(
        self, receive: Callable[[], Awaitable[bytes]], share: Share, arguments: list[bytes], raw: bytearray
    ) -> V2Request | None:
        command = ""
        capabilities: list[bytes] = []
        section, lines, prefixes, received = 0, 0, 0, 0
        # A request that arrived together with the previous one is parsed without the memo, because the memo looks up
        # the whole buffer, which may also hold the requests that follow.
        memo = None if self._buffer else self._memo
        while True:
            if memo is not None and not lines and memo.is_worth(self._buffer):
                if not self._buffer.endswith(FLUSH):
                    # The rest is on its way, because a guest sends a whole request and then waits for the response.
                    packet_length(bytes(self._buffer[:4]))
                    received += await self._more(receive, share, received)
                    continue
                if (known := memo.find(self._buffer)) is not None:
                    self._buffer.clear()
                    share.adopt(known.charge)
                    return known.request
                raw += self._buffer
            packets = self._packets()
            await share.grow(LINE_COST * len(packets))
            for kind, payload in packets:
                lines += 1
                if lines > MOST_LINES:
                    raise PacketError("too many lines in one request")
                if kind == "flush":
                    if not command and not capabilities:
                        return None
                    request = V2Request(_command(command), tuple(capabilities), tuple(arguments))
                    if raw and memo is not None and not self._buffer:
                        memo.remember(raw, request, share.charge)
                    return request
                if kind == "delimiter":
                    if section:
                        raise PacketError("a second delimiter in one request")
                    section = 1
                elif kind == "end":
                    raise PacketError("a response-end packet in a request")
                elif section:
                    prefixes += payload.startswith(b"ref-prefix ")
                    if prefixes <= TOO_MANY_PREFIXES or not payload.startswith(b"ref-prefix "):
                        arguments.append(payload)
                elif payload.startswith(b"command="):
                    if command:
                        raise PacketError("two commands in one request")
                    command = payload[8:].decode("ascii", "replace")
                else:
                    capabilities.append(payload)
            is_full = len(packets) >= SLICE
            packets.clear()
            if is_full:
                await asyncio.sleep(0)
                continue
            more = await self._more(receive, share, received)
            if not more:
                if lines:
                    raise PacketError(_LEFT)
                return None
            received += more
            # More bytes of this request arrived, so `raw` is not all of it and cannot be its key.
            raw.clear()

    async def _more(self, receive: Callable[[], Awaitable[bytes]], share: Share, received: int) -> int:
        """Receives bytes; returns their number, 0 if the stream ends between requests. Raises PacketError, Busy."""
        data = await receive()
        if received // TURN != (received + len(data)) // TURN:
            # A guest that always has more to send would otherwise keep other tasks from running.
            await asyncio.sleep(0)
        if not data and self._buffer:
            raise PacketError(_LEFT)
        if received + len(data) > MOST_REQUEST_BYTES:
            raise PacketError("the request is too large")
        self._buffer += data
        await share.grow(len(data))
        return len(data)

    def _packets(self) -> list[tuple[str, bytes]]:
        """Takes complete packets out of the buffer: at most SLICE, and none after a flush, which ends a request."""
        packets: list[tuple[str, bytes]] = []
        at, arrived = 0, len(self._buffer)
        # A slice of a view copies nothing. Copies would leave holes of up to 64 KiB between what is kept.
        with memoryview(self._buffer) as view:
            while arrived - at >= 4 and len(packets) < SLICE:
                size = packet_length(bytes(view[at : at + 4]))
                if size < 4:
                    kind = ("flush", "delimiter", "end")[size]
                    packets.append((kind, b""))
                    at += 4
                    if kind == "flush":
                        break
                    continue
                if size > LARGEST:
                    raise PacketError(f"a packet of {size} bytes; at most {LARGEST} are accepted")
                if arrived - at < size:
                    break
                packets.append(("line", bytes(view[at + 4 : at + size]).removesuffix(b"\n")))
                at += size
        del self._buffer[:at]
        return packets


def _command(name: str) -> str:
    if not name:
        raise PacketError("the request has no command")
    if not re.fullmatch(r"[a-z-]+", name):
        raise PacketError("the command has invalid characters")
    return name
