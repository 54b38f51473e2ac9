"""How much disk space a state directory takes, by purpose and by repository."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from appliance.core.maintenance.usage import DATABASE, KINDS, MIRRORS, RECORDINGS, Usage
from appliance.core.process.disk import room_of
from appliance.core.units import rfc3339

MOST_REPOS = 10
"""The most repositories that `status` names."""
MOST_NEXT = 10
"""The most entries that `status` has of what goes next."""


def storage_document(
    usage: Usage,
    packs: Mapping[str, int],
    state: Path,
    budget: int | None,
    *,
    most_repos: int = MOST_REPOS,
    following: Sequence[Mapping[str, Any]] = (),
    removed: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """`storage` of `status --json`, in bytes.

    `packs` are the bytes of recorded packs by repository, which `usage` has among the mirrors. The evidence of heals
    counts as mirrors. Without a `[storage] budget`, `budget` is the size that the state directory can grow to: what it
    takes now plus what is free on its disk. `following` is what goes next.
    """
    repos = sorted({repo for sizes in usage.by.values() for repo in sizes if repo})
    rows = [{"name": repo, **_row(usage, packs, repo)} for repo in repos]
    rows.sort(key=lambda row: (-row["bytes"], row["name"]))
    recorded = min(sum(packs.values()), usage.of(MIRRORS))
    by = {kind: usage.of(kind) for kind in KINDS}
    by[MIRRORS] -= recorded
    by[RECORDINGS] += recorded
    used, room = sum(by.values()), room_of(state)
    most = budget if budget is not None else used + (room.bytes if room else 0)
    return {
        "used": used,
        "budget": most,
        "has_budget": budget is not None,
        "over": max(0, used - most),
        "measured_at": rfc3339(usage.at) if usage.at else None,
        "by": by,
        "repos": rows[:most_repos],
        "next": list(following),
        "removed": {"bytes": 0, "count": 0, **(removed or {})},
    }


def _row(usage: Usage, packs: Mapping[str, int], repo: str) -> dict[str, Any]:
    by = {kind: usage.by.get(kind, {}).get(repo, 0) for kind in KINDS if kind != DATABASE}
    recorded = min(packs.get(repo, 0), by[MIRRORS])
    by[MIRRORS] -= recorded
    by[RECORDINGS] += recorded
    return {"bytes": sum(by.values()), "by": by}
