"""The record of a fetch whose bytes git answers itself: protocol v0 and v1."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

RECORDED_BYTES = 65536
"""Bytes of a guest's request that are kept for the record."""


@dataclass
class Relayed:
    """The traffic of a relayed fetch.

    `received` is the first bytes that the guest sent, `sent` how many bytes it was sent, and `first` the monotonic time
    at which its response began.
    """

    received: bytearray = field(default_factory=bytearray)
    sent: int = 0
    first: float | None = None

    def up(self, data: bytes) -> None:
        """Records bytes from the guest."""
        self.received += data[: max(0, RECORDED_BYTES - len(self.received))]

    def taken(self) -> int:
        """The bytes that the guest was sent so far."""
        return self.sent

    def down(self, data: bytes) -> None:
        """Records bytes to the guest. Those before its first request are the list of refs, not the response."""
        self.sent += len(data)
        if self.received:
            self.first = self.first or time.monotonic()
