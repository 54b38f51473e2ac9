"""Builds the disk budget: what goes when the disk is short, in this order (decision 043)."""

from __future__ import annotations

from collections.abc import Callable

from appliance.core.daemon.allowed_mirrors import AllowedMirrors
from appliance.core.daemon.allowed_repos import AllowedRepos
from appliance.core.daemon.state import ServeState
from appliance.core.lfs.cold_objects import ColdObjects
from appliance.core.maintenance.budget import DiskBudget
from appliance.core.models import Health
from appliance.core.serving.fetch.cold_responses import ColdResponses
from appliance.core.serving.fetch.response_cache import ResponseCache
from appliance.core.store.stores import Stores
from appliance.core.workspace.cold_snapshots import ColdSnapshots
from appliance.core.workspace.compose import Workspaces
from appliance.core.workspace.disk.cold_disks import ColdDisks


def compose_budget(
    state: ServeState,
    stores: Stores,
    health: Callable[[int], Health],
    cache: ResponseCache,
    workspaces: Workspaces,
    allowed: AllowedRepos,
) -> DiskBudget:
    """Builds the budget of everything that can be made or fetched again."""
    layout, repos, last_use = state.layout, state.known_repos, stores.activity.last_use
    kinds = (
        ColdResponses(cache, repos),
        ColdDisks(workspaces.disks.collector),
        ColdSnapshots(layout, workspaces.snapshots.kept, repos, state.keeps_snapshots, last_use),
        ColdObjects(workspaces.lfs.stock),
        AllowedMirrors(
            repos, health, stores.sessions.count_by_repo, allowed.last_uses, allowed.end_for_room,
            workspaces.modules.needs,
        ),
    )  # fmt: skip
    return DiskBudget(layout, kinds, state.storage_budget, on_room=cache.leave_room)
