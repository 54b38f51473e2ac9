"""Leases disks of all repositories, and rebuilds those of followed branches when their tips move."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

from appliance.core.config.settings import WorkspaceConfig
from appliance.core.errors import NotFound, TryLater
from appliance.core.git.mirror import Mirror
from appliance.core.health import followed_branch
from appliance.core.layout import Layout
from appliance.core.models import Health, Repo
from appliance.core.process.endurance import Endurance
from appliance.core.store.disk_leases import FOLLOWED, DiskLease, DiskLeaseStore, check_ttl
from appliance.core.text import escape
from appliance.core.workspace.disk.checking import DiskCheck
from appliance.core.workspace.disk.collection import discard_disks, is_whole
from appliance.core.workspace.disk.collector import DiskCollector
from appliance.core.workspace.disk.images import DiskForm, DiskImage, DiskPlace
from appliance.core.workspace.disk.lease_documents import lease_document
from appliance.core.workspace.disk.order import DiskOrder
from appliance.core.workspace.disk.repository import BuildDisk, NoDisk, RepositoryDisks
from appliance.core.workspace.disk.sharing import share_drives
from appliance.core.workspace.disk.upstream_commits import branch_with, raw_branch, tips_of

log = logging.getLogger(__name__)

BUILDS_AT_ONCE = 2
DEMAND_WAIT = 60.0
"""Seconds that a request waits for an image to be built."""
RETRY = 10
"""The Retry-After, in seconds, of a request for an image that takes longer."""
MOST_TRIES = 3
"""How many times a request is retried because upstream dropped the commit or the image changed on disk meanwhile."""


class Disks:
    """The disks of all repositories. `health(id)` gives a mirror's health, which includes its default branch.

    An image is handed out only after a build has checked it against the present refs, because upstream may have dropped
    its commit, or another commit in the same blob file. Nothing leased is ever removed, except by `delete`.
    """

    def __init__(
        self,
        layout: Layout,
        mirror_of: Callable[[str], Mirror],
        health: Callable[[int], Health],
        leases: DiskLeaseStore,
        *,
        settings: Callable[[], WorkspaceConfig],
        repos: Callable[[], Iterable[Repo]],
        is_private: Callable[[Repo], bool],
        build: BuildDisk,
    ) -> None:
        self._layout = layout
        self._mirror_of = mirror_of
        self._health = health
        self._leases = leases
        self._settings = settings
        self._is_private = is_private
        self._build_disk = build
        self._known: dict[str, RepositoryDisks] = {}
        self._places = asyncio.Semaphore(BUILDS_AT_ONCE)
        self._ending: set[asyncio.Task[Any]] = set()
        # A bug in what nobody waits for must not end `serve`, which can do without disks.
        self._endurance = Endurance(log, "keeping disks at the tips of their branches", bugs=True)
        self._tidying = Endurance(log, "removing what nobody needs", bugs=True)
        self._checking = Endurance(log, "checking them", bugs=True)
        self._build_seconds = 0.0
        self._check = DiskCheck(layout.disks, self._distrust)
        self._collector = DiskCollector(
            layout.disks, mirror_of, health, leases, settings=settings, repos=repos, disks_of=self._repository
        )

    @property
    def collector(self) -> DiskCollector:
        """What removes disks, for whoever has to make room."""
        return self._collector

    def gauges(self) -> Iterator[tuple[str, str, float]]:
        """The current values for /metrics: name, help text, value."""
        counted = self._collector
        yield "disk_images", "Disk images, as last counted.", counted.images
        yield "disk_leases", "Leases of disks that have not ended, as last counted.", counted.leased
        yield "disk_image_bytes", "Bytes that disks take, with their data drives, as last counted.", counted.bytes
        yield "disk_build_seconds", "Seconds spent building disk images since the start.", self._build_seconds
        damaged = "Generations of disks that were found corrupted since the start."
        yield "damaged_disks", damaged, self._check.damaged

    async def check_next(self) -> bool:
        """Checks the generation that was checked longest ago, if it is due. Returns whether it was. Never raises."""
        with self._checking.over("disks"):
            return await self._check.check_next()
        return False

    def _distrust(self, name: str) -> None:
        """Makes the next lease of a repository wait for a build, which begins a new generation."""
        self._repository(name).moved()

    # -- leases --------------------------------------------------------------------------------------------

    async def lease(
        self, repo: Repo, *, branch: str | None, commit: str | None, guest: str | None, ttl: float, form: DiskForm
    ) -> dict[str, Any]:
        """Leases the image of a branch's tip (default: the followed branch), or of a commit on an upstream branch.

        `ttl` is in seconds, `guest` is the platform's label for the guest. Builds the image first if necessary. Returns
        the lease as in `documents`. Raises UsageError, NotFound, NoDisk, TryLater, StoreError, and the errors of the
        build.
        """
        check_ttl(ttl)
        known, deadline = self._served(repo), asyncio.get_running_loop().time() + DEMAND_WAIT
        issue = partial(self._leases.issue, repo, form=form, guest=guest, ttl=ttl, of_tip=commit is None)
        for _ in range(MOST_TRIES):
            name, oid = await self._target(repo, branch, commit)
            order = self._order(repo, name, oid, form)
            await known.look()
            known.require(repo)
            try:
                image = known.ready(order) or await self._built(known, order, deadline, is_tip=commit is None)
                lease = await self._give(known, repo, image, issue) if image is not None else None
            except OSError as error:
                # The message leaves out the path, which callers on other machines need not know. The log has it.
                log.warning("%s: the disk of %s cannot be used: %s", repo.name, escape(name), error)
                reason = error.strerror or type(error).__name__
                raise NoDisk(
                    f"the disk of {escape(name)} cannot be used: {reason}", hint="see the log of serve"
                ) from error
            if lease is not None:
                if commit is None:
                    known.followed[name, form] = lease.created_at
                    known.set_aside.discard((name, form))
                return self._document(lease)
        raise NoDisk(f"the disk of {repo.name} kept changing while it was being leased", hint="try again")

    async def documents(self) -> list[dict[str, Any]]:
        """The leases that have not ended, newest first: `{id, repo, branch, commit, drives, mount, …}`."""
        return [self._document(lease) for lease in await asyncio.to_thread(self._leases.live)]

    async def release(self, lease_id: str) -> dict[str, Any]:
        """Ends a lease and returns its document. Raises UnknownLease; ending one again changes nothing."""
        lease = await asyncio.to_thread(self._leases.release, lease_id)
        self._collector.call()
        return self._document(lease)

    def _document(self, lease: DiskLease) -> dict[str, Any]:
        return lease_document(lease, self._place(lease.repo))

    async def _target(self, repo: Repo, branch: str | None, commit: str | None) -> tuple[str, str]:
        """The branch and the commit that a request means. Raises NotFound, NoDisk, GitError."""
        mirror, followed = self._mirror_of(repo.name), followed_branch(repo, self._health(repo.id))
        if not mirror.exists() or mirror.awaits_upstream():
            raise NoDisk(f"{repo.name} was not cloned yet", hint="its status says why")
        named = None if branch is None else raw_branch(branch)
        if commit is not None:
            return await branch_with(mirror, commit, named=named, followed=followed)
        name = named or followed
        if name is None:
            raise NoDisk(f"{repo.name} has no branch yet")
        tip = (await tips_of(mirror, name)).get(name)
        if tip is None:
            hint = f"GET /v1/repos/{repo.name}/refs lists its branches"
            raise NotFound(f"{repo.name} has no branch {escape(name)}", hint=hint)
        return name, tip

    def _order(self, repo: Repo, branch: str, commit: str, form: DiskForm) -> DiskOrder:
        settings, visibility = self._settings(), "private" if self._is_private(repo) else "open"
        return DiskOrder(repo.name, repo.url, branch, commit, form, settings.disk_history, visibility)

    async def _built(
        self, known: RepositoryDisks, order: DiskOrder, deadline: float, *, is_tip: bool
    ) -> DiskImage | None:
        """Waits for the image of an order. Returns None if upstream dropped its commit meanwhile. Raises OSError."""
        left = max(0.0, deadline - asyncio.get_running_loop().time())
        task = await known.build(order, is_tip=is_tip, timeout=left)
        if not task.done():
            raise TryLater(
                f"the disk of {escape(order.branch)} is being built",
                retry_after=RETRY,
                hint="try again later; the build continues",
            )
        if task.cancelled():
            raise NoDisk(f"{order.repo} is no longer served")
        image = task.result()
        try:
            await branch_with(self._mirror_of(order.repo), order.commit, named=order.branch, followed=None)
        except NotFound:
            return None
        return image

    async def _give(
        self, known: RepositoryDisks, repo: Repo, image: DiskImage, issue: Callable[..., DiskLease]
    ) -> DiskLease | None:
        """Leases an image, unless another generation has begun or its drives are no longer as they were written.

        Nothing of the repository is removed meanwhile. Raises OSError, NoDisk, NotShared, StoreError.
        """
        async with known.giving:
            if not known.is_present(image):
                return None
            if not await asyncio.to_thread(is_whole, known.place, image):
                await self._throw_away(known, repo, image)
                return None
            group = self._settings().disk_group
            await asyncio.to_thread(share_drives, self._layout.disks, known.place, image, group)
            lease = await asyncio.to_thread(
                issue, branch=image.branch, commit=image.commit, generation=image.generation, name=image.name
            )
            try:
                known.require(repo)
            except NoDisk:
                await asyncio.to_thread(self._leases.release, lease.id)
                raise
            return lease

    async def _throw_away(self, known: RepositoryDisks, repo: Repo, image: DiskImage) -> None:
        """Removes an image that differs from what was written, so that it is built again."""
        known.drop(image)
        if (image.generation, image.name) in await self._collector.leased_of(repo.name):
            raise NoDisk(
                f"the drives of {repo.name} at {image.commit[:12]} were changed on disk, and they are leased",
                hint="release these leases; the drives are then built again",
            )
        log.error("%s: removed the disk at %s: a drive is missing or has the wrong size", repo.name, image.commit[:12])
        await asyncio.to_thread(known.place.remove, image)

    # -- following upstream --------------------------------------------------------------------------------

    def refresh(self, repo: Repo) -> None:
        """Starts rebuilding the followed branches, when refs of the repository moved or `serve` has just started."""
        known = self._repository(repo.name)
        known.serve(repo)
        known.moved()
        known.follow(partial(self._follow, known, repo))

    async def _follow(self, known: RepositoryDisks, repo: Repo) -> None:
        if not known.is_loaded:
            with self._endurance.over("the leases of disks"):
                found = await asyncio.to_thread(self._leases.followed, repo)
                loaded = {(raw_branch(name), DiskForm(form)): at for (name, form), at in found.items()}
                known.followed, known.is_loaded = loaded | known.followed, True
        since = time.time() - FOLLOWED
        known.followed = {key: at for key, at in known.followed.items() if at > since}
        # Images of branches that were deleted can go.
        self._collector.call()
        if known.followed:
            with self._endurance.over(repo.name):
                await self._bring_forward(known, repo)

    async def _bring_forward(self, known: RepositoryDisks, repo: Repo) -> None:
        tips = await tips_of(self._mirror_of(repo.name))
        for name, form in sorted(known.followed, key=lambda key: known.followed[key], reverse=True):
            tip = tips.get(name)
            order = self._order(repo, name, tip, form) if tip else None
            # The first build checks all refs, so an image that is still valid after it need not be built again.
            if order is not None and (name, form) not in known.set_aside and known.ready(order) is None:
                await known.build(order, is_tip=True)

    def forget(self, repo: Repo) -> None:
        """Stops building for a repository that is no longer served. Its leases last until they end."""
        known = self._known.get(repo.name)
        if known is not None and known.repo is not None and known.repo.id == repo.id:
            for task in known.forget():
                self._ending.add(task)
                task.add_done_callback(self._ending.discard)

    async def delete(self, name: str) -> None:
        """Ends the leases of a forgotten repository and removes its disks. Raises StoreError."""
        await self._ended()
        known = self._repository(name)
        async with known.building, known.giving:
            await asyncio.to_thread(self._leases.release_all, name)
            await asyncio.to_thread(discard_disks, known.place)
        self._collector.call()

    async def stop(self) -> None:
        """Ends all running builds."""
        for known in self._known.values():
            if known.repo is not None:
                self.forget(known.repo)
        await self._ended()

    async def _ended(self) -> None:
        if self._ending:
            await asyncio.wait(self._ending)

    async def tidy(self) -> None:
        """Ends expired leases, and removes images that are not needed. Never raises; the log has what fails."""
        with self._tidying.over("disks"):
            await self._collector.tidy()

    # -- repositories --------------------------------------------------------------------------------------

    def _served(self, repo: Repo) -> RepositoryDisks:
        if not repo.enabled:
            raise NoDisk(f"{repo.name} is disabled", hint=f"`enable {repo.name}` serves it again")
        known = self._repository(repo.name)
        if known.repo is None or known.repo.id != repo.id:
            self.refresh(repo)
        return known

    def _repository(self, name: str) -> RepositoryDisks:
        if name not in self._known:
            place, mirror = self._place(name), self._mirror_of(name)
            self._known[name] = RepositoryDisks(place, mirror, self._build_disk, self._places, self._count)
        return self._known[name]

    def _place(self, name: str) -> DiskPlace:
        return DiskPlace(self._layout.disks / name)

    def _count(self, seconds: float) -> None:
        self._build_seconds += seconds
        self._collector.call()
