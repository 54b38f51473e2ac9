"""Leases disks of all repositories, and rebuilds those of followed branches when their tips move."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

from appliance.core.config.settings import WorkspaceConfig
from appliance.core.errors import NotFound, TryLater
from appliance.core.git.mirror import Mirror
from appliance.core.layout import Layout
from appliance.core.models import Health, Repo
from appliance.core.process.endurance import Endurance
from appliance.core.store.disk_leases import DiskLease, DiskLeaseStore, check_ttl
from appliance.core.text import escape
from appliance.core.workspace.disk.build import find_large
from appliance.core.workspace.disk.checking import DiskCheck
from appliance.core.workspace.disk.collection import discard_disks, is_whole
from appliance.core.workspace.disk.collector import DiskCollector
from appliance.core.workspace.disk.contents import (
    ContentsFinder,
    Find,
    FindLarge,
    Reader,
    named,
)
from appliance.core.workspace.disk.following import DiskFollower
from appliance.core.workspace.disk.images import DiskForm, DiskImage, DiskPlace
from appliance.core.workspace.disk.lease_documents import lease_document
from appliance.core.workspace.disk.order import DiskOrder
from appliance.core.workspace.disk.orders import DiskOrders
from appliance.core.workspace.disk.repository import BuildDisk, NoDisk, RepositoryDisks
from appliance.core.workspace.disk.sharing import share_drives
from appliance.core.workspace.disk.upstream_commits import branch_with
from appliance.core.workspace.lfs_files import LfsSource

log = logging.getLogger(__name__)

BUILDS_AT_ONCE = 2
DEMAND_WAIT = 60.0
"""Seconds that a request waits for an image to be built."""
RETRY = 10
"""The Retry-After, in seconds, of a request for an image that takes longer."""
LFS_WAIT = 20.0
"""Seconds of these that a request waits for LFS objects that are not here. The image is then built with pointers."""
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
        find: Find,
        reader_of: Callable[[str | None], Reader],
        objects: LfsSource,
        find_large: FindLarge = find_large,
    ) -> None:
        self._layout = layout
        self._mirror_of = mirror_of
        self._health = health
        self._leases = leases
        self._settings = settings
        self._is_private = is_private
        self._build_disk = build
        self._reader_of = reader_of
        self._contents = ContentsFinder(
            mirror_of, find=find, is_private=is_private, objects=objects, find_large=find_large,
            on_arrival=self._on_arrival,
        )  # fmt: skip
        self._orders = DiskOrders(
            mirror_of, health, settings=settings, is_private=is_private, contents=self._contents
        )  # fmt: skip
        self._known: dict[str, RepositoryDisks] = {}
        self._places = asyncio.Semaphore(BUILDS_AT_ONCE)
        self._ending: set[asyncio.Task[Any]] = set()
        # A bug in what nobody waits for must not end `serve`, which can do without disks.
        self._tidying = Endurance(log, "removing what nobody needs", bugs=True)
        self._checking = Endurance(log, "checking them", bugs=True)
        self._build_seconds = 0.0
        self._check = DiskCheck(layout.disks, self._distrust)
        self._collector = DiskCollector(
            layout.disks, mirror_of, health, leases, settings=settings, repos=repos, disks_of=self._repository
        )
        self._follower = DiskFollower(mirror_of, leases, self._orders, self._collector.call)

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
        self,
        repo: Repo,
        *,
        branch: str | None,
        commit: str | None,
        guest: str | None,
        ttl: float,
        form: DiskForm,
        submodules: bool | None = None,
    ) -> dict[str, Any]:
        """Leases the image of a branch's tip (default: the followed branch), or of a commit on an upstream branch.

        `ttl` is in seconds, `guest` is the platform's label for the guest. With `submodules` (None: as `[workspace]`
        says), the image has those that are mirrored here, private ones if a known guest of that name may read them.
        Builds the image first if necessary. Returns the lease as in `documents`. Raises UsageError, NotFound, NoDisk,
        TryLater, StoreError, and the errors of the build.
        """
        check_ttl(ttl)
        known, deadline = self._served(repo), asyncio.get_running_loop().time() + DEMAND_WAIT
        issue = partial(self._leases.issue, repo, form=form, guest=guest, ttl=ttl, of_tip=commit is None)
        wants_modules = self._settings().submodules if submodules is None else submodules
        may_read = self._orders.reader(repo, self._reader_of(guest)) if wants_modules else None
        patience = min(LFS_WAIT, DEMAND_WAIT)
        for _ in range(MOST_TRIES):
            name, oid = await self._orders.target(repo, branch, commit)
            contents = await self._orders.contents(repo, oid, may_read, patience)
            # Once is enough: another attempt follows at once.
            patience = 0.0
            modules = contents.private if wants_modules else None
            order = self._orders.order(repo, name, oid, form, contents)
            await known.look(order)
            known.require(repo)
            try:
                image = known.ready(order)
                if image is None:
                    image = await self._built(known, order, deadline, is_tip=commit is None)
                    # That may have taken long, in which a submodule may have become private, or lost a commit.
                    if not contents.has_same_modules(await self._orders.contents(repo, oid, may_read, 0.0)):
                        continue
                given = partial(issue, modules=modules, missing=named(contents.missing))
                lease = await self._give(known, repo, image, given) if image is not None else None
            except OSError as error:
                # The message leaves out the path, which callers on other machines need not know. The log has it.
                log.warning("%s: the disk of %s cannot be used: %s", repo.name, escape(name), error)
                reason = error.strerror or type(error).__name__
                raise NoDisk(
                    f"the disk of {escape(name)} cannot be used: {reason}", hint="see the log of serve"
                ) from error
            if lease is not None:
                if commit is None:
                    known.followed[name, form, modules] = lease.created_at
                    known.set_aside.discard((name, form, order.line))
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
        """Starts rebuilding the followed branches, when refs of the repository moved or `serve` has just started.

        Does so for other repositories, too, whose submodule this is, if their images lack it.
        """
        known = self._repository(repo.name)
        known.serve(repo)
        known.moved()
        known.follow(partial(self._follower.follow, known, repo))
        for other in list(self._known.values()):
            owner = other.repo
            if owner is not None and owner.id != repo.id and self._contents.leads_to(other.lacking, owner.url, repo):
                other.follow(partial(self._follower.follow, other, owner))

    def _on_arrival(self, repo_id: int) -> None:
        """Rebuilds what was built while LFS objects of a repository had not arrived."""
        for known in self._known.values():
            if known.repo is not None and (known.repo.id == repo_id or repo_id in known.members):
                known.follow(partial(self._follower.follow, known, known.repo))

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
        await self._contents.stop()

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
