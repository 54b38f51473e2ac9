"""Registers and removes repositories: the same steps in `serve` and in a command that runs without it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from appliance.core.config.settings import Config
from appliance.core.git.mirror import Mirror
from appliance.core.git.mirror_locks import MirrorLocks
from appliance.core.layout import Layout
from appliance.core.models import Health, RefreshOutcome, Repo
from appliance.core.names import is_repo_name
from appliance.core.node.state_dir import (
    clean_up,
    make_git,
    make_keyring,
    make_privacy,
    refuse_foreign_leftover,
    wanted_repo,
)
from appliance.core.observability.report import repo_documents
from appliance.core.process.owner import claim
from appliance.core.store.registry import UnknownRepo, Wanted
from appliance.core.store.stores import Stores

if TYPE_CHECKING:
    from appliance.core.refresh.runs import Progress

WAIT_FOR_OWNER = 600.0
"""Seconds that a command waits for an `add-repo` that is cloning."""
PURGED = "its repository was purged"
"""Why its sessions end, for the log."""


def register(stores: Stores, layout: Layout, config: Config, arguments: Mapping[str, Any]) -> Repo:
    """Registers a repository from `add-repo`'s url, name, branch, interval and allow_local.

    Raises UsageError, and Conflict if the name is another upstream's.
    """
    return stores.registry.add(check_wanted(stores, layout, config, arguments))


def check_wanted(stores: Stores, layout: Layout, config: Config, arguments: Mapping[str, Any]) -> Wanted:
    """Checks what `add-repo` asks for. Raises UsageError, and Conflict if another upstream's mirror is in the way."""
    wanted = wanted_repo(
        arguments["url"],
        name=arguments.get("name"),
        branch=arguments.get("branch"),
        interval=arguments.get("interval"),
        allow_local=bool(arguments.get("allow_local")) or config.refresh.allow_local,
        has_key=make_keyring(config).has_key,
    )
    # Of one that is registered, the registry knows the upstream.
    if stores.registry.find(wanted.name) is None:
        refuse_foreign_leftover(layout, wanted)
    return wanted


def unregister(stores: Stores, layout: Layout, config: Config, name: str, *, purge: bool) -> bool:
    """Removes a repository from the registry. Returns whether it was registered.

    A mirror on disk that is not registered can be removed with `purge` only; this returns False then. Raises
    UnknownRepo if there is nothing to remove, and UsageError if the config lists the repository.
    """
    was_registered = True
    try:
        stores.registry.remove(name, str(config.path or "the config"), purged=purge)
    except UnknownRepo:
        # A name with dots would be a path out of the mirrors.
        if not (purge and is_repo_name(name) and layout.mirror(name).exists()):
            raise
        was_registered = False
    if purge:
        stores.sessions.end_all(name, PURGED, time.time())
    return was_registered


def added_document(
    repo: Repo, health: Health, layout: Layout, config: Config, outcome: RefreshOutcome | None
) -> dict[str, Any]:
    """What `add-repo --json` prints: the repository as in `repos`, with the `error` of its first clone or null."""
    documents = repo_documents([repo], {repo.id: health}, config, time.time())
    [document] = make_privacy(layout, config).told(documents)
    return document | {"error": outcome.error if outcome else None}


def outcome_document(outcome: RefreshOutcome) -> dict[str, Any]:
    """One refresh as `refresh --json` prints it."""
    return {
        "repo": outcome.repo,
        "result": outcome.result,
        "duration": round(outcome.duration, 3),
        "moved": [change.document() for change in outcome.moved],
        "error": outcome.error,
        "kind": outcome.kind,
    }


def clone_alone(
    stores: Stores, layout: Layout, config: Config, repo: Repo, on_progress: Progress | None
) -> RefreshOutcome:
    """Makes the first clone in this process while no `serve` runs. Raises StateInUse."""
    # Imported here, because most commands refresh nothing.
    from appliance.core.refresh.attempt import attempt, conclude
    from appliance.core.refresh.refresher import Refresher
    from appliance.core.refresh.runs import RefreshRun

    owned = claim(layout, "add-repo", wait=WAIT_FOR_OWNER)
    try:
        clean_up(layout, [Mirror(layout.mirror(repo.name), make_git(layout, config, owned.children))])

        async def clone() -> RefreshOutcome:
            git = make_git(layout, config, owned.children)
            refresher = Refresher(layout, git, MirrorLocks(), make_keyring(config), timeout=config.refresh.timeout)
            start, interval = time.monotonic(), repo.interval or config.refresh.interval
            result = await attempt(refresher, RefreshRun(repo, on_progress))
            ended = conclude(
                repo,
                stores.health.get(repo.id),
                result,
                interval=interval,
                duration=time.monotonic() - start,
                ended_at=time.time(),
            )
            stores.health.record_refresh(repo.id, ended.outcome, **ended.columns)
            return ended.outcome

        return asyncio.run(clone())
    finally:
        owned.release()
