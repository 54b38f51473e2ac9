"""Mends one mirror."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from appliance.core.errors import GitmirrorError
from appliance.core.git.command import GitError
from appliance.core.git.mirror import Mirror
from appliance.core.git.mirrors import Mirrors
from appliance.core.integrity.inspection import Inspection, inspect
from appliance.core.integrity.recorded_refs import recorded_refs
from appliance.core.layout import Layout
from appliance.core.models import Repo
from appliance.core.store.stores import Stores


@dataclass(frozen=True)
class Healing:
    """What healing one mirror did."""

    whole: bool
    done: tuple[str, ...] = ()
    lost: Mapping[str, str] = field(default_factory=dict)
    evidence: Path | None = None
    remaining: str | None = None


class Healer:
    """Mends mirrors. `fetch` brings a mirror to its upstream's state."""

    def __init__(
        self,
        mirrors: Mirrors,
        layout: Layout,
        stores: Stores,
        fetch: Callable[[Mirror, Repo], Awaitable[None]],
        backup: Callable[[], Path | None] = lambda: None,
    ) -> None:
        self._backup = backup
        self._mirrors = mirrors
        self._layout = layout
        self._stores = stores
        self._fetch = fetch

    async def heal(self, repo: Repo, found: Inspection) -> Healing:
        """Puts recorded refs back, then fetches. Raises GitmirrorError."""
        mirror, done = self._mirrors(repo.name), []
        for ref, oid in found.lost_refs.items():
            try:
                await mirror.update_refs([f"update {ref} {oid}\n"])
                done.append(f"{ref} was put back")
            except GitError:
                continue
        try:
            await self._fetch(mirror, repo)
            done.append("its upstream was fetched")
        except GitmirrorError:
            pass
        after = await inspect(mirror, recorded_refs(self._stores, repo.name), full=True)
        return Healing(after.damage is None, tuple(done), after.lost_refs, None, after.damage)
