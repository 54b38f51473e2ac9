"""A histogram of durations with fixed buckets, so that those of several spans of time add up to one of all of them."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable

FIRST = 0.001
"""Seconds up to which a duration falls into the first bucket."""
PER_DOUBLING = 4
"""Buckets between a duration and twice as long a one: a quantile is right to within 9 percent."""
LAST = 100
"""The last bucket, which also has everything beyond: about nine hours."""


class DurationHistogram:
    """Counts durations by bucket. It is small: an entry for each bucket that has any."""

    __slots__ = ("_counts",)

    def __init__(self, durations: Iterable[float] = ()) -> None:
        self._counts = Counter(map(_bucket, durations))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, DurationHistogram) and self._counts == other._counts

    __hash__ = None  # type: ignore[assignment]

    @property
    def total(self) -> int:
        """How many durations it counts."""
        return self._counts.total()

    def add(self, seconds: float) -> None:
        """Counts one more."""
        self._counts[_bucket(seconds)] += 1

    def merge(self, other: DurationHistogram) -> None:
        """Counts all that `other` counts, too."""
        self._counts.update(other._counts)

    def quantile(self, share: float) -> float | None:
        """Returns the seconds within which this `share` of all (0 to 1) lies; None if there are none."""
        rank = math.ceil(share * self.total)
        for bucket in sorted(self._counts):
            rank -= self._counts[bucket]
            if rank <= 0:
                # The middle of the bucket, by ratio.
                return FIRST * 2 ** ((bucket - 0.5) / PER_DOUBLING)
        return None

    def encode(self) -> str:
        """Returns it as text for the database."""
        return json.dumps(self._counts, separators=(",", ":"))

    @classmethod
    def decode(cls, text: str) -> DurationHistogram:
        """Reads what `encode` returned. Raises ValueError."""
        found = cls()
        found._counts.update({int(bucket): int(count) for bucket, count in json.loads(text).items()})
        return found


def _bucket(seconds: float) -> int:
    return 0 if seconds <= FIRST else min(LAST, math.ceil(PER_DOUBLING * math.log2(seconds / FIRST)))
