"""What git says of a fetch while it runs: its lines of progress, read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from appliance.core.units import format_size

_LINE = re.compile(
    r"(?:remote: )?(Enumerating|Counting|Compressing|Receiving|Resolving|Unpacking) (objects|deltas): +"
    r"(?:([0-9]{1,3})% \(([0-9]{1,15})/([0-9]{1,15})\)|([0-9]{1,15}))"
    r"(?:, ([0-9.]{1,12}) (bytes|KiB|MiB|GiB))?(?: \| ([0-9.]{1,12}) (bytes|KiB|MiB|GiB)/s)?"
)
"""An upstream may send any text as progress, so only what git itself prints is read."""
_UNITS = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


@dataclass(frozen=True)
class FetchProgress:
    """How far a fetch is. `phase` is in words, `speed` is bytes a second; what git has not said is None.

    The numbers of objects are those of the phase: so many of `total` were counted, received or resolved. `bytes` are
    those received so far.
    """

    phase: str = "waiting for the upstream"
    percent: int | None = None
    objects: int | None = None
    total: int | None = None
    bytes: int | None = None
    speed: float | None = None

    def after(self, line: str) -> FetchProgress:
        """The progress after git has printed a line; the same if the line says nothing of it."""
        found = _LINE.match(line)
        if found is None:
            return self
        verb, noun, percent, done, total, counted, amount, unit, rate, rate_unit = found.groups()
        return FetchProgress(
            f"{verb.lower()} {noun}",
            None if percent is None else min(100, int(percent)),
            int(done or counted),
            None if total is None else int(total),
            self.bytes if amount is None else _bytes(amount, unit),
            None if rate is None else _bytes(rate, rate_unit),
        )

    def words(self) -> str:
        """All of it: `receiving objects: 45% (450 of 1,000), 1.2 GiB, 12.0 MiB/s`."""
        if self.percent is not None:
            counted = f": {self.percent}% ({self.objects:,} of {self.total:,})"
        else:
            counted = f": {self.objects:,}" if self.objects is not None else ""
        received = [format_size(self.bytes)] if self.bytes is not None else []
        speed = [f"{format_size(round(self.speed))}/s"] if self.speed is not None else []
        return ", ".join([f"{self.phase}{counted}", *received, *speed])

    def document(self) -> dict[str, Any]:
        """As the pulse has it."""
        return dict(vars(self))

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> FetchProgress:
        """From a document."""
        return cls(*(document[name] for name in cls.__dataclass_fields__))


def _bytes(amount: str, unit: str) -> int:
    try:
        return round(float(amount) * _UNITS[unit])
    except ValueError:
        return 0
