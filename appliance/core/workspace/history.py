"""How much of a branch's history a ready workspace has, and which shape is the right one for a repository."""

from __future__ import annotations

from enum import StrEnum

WHOLE_BELOW = 100 * 2**20
"""Bytes of all history, packed, below which a workspace has every object of it."""
_SLACK = 1.1
"""How far above its limit a repository keeps its shape, so that a repack of the mirror does not change the shape back
and forth."""


class History(StrEnum):
    """The shapes of a workspace.

    `FULL` has everything that the branch and the tags on it reach. `TREES` has every commit, tree and tag of that, and
    the blobs of the tip, as a partial clone (gitformat-pack, "Partial clone"). `TIP` has the tip alone, at depth 1.
    """

    FULL = "full"
    TREES = "trees"
    TIP = "tip"


def choose(size: int, below: int, before: History | None = None) -> History:
    """The shape that `auto` means for a history of `size` bytes, packed.

    `below` is the size from which on only the tip is sent. `before` is what it meant last time.
    """
    whole, trees = float(min(WHOLE_BELOW, below)), float(below)
    if before is History.FULL:
        whole *= _SLACK
    if before in (History.FULL, History.TREES):
        trees *= _SLACK
    if size < whole:
        return History.FULL
    return History.TREES if size < trees else History.TIP
