"""Ends expired leases and removes what `collection` plans, while `serve` builds and leases other disks."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from appliance.core.config.settings import WorkspaceConfig
from appliance.core.git.mirror import Mirror
from appliance.core.health import followed_branch
from appliance.core.models import Health, Repo
from appliance.core.process.cold import ColdThing
from appliance.core.process.endurance import Endurance
from appliance.core.store.disk_leases import DiskLeaseStore
from appliance.core.text import escape
from appliance.core.units import format_size
from appliance.core.workspace.disk.collection import (
    Key,
    Removal,
    Stock,
    is_whole,
    names_on_disk,
    plan_removals,
    sweep,
    take_stock,
)
from appliance.core.workspace.disk.images import DiskImage, DiskPlace
from appliance.core.workspace.disk.repository import RepositoryDisks
from appliance.core.workspace.disk.sharing import share_drives
from appliance.core.workspace.disk.upstream_commits import raw_branch, tips_of

log = logging.getLogger(__name__)

KIND = "disks"
"""The key of disks in `storage.by`."""
LOOK_EVERY = 300.0
"""Seconds between two complete looks at the file system. In between, only what may have changed is looked at."""


class DiskCollector:
    """Collects everything below `disks`. `disks_of(name)` has the locks of a repository, registered or not."""

    def __init__(
        self,
        disks: Path,
        mirror_of: Callable[[str], Mirror],
        health: Callable[[int], Health],
        leases: DiskLeaseStore,
        *,
        settings: Callable[[], WorkspaceConfig],
        repos: Callable[[], Iterable[Repo]],
        disks_of: Callable[[str], RepositoryDisks],
    ) -> None:
        self._disks = disks
        self._mirror_of = mirror_of
        self._health = health
        self._leases = leases
        self._settings = settings
        self._repos = repos
        self._disks_of = disks_of
        self._looking = Endurance(log, "looking at its disks", bugs=True)
        self._removing = Endurance(log, "removing old disks", bugs=True)
        self._last = -math.inf
        self._called = True
        self._settings_then: WorkspaceConfig | None = None
        self._stocks: dict[str, tuple[object, Stock]] = {}
        self._is_over = False
        self._collecting = asyncio.Lock()
        self._crowded: set[tuple[str, str]] = set()
        self.images = self.leased = self.bytes = 0
        """The numbers of images and leases, and the bytes of all disks, at the end of the last collection."""

    def call(self) -> None:
        """Requests a collection at the next `tidy`, because something may have become useless."""
        self._called = True

    async def tidy(self) -> None:
        """Ends expired leases, and collects if that may remove something. Raises StoreError."""
        settings, now = self._settings(), time.monotonic()
        expired = await asyncio.to_thread(self._leases.expire)
        for lease in expired:
            log.info("%s: the lease %s of the disk of %s expired", lease.repo, lease.id, escape(lease.branch))
        if settings != self._settings_then or now - self._last >= LOOK_EVERY:
            self._stocks.clear()
            if settings != self._settings_then:
                self._crowded.clear()
            self._settings_then, self._last = settings, now
        elif not expired and not self._called:
            return
        # Cleared first, because a change during this collection requires another one.
        self._called = False
        try:
            async with self._collecting:
                await self._collect(settings)
        except BaseException:
            self._called = True
            raise

    async def reclaim(self, wanted: int) -> list[ColdThing]:
        """Removes disks that are not leased until `wanted` bytes are free; returns what went.

        The oldest go first, and those of the tips of followed branches last. Raises StoreError, OSError.
        """
        async with self._collecting:
            return await self._collect(self._settings(), wanted)

    async def unleased(self) -> list[ColdThing]:
        """The disks that are not leased, in the order in which `reclaim` removes them, as last looked at."""
        free = [
            (image in stock.current, stock.used_at(image), stock.name, image, size)
            for _, stock in self._stocks.values()
            for image, size in stock.images.items()
            if (image.generation, image.name) not in stock.leased
        ]
        free.sort(key=lambda each: each[:3])
        return [ColdThing(KIND, name, _what(image), size, used_at) for _, used_at, name, image, size in free]

    async def _collect(self, settings: WorkspaceConfig, wanted: int = 0) -> list[ColdThing]:
        leases = await asyncio.to_thread(self._leases.live)
        repos = {repo.name: repo for repo in self._repos() if repo.enabled}
        stocks, fresh, changes = [], set(), {}
        for name in await asyncio.to_thread(lambda: list(names_on_disk(self._disks))):
            with self._looking.over(name):
                known, repo = self._disks_of(name), repos.get(name)
                held = frozenset((lease.generation, lease.name) for lease in leases if lease.repo == name)
                changes[name] = known.changes
                state = changes[name], repo, held
                then, stock = self._stocks.get(name, (None, Stock(name)))
                if then != state:
                    fresh.add(name)
                    stock = await self._judged(await asyncio.to_thread(take_stock, name, known.place, held), repo)
                stocks.append(stock)
                if name in fresh:
                    await asyncio.to_thread(self._share, known.place, stock.images, settings.disk_group)
                    self._stocks[name] = state, stock
        sizes = {stock.name: stock for stock in stocks}
        room = min(settings.disk_budget, sum(stock.bytes for stock in stocks) - wanted) if wanted else None
        removals, left = plan_removals(stocks, settings.disk_budget if room is None else room, time.time())
        gone: list[ColdThing] = []
        for name, removal in removals.items():
            if name in fresh or removal.images or removal.generations:
                with self._removing.over(name):
                    is_for_disks = room is None
                    done = await self._remove(self._disks_of(name), name, removal, changes[name], tell=is_for_disks)
                    gone += _things(sizes[name], *done)
        self._complain(left, settings.disk_budget)
        self.images = sum(len(stock.images) - len(removals[stock.name].images) for stock in stocks)
        self.leased, self.bytes = len(leases), left
        return gone

    def _complain(self, left: int, budget: int) -> None:
        if left > budget and not self._is_over:
            log.warning(
                "disks take %s, more than [workspace] disk_budget (%s), because the rest is leased",
                format_size(left), format_size(budget),
            )  # fmt: skip
        self._is_over = left > budget

    async def _judged(self, stock: Stock, repo: Repo | None) -> Stock:
        """Adds which images are useless and which are current, if the repository is served and cloned."""
        mirror = self._mirror_of(stock.name)
        if repo is None or not mirror.exists() or mirror.awaits_upstream():
            return stock
        tips = await tips_of(mirror)
        asked = await asyncio.to_thread(self._leases.followed, repo)
        followed = {followed_branch(repo, self._health(repo.id)), *(raw_branch(name) for name, *_ in asked)}
        useless = {image for image in stock.images if image.url != repo.url or image.branch not in tips}
        at_tip = [image for image in stock.images if tips.get(image.branch) == image.commit]
        # The newest of each, because a tag that moved left an image with the old tag.
        newest = {(image.branch, image.form, image.line): image for image in at_tip if image.branch in followed}
        current = set(newest.values())
        last: dict[tuple[str, str], float] = {}
        for (name, form, _), at in asked.items():
            last[raw_branch(name), form] = max(at, last.get((raw_branch(name), form), 0.0))
        return replace(stock, useless=useless, current=current, asked=last, is_judged=True)

    def _share(self, place: DiskPlace, images: Iterable[DiskImage], group: str) -> None:
        """Gives drives to the present group, if they belong to that of an earlier setting."""
        for image in images:
            if is_whole(place, image):
                share_drives(self._disks, place, image, group)

    async def _remove(
        self, known: RepositoryDisks, name: str, removal: Removal, changes: int, *, tell: bool
    ) -> tuple[list[DiskImage], list[int]]:
        """Removes what was planned and is still not leased. `changes` is from when the stock was taken.

        Returns the images and the generations that went; `tell` logs those that `disk_budget` has no room for.

        Skips a repository in which something is being built, or was built since then; a later collection handles it.
        """
        if known.building.locked() or known.changes != changes:
            self._stocks.pop(name, None)
            self.call()
            return [], []
        if removal.images or removal.generations:
            self._stocks.pop(name, None)
        async with known.building, known.giving:
            leased = await self.leased_of(name)
            held = {generation for generation, _ in leased}
            doomed = [image for image in removal.images if (image.generation, image.name) not in leased]
            for image in doomed:
                known.drop(image)
            generations = [number for number in removal.generations if number not in held]
            await asyncio.to_thread(_remove_from_disk, known.place, doomed, generations, leased)
        for image in doomed:
            log.info("%s: removed the disk of %s at %s", name, escape(image.branch), image.commit[:12])
        for image in doomed:
            if image in removal.crowded:
                # Built again, it would only go again, with the whole history of the repository each time.
                known.set_aside.add((image.branch, image.form, image.line))
                if tell:
                    self._say_crowded(image, removal.needed)
        return doomed, generations

    def _say_crowded(self, image: DiskImage, needed: int) -> None:
        if (image.repo, image.branch) not in self._crowded:
            self._crowded.add((image.repo, image.branch))
            log.warning(
                "%s: there is no room for the disk of %s: [workspace] disk_budget is %s, and with all that is in use "
                "%s are needed; its next tip is not built until somebody asks for it",
                image.repo, escape(image.branch), format_size(self._settings().disk_budget), format_size(needed),
            )  # fmt: skip

    async def leased_of(self, name: str) -> set[Key]:
        """The leased images of a repository. Raises StoreError."""
        return {(lease.generation, lease.name) for lease in await asyncio.to_thread(self._leases.live, name)}


def _what(image: DiskImage) -> str:
    return f"the {image.form} disk of {escape(image.branch)} at {image.commit[:12]}"


def _things(stock: Stock, images: Sequence[DiskImage], generations: Collection[int]) -> Iterator[ColdThing]:
    """What went of a repository; the last image of a generation counts with the blob file that went with it."""
    rest = {
        number: size - sum(each for image, each in stock.images.items() if image.generation == number)
        for number, size in stock.sizes.items()
        if number in generations
    }
    for image in reversed(images):
        size = stock.images.get(image, 0) + rest.pop(image.generation, 0)
        yield ColdThing(KIND, stock.name, _what(image), size, stock.used_at(image))
    for number, size in rest.items():
        yield ColdThing(KIND, stock.name, "what no disk needs any more", size, number / 1000)


def _remove_from_disk(
    place: DiskPlace, images: Iterable[DiskImage], generations: Iterable[int], leased: Collection[Key]
) -> None:
    for image in images:
        place.remove(image)
    for number in generations:
        place.remove_generation(number)
    sweep(place, leased)
