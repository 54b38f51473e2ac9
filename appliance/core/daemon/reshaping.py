"""What a reload changes about workspaces that exist already."""

from __future__ import annotations

from collections.abc import Iterable

from appliance.core.config.settings import Config
from appliance.core.models import Repo
from appliance.core.workspace.snapshots import Snapshots


def reshape(workspaces: Snapshots, repos: Iterable[Repo], before: Config, now: Config) -> None:
    """Builds the workspaces anew if they have something else than under the config `before`.

    Guests get those that there are until the new ones are complete.
    """
    has_begun = bool(now.allow) and not before.allow
    if (now.workspace, now.cache.lfs_budget) != (before.workspace, before.cache.lfs_budget) or has_begun:
        for repo in repos:
            if repo.enabled:
                workspaces.refresh(repo)
