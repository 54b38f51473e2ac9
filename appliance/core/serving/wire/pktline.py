"""git's pkt-line framing: four hex digits of length, which includes these four bytes, then the payload."""

from __future__ import annotations

from binascii import unhexlify
from collections.abc import Iterator

FLUSH = b"0000"
LARGEST = 65520
"""Bytes of the largest packet, its length included (gitprotocol-common)."""


class PacketError(ValueError):
    """The bytes are not a valid pkt-line."""


def packet(payload: bytes) -> bytes:
    """One packet. The payload may have at most LARGEST - 4 bytes."""
    return b"%04x%s" % (len(payload) + 4, payload)


class PacketSplitter:
    """Splits a stream into packets as it arrives. A flush, delimiter or response-end packet is None.

    A packet of more than `most` bytes raises PacketError, and so does an invalid length.
    """

    def __init__(self, most: int = LARGEST) -> None:
        self._most = most
        self._buffer = b""
        self._at = 0

    @property
    def rest(self) -> bytes:
        """The bytes after the last packet that was returned."""
        return self._buffer[self._at :]

    def append(self, data: bytes) -> None:
        """Adds bytes to `rest` without parsing them."""
        self._buffer, self._at = self.rest + data, 0

    def feed(self, data: bytes) -> Iterator[bytes | None]:
        """The payloads that are now complete. If the caller stops early, the remainder is in `rest`."""
        # Reads by position, because cutting the buffer at each packet blocks the loop for 2 s for 8 MB of 5-byte
        # packets.
        self._buffer, self._at = self.rest + data, 0
        while len(self._buffer) - self._at >= 4:
            start = self._at
            size = packet_length(self._buffer[start : start + 4])
            if size > self._most:
                raise PacketError(f"a packet of {size} bytes; at most {self._most} are accepted")
            if len(self._buffer) - start < size:
                return
            self._at = start + max(size, 4)
            yield self._buffer[start + 4 : start + size] if size >= 4 else None


def packet_length(digits: bytes) -> int:
    """The length in four hex digits; 0, 1 and 2 are the special packets. Raises PacketError."""
    try:
        # int() accepts "+1f_", and git does not.
        high, low = unhexlify(digits)
    except ValueError:
        raise PacketError(f"{digits!r} is no packet length") from None
    size = high << 8 | low
    if size == 3:
        raise PacketError("a packet of length 3")
    return size
