"""The answer to a round of negotiation (gitprotocol-v2): acknowledgments alone, or the pack as well."""

from __future__ import annotations

from collections.abc import Callable

from appliance.core.serving.net.streams import Sink
from appliance.core.serving.wire.pktline import PacketError, PacketSplitter

_READY = (b"ready", b"ready\n")
_ACKNOWLEDGMENTS = (b"acknowledgments", b"acknowledgments\n")


class Negotiation:
    """Passes an answer on to `sink`, and calls `on_last` before its first byte if the pack is in it.

    Holds the acknowledgments back until the line that decides it. The guest reads a whole answer before it goes on, so
    it does not wait for them.
    """

    def __init__(self, sink: Sink, on_last: Callable[[], None]) -> None:
        self._sink = sink
        self._on_last = on_last
        self._splitter = PacketSplitter()
        self._held = bytearray()
        self._is_decided = False
        self._first = True

    async def send(self, data: bytes) -> None:
        """Sends a piece of the answer."""
        if self._is_decided:
            await self._sink.send(data)
            return
        self._held += data
        self._look(data)
        if self._is_decided:
            await self.finish()

    async def send_file(self, file: int, offset: int, count: int) -> None:
        """Sends a piece of the answer from an open file."""
        await self.finish()
        await self._sink.send_file(file, offset, count)

    async def finish(self) -> None:
        """Sends what is held back."""
        self._is_decided = True
        held, self._held = bytes(self._held), bytearray()
        if held:
            await self._sink.send(held)

    def _look(self, data: bytes) -> None:
        try:
            for payload in self._splitter.feed(data):
                if payload is None or payload in _READY or (self._first and payload not in _ACKNOWLEDGMENTS):
                    self._is_decided = True
                    if payload is not None:
                        self._on_last()
                    return
                self._first = False
        except PacketError:
            self._is_decided = True
