"""Which packs become one, so that a history that grows by a small pack a refresh stays one of few packs."""

from __future__ import annotations

from collections.abc import Sequence

MOST_PACKS = 20
"""git looks at each pack for each object, and from 50 packs on (`gc.autoPackLimit`) it wants to repack them."""


def newest_to_merge(sizes: Sequence[int], most: int = MOST_PACKS) -> int:
    """How many of the newest packs are to become one, so that there are never more than `most`; 0 if there are few.

    `sizes` are their bytes, oldest first. Like `git repack --geometric=2`, it takes packs as long as the next one is
    less than twice as large as all taken together, so an object is copied a number of times that grows with the
    logarithm of what is packed.
    """
    if len(sizes) < most:
        return 0
    taken, total = 1, sizes[-1]
    while taken < len(sizes) and (sizes[-taken - 1] < 2 * total or len(sizes) - taken >= most - 1):
        total += sizes[-taken - 1]
        taken += 1
    return taken
