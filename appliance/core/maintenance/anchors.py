"""When anchors end. Pure, given what refs there are and when each was first seen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from appliance.core.git.ref_sets import ANCHORS, TIPS

ANCHOR_AGE = 10 * 86400.0
"""Seconds that old values of refs stay fetchable by name of their commit: guests live for hours, snapshots for days."""

MOST_TIPS = 2000
"""Old tips that receive-pack shows. 20,000 visible refs cost a push 0.2 s; this many cost 20 ms."""


def sort_out(present: Iterable[str], first_seen: Mapping[str, float], now: float) -> tuple[dict[str, float], list[str]]:
    """(what stays, with the time it was first seen; what has to go) of the anchor refs that are `present`."""
    times = {ref: first_seen.get(ref, now) for ref in present}
    old = {ref for ref, at in times.items() if now - at > ANCHOR_AGE}
    tips = sorted((ref for ref in times if ref.startswith(TIPS) and ref not in old), key=times.__getitem__)
    too_many = tips[: max(0, len(tips) - MOST_TIPS)]
    gone = sorted(old.union(too_many))
    return {ref: at for ref, at in times.items() if ref not in old and ref not in too_many}, gone


PREFIXES = (ANCHORS, TIPS)
