"""Rebuilds the images of followed branches when their tips move, or what they lacked has come."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from appliance.core.git.mirror import Mirror
from appliance.core.models import Repo
from appliance.core.process.endurance import Endurance
from appliance.core.store.disk_leases import FOLLOWED, DiskLeaseStore
from appliance.core.workspace.disk.images import DiskForm
from appliance.core.workspace.disk.orders import DiskOrders
from appliance.core.workspace.disk.repository import RepositoryDisks
from appliance.core.workspace.disk.upstream_commits import raw_branch, tips_of

log = logging.getLogger(__name__)

FOLLOW_WAIT = 60.0
"""Seconds that the next tip of a branch waits for LFS objects that are not here. It is then built with pointers."""


class DiskFollower:
    """Brings images forward. `on_follow` is called when images of branches that were deleted can go."""

    def __init__(
        self,
        mirror_of: Callable[[str], Mirror],
        leases: DiskLeaseStore,
        orders: DiskOrders,
        on_follow: Callable[[], None],
    ) -> None:
        self._mirror_of = mirror_of
        self._leases = leases
        self._orders = orders
        self._on_follow = on_follow
        # A bug in what nobody waits for must not end `serve`, which can do without disks.
        self._endurance = Endurance(log, "keeping disks at the tips of their branches", bugs=True)

    async def follow(self, known: RepositoryDisks, repo: Repo) -> None:
        """Builds what was requested lately of a repository, as it is now. Never raises."""
        if not known.is_loaded:
            with self._endurance.over("the leases of disks"):
                found = await asyncio.to_thread(self._leases.followed, repo)
                loaded = {(raw_branch(name), DiskForm(form), ids): at for (name, form, ids), at in found.items()}
                known.followed, known.is_loaded = loaded | known.followed, True
        since = time.time() - FOLLOWED
        known.followed = {key: at for key, at in known.followed.items() if at > since}
        self._on_follow()
        if known.followed:
            with self._endurance.over(repo.name):
                await self._bring_forward(known, repo)

    async def _bring_forward(self, known: RepositoryDisks, repo: Repo) -> None:
        tips = await tips_of(self._mirror_of(repo.name))
        lacking: set[str] = set()
        members: set[int] = set()
        for name, form, private in sorted(known.followed, key=lambda key: known.followed[key], reverse=True):
            tip = tips.get(name)
            if tip is None:
                continue
            may_read = None if private is None else self._orders.reader_of(repo, private)
            contents = await self._orders.contents(repo, tip, may_read, FOLLOW_WAIT)
            lacking |= contents.wanted
            members |= contents.members
            known.lacking, known.members = frozenset(lacking), frozenset(members)
            order = self._orders.order(repo, name, tip, form, contents)
            # The first build checks all refs, so an image that is still valid after it need not be built again.
            if (name, form, order.line) not in known.set_aside and known.ready(order) is None:
                await known.build(order, is_tip=True)
