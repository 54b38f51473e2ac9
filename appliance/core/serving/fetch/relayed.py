"""The record of a fetch whose bytes git answers itself: protocol v0 and v1."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

KEPT_WORDS = 65536
"""Bytes of what a guest says that are kept for the record."""


@dataclass
class Relayed:
    """What went over a relayed fetch: the guest's first words, bytes sent to it, when (monotonic) its answer came."""

    said: bytearray = field(default_factory=bytearray)
    sent: int = 0
    first: float | None = None

    def up(self, data: bytes) -> None:
        """The guest said this."""
        self.said += data[: max(0, KEPT_WORDS - len(self.said))]

    def down(self, data: bytes) -> None:
        """The guest was sent this. What it gets before it has said anything is the list of refs."""
        self.sent += len(data)
        if self.said:
            self.first = self.first or time.monotonic()
