"""Decides when anchors expire. Pure: takes the anchor refs that exist and when each was first seen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from appliance.core.git.ref_sets import ANCHORS, TIPS

ANCHOR_AGE = 10 * 86400.0
"""Seconds for which old values of refs stay fetchable by object id. Guests live for hours, snapshots for days."""

MOST_TIPS = 2000
"""The most old tips that receive-pack advertises. 20,000 visible refs cost a push 0.2 s; this many cost 20 ms."""


def sort_out(present: Iterable[str], first_seen: Mapping[str, float], now: float) -> tuple[dict[str, float], list[str]]:
    """Splits the anchor refs that are `present` into those that stay, with first-seen times, and those to delete."""
    times = {ref: first_seen.get(ref, now) for ref in present}
    old = {ref for ref, at in times.items() if now - at > ANCHOR_AGE}
    tips = sorted((ref for ref in times if ref.startswith(TIPS) and ref not in old), key=times.__getitem__)
    too_many = tips[: max(0, len(tips) - MOST_TIPS)]
    gone = sorted(old.union(too_many))
    return {ref: at for ref, at in times.items() if ref not in old and ref not in too_many}, gone


PREFIXES = (ANCHORS, TIPS)
