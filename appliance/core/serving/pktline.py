"""git's pkt-line framing: four hex digits of length, which count themselves, then the payload."""

from __future__ import annotations

from collections.abc import Iterator

FLUSH = b"0000"
LARGEST = 65520
"""Bytes of the largest packet, its length included (gitprotocol-common)."""


class PacketError(ValueError):
    """What came is no pkt-line."""


def packet(payload: bytes) -> bytes:
    """One packet. The payload may have LARGEST - 4 bytes at most."""
    return b"%04x%s" % (len(payload) + 4, payload)


class PacketSplitter:
    """Splits a stream into packets as it comes. A flush, delimiter or response-end packet is None.

    `most` bounds one packet; more raises PacketError, as does a length that is no length.
    """

    def __init__(self, most: int = LARGEST) -> None:
        self._most = most
        self.rest = b""

    def feed(self, data: bytes) -> Iterator[bytes | None]:
        """The payloads that are whole now. Stopping early leaves the remainder in `rest`."""
        self.rest += data
        while len(self.rest) >= 4:
            size = packet_length(self.rest[:4])
            if size > self._most:
                raise PacketError(f"a packet of {size} bytes, at most {self._most} are taken")
            if len(self.rest) < size:
                return
            payload = self.rest[4:size] if size >= 4 else None
            self.rest = self.rest[max(size, 4) :]
            yield payload


def packet_length(digits: bytes) -> int:
    """The length that four hex digits say; 0, 1 and 2 are the special packets. Raises PacketError."""
    # int() takes "+1f_", and git does not.
    if len(digits) != 4 or not all(digit in b"0123456789abcdefABCDEF" for digit in digits):
        raise PacketError(f"{digits!r} is no packet length")
    size = int(digits, 16)
    if size == 3:
        raise PacketError("a packet of length 3")
    return size
