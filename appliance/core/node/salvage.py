"""The repositories that are served while the database cannot be read: the config's list, and the mirrors on disk."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from pathlib import Path

from appliance.core.config.settings import Config
from appliance.core.errors import GitmirrorError
from appliance.core.layout import Layout
from appliance.core.models import Repo
from appliance.core.node.state_dir import configured_url, refuse_foreign_leftover, wanted_of_config
from appliance.core.store.registry import Wanted
from appliance.core.upstream import choose_name, read_upstream


def salvaged_repos(layout: Layout, config: Config) -> list[Repo]:
    """The repositories as they would be registered, by name. Their ids are negative, unlike those of rows.

    A mirror on disk whose repository was disabled or removed is included, because only the database knew of that.
    """
    listed = {wanted.name: wanted for wanted in wanted_of_config(config) if _is_usable(layout, wanted)}
    found = {wanted.name: wanted for wanted in _mirrors(layout)} | listed
    now = time.time()
    return [
        Repo(
            id=_stable_id(wanted.name),
            name=wanted.name,
            url=wanted.url,
            branch=wanted.branch,
            source="config" if wanted.name in listed else "cli",
            interval=wanted.interval,
            enabled=True,
            created_at=now,
        )
        for wanted in (found[name] for name in sorted(found))
    ]


def _stable_id(name: str) -> int:
    """An id that is always the same for a name, because cached responses are stored under it."""
    return -1 - int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "big")


def _is_usable(layout: Layout, wanted: Wanted) -> bool:
    try:
        refuse_foreign_leftover(layout, wanted)
    except GitmirrorError:
        return False
    return True


def _below(mirrors: Path) -> list[Path]:
    try:
        return list(mirrors.glob("*/*.git"))
    except OSError:
        return []


def _mirrors(layout: Layout) -> Iterator[Wanted]:
    """The mirrors whose own config names their upstream. Unreadable ones are left out."""
    for path in _below(layout.mirrors):
        name = f"{path.parent.name}/{path.name.removesuffix('.git')}"
        url = configured_url(path / "config")
        try:
            if url is not None and choose_name(read_upstream(url), name) == name:
                yield Wanted(name, url)
        except GitmirrorError:
            continue
