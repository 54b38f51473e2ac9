"""Builds the parts that find damage and heal it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

from appliance.core.config.settings import BackupConfig
from appliance.core.git.mirror import Mirror
from appliance.core.git.mirrors import Mirrors
from appliance.core.integrity.examination import Examiner
from appliance.core.integrity.healing import Healer
from appliance.core.models import Repo
from appliance.core.store.stores import Stores


def compose_examiner(
    mirrors: Mirrors,
    stores: Stores,
    fetch: Callable[[Mirror, Repo], Awaitable[None]],
    backup: Callable[[], BackupConfig],
) -> Examiner:
    """Builds the parts that inspect and heal one mirror at a time.

    `fetch` updates a mirror from its upstream. `backup` returns where the backups are; a heal reads them last.
    """

    def directory() -> Path | None:
        to = backup().to
        return Path(to) if to else None

    return Examiner(mirrors, stores, Healer(mirrors, mirrors.layout, stores, fetch, directory))
