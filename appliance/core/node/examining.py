"""Inspects and heals mirrors in this process, while no `serve` runs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from appliance.core.config.settings import Config
from appliance.core.errors import GitmirrorError
from appliance.core.git.mirrors import Mirrors
from appliance.core.integrity.compose import compose_examiner
from appliance.core.integrity.examination import (
    Examiner,
    failed_document,
    healed_columns,
    healing_document,
    require_cloned,
)
from appliance.core.layout import Layout
from appliance.core.models import Repo, Tell
from appliance.core.node.registration import WAIT_FOR_OWNER
from appliance.core.node.state_dir import NoState, clean_up, make_git, make_keyring
from appliance.core.process.owner import claim
from appliance.core.refresh.refresher import Refresher
from appliance.core.store.stores import Stores


def verify_alone(
    stores: Stores, layout: Layout, config: Config, names: list[str], tell: Tell | None, *, full: bool
) -> list[dict[str, Any]]:
    """Inspects the named mirrors, or all, and records what it finds. Raises GitmirrorError."""
    chosen = chosen_repos(stores.registry.all(), stores, names)
    if not chosen:
        return []
    with _examiner(stores, layout, config, chosen, "verify") as examiner:

        async def inspect_all() -> list[dict[str, Any]]:
            documents = []
            for repo in chosen:
                if tell is not None:
                    tell(f"inspecting {repo.name}")
                try:
                    require_cloned(repo, stores.health.get(repo.id))
                    examined = await examiner.inspect(repo, full=full)
                except GitmirrorError as error:
                    documents.append(failed_document(repo.name, full, error))
                    continue
                stores.health.update(repo.id, **examined.columns())
                documents.append(examined.document())
            return documents

        return asyncio.run(inspect_all())


def heal_alone(stores: Stores, layout: Layout, config: Config, name: str) -> dict[str, Any]:
    """Inspects the content of a mirror and heals it. Raises GitmirrorError."""
    repo = stores.registry.get(name)
    require_cloned(repo, stores.health.get(repo.id))
    with _examiner(stores, layout, config, [repo], "heal") as examiner:

        async def heal() -> dict[str, Any]:
            examined = await examiner.inspect(repo, full=True)
            stores.health.update(repo.id, **examined.columns())
            if examined.found.damage is None:
                return healing_document(name, None)
            healing, _ = await examiner.heal(repo, examined.found)
            stores.health.update(repo.id, **healed_columns(healing, time.time()))
            return healing_document(name, healing)

        return asyncio.run(heal())


def chosen_repos(known: list[Repo], stores: Stores, names: list[str]) -> list[Repo]:
    """The named repositories; without a name, those that were cloned. Raises UnknownRepo."""
    if names:
        return [stores.registry.get(name) for name in names]
    healths = stores.health.all()
    return [repo for repo in known if repo.id in healths and healths[repo.id].cloned]


@contextmanager
def _examiner(stores: Stores, layout: Layout, config: Config, repos: list[Repo], role: str) -> Iterator[Examiner]:
    if not layout.state.exists():
        raise NoState(layout)
    owned = claim(layout, role, wait=WAIT_FOR_OWNER)
    try:
        mirrors = Mirrors(layout, make_git(layout, config, owned.children))
        clean_up(layout, [mirrors(repo.name) for repo in repos])
        refresher = Refresher(layout, mirrors.git, mirrors.locks, make_keyring(config), timeout=config.refresh.timeout)
        yield compose_examiner(mirrors, stores, refresher.bring, lambda: config.backup)
    finally:
        owned.release()
