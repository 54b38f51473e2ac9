"""The disks of one repository in a running `serve`: which are being built, and which may be handed out."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from appliance.core.errors import GitmirrorError
from appliance.core.git.mirror import Mirror
from appliance.core.models import Repo
from appliance.core.process.endurance import EXPECTED
from appliance.core.text import escape
from appliance.core.workspace.disk.images import DiskForm, DiskImage, DiskPlace
from appliance.core.workspace.disk.order import DiskOrder
from appliance.core.workspace.disk.upstream_commits import UpstreamRefs

log = logging.getLogger(__name__)

BuildDisk = Callable[[DiskPlace, Mirror, DiskOrder], Awaitable[DiskImage]]
"""Returns the image of an order, and builds it if it does not exist. Begins a new generation where necessary."""


Followed = tuple[str, DiskForm, tuple[int, ...] | None]
"""A branch, a form, and None for images without submodules; else the private registrations that may be among them."""

COME_BACK = 60.0
"""Seconds for which an order keeps its turn for a client that was told to try again."""


class NoDisk(GitmirrorError):
    """No disk can be leased; the message says why."""


@dataclass
class _Ordered:
    """An order that is built or waits for its turn. `is_tip` says whether it is of the tip of a branch."""

    task: asyncio.Task[DiskImage]
    is_tip: bool
    waiting: int = 0
    """How many wait for it now."""
    until: float = 0.0
    """The time of the loop until which one may come back who was told to try again."""

    def is_wanted(self) -> bool:
        return bool(self.waiting) or asyncio.get_running_loop().time() < self.until


@dataclass(frozen=True)
class _Checked:
    """What the last build in a line of generations found: the refs, as of how many moves, and the newest generation."""

    moves: int
    refs: bytes
    generation: int


class RepositoryDisks:
    """Builds one image at a time, and knows which images are valid for the present refs.

    `places` limits how many builds run at once in all repositories. `built` is called with the seconds of each build
    that wrote an image.
    """

    def __init__(
        self,
        place: DiskPlace,
        mirror: Mirror,
        build: BuildDisk,
        places: asyncio.Semaphore,
        built: Callable[[float], None],
    ) -> None:
        self.place = place
        self.repo: Repo | None = None
        """The registration that is served, or None."""
        self.followed: dict[Followed, float] = {}
        """What to rebuild when a tip moves, with the Unix time of the last request for each."""
        self.lacking: frozenset[str] = frozenset()
        """The URLs of submodules that the last images of these do not have, and that may be mirrored later."""
        self.members: frozenset[int] = frozenset()
        """The registrations of the submodules that these have."""
        self.set_aside: set[tuple[str, DiskForm, str]] = set()
        """Branch, form and line of images that the budget has no room for; they are not rebuilt until somebody asks."""
        self.is_loaded = False
        """Whether `followed` includes the requests that an earlier `serve` got."""
        self.building = asyncio.Lock()
        """Held while an image is built, and while something is removed."""
        self.giving = asyncio.Lock()
        """Held while an image is leased, and while something is removed."""
        self._mirror = mirror
        self._refs = UpstreamRefs(mirror)
        self._build_disk = build
        self._places = places
        self._built = built
        self.changes = 0
        """Increases whenever something on disk, or the refs that decide about it, may have changed."""
        self._moves = 0
        self._lines: dict[str, _Checked] = {}
        self._images: dict[DiskOrder, DiskImage] = {}
        self._builds: dict[tuple[DiskOrder, int], _Ordered] = {}
        self._following: asyncio.Task[None] | None = None
        self._work: Callable[[], Awaitable[None]] | None = None
        self._failed: dict[str, str] = {}

    def serve(self, repo: Repo) -> None:
        """Serves this registration from now on, and forgets an earlier one of the same name."""
        if self.repo is None or self.repo.id != repo.id:
            self.followed, self.is_loaded, self._images = {}, False, {}
            self.set_aside.clear()
            self.moved()
        self.repo = repo

    def require(self, repo: Repo) -> None:
        """Raises NoDisk if this registration is no longer served."""
        if self.repo is None or self.repo.id != repo.id:
            raise NoDisk(f"{repo.name} is no longer served")

    def moved(self) -> None:
        """Trusts no image until a build has read the refs again, because that build may begin a new generation."""
        self._moves += 1
        self.changes += 1

    async def look(self, order: DiskOrder) -> None:
        """Trusts no image if the refs are not those that the last build in the order's line saw. Raises GitError.

        A refresh moves them some time before it says so, and in between a blob file may have what was just dropped.
        """
        checked = self._lines.get(order.line)
        if checked is not None and checked.moves == self._moves and await self._refs.digest() != checked.refs:
            self.moved()

    def ready(self, order: DiskOrder) -> DiskImage | None:
        """The image of an order, if a build that read the present refs left it valid."""
        checked = self._lines.get(order.line)
        return self._images.get(order) if checked is not None and checked.moves == self._moves else None

    def is_present(self, image: DiskImage) -> bool:
        """Whether an image belongs to the generation that the last build in its line used or began."""
        checked = self._lines.get(image.line)
        return checked is not None and image.generation == checked.generation

    def drop(self, image: DiskImage) -> None:
        """Forgets an image that was removed or changed on disk."""
        self._images = {order: each for order, each in self._images.items() if each != image}
        self.changes += 1

    async def build(self, order: DiskOrder, *, is_tip: bool, timeout: float | None = None) -> asyncio.Task[DiskImage]:
        """Builds an order, or joins its build if no ref has moved since that was begun; returns its task.

        That may not be done after `timeout` seconds. An order that nobody waits for when its turn comes is skipped, and
        one of an older commit lets those of tips (`is_tip`) go first.
        """
        key = order, self._moves
        if key not in self._builds:
            task = asyncio.create_task(self._run(key), name=f"disk {order.repo}")
            self._builds[key] = _Ordered(task, is_tip)
            task.add_done_callback(lambda done: self._ended(key, done))
        ordered = self._builds[key]
        ordered.is_tip |= is_tip
        ordered.waiting += 1
        try:
            await asyncio.wait([ordered.task], timeout=timeout)
            ordered.until = asyncio.get_running_loop().time() + COME_BACK
        finally:
            ordered.waiting -= 1
        return ordered.task

    def follow(self, work: Callable[[], Awaitable[None]]) -> None:
        """Runs `work` in the background, after the work that is running there."""
        self._work = work
        if self._following is None or self._following.done() or self._following.cancelling():
            self._following = asyncio.create_task(self._follow(), name=f"disks of {self.place.directory.name}")

    def forget(self) -> set[asyncio.Task[Any]]:
        """Cancels all builds of a repository that is no longer served; returns the tasks that have not ended yet."""
        self.repo = None
        tasks = {*(each.task for each in self._builds.values()), *([self._following] if self._following else [])}
        running: set[asyncio.Task[Any]] = {task for task in tasks if not task.done()}
        for task in running:
            task.cancel()
        return running

    async def _follow(self) -> None:
        while self._work is not None:
            work, self._work = self._work, None
            await work()

    async def _run(self, key: tuple[DiskOrder, int]) -> DiskImage:
        ordered, may_yield = self._builds[key], True
        while True:
            async with self.building:
                if not ordered.is_wanted():
                    # At once, so that whoever asks from now on begins another build.
                    self._builds.pop(key)
                    raise NoDisk("nobody waits for this disk any more")
                # Whoever yields goes to the end of the queue, and only once, so that its turn comes.
                if not (may_yield and not ordered.is_tip and any(each.is_tip for each in self._builds.values())):
                    async with self._places:
                        return await self._build_and_log(key[0])
                may_yield = False

    async def _build_and_log(self, order: DiskOrder) -> DiskImage:
        try:
            return await self._build_once(order)
        except EXPECTED as error:
            cause = str(error) or type(error).__name__
            if self._failed.get(order.branch) != cause:
                self._failed[order.branch] = cause
                log.warning("%s: the %s disk of %s failed: %s", order.repo, order.form, escape(order.branch), cause)
            raise
        except Exception:
            # A bug. Nobody may be waiting to report it.
            log.exception("%s: the disk of %s failed", order.repo, escape(order.branch))
            raise

    async def _build_once(self, order: DiskOrder) -> DiskImage:
        moves, begun, start = self._moves, time.time(), time.monotonic()
        refs = await self._refs.digest()
        image = await self._build_disk(self.place, self._mirror, order)
        self._lines[image.line] = _Checked(moves, refs, image.generation)
        self.changes += 1
        # An earlier order of the same image was made before the refs of a submodule's mirror moved.
        kept = {known: each for known, each in self._images.items() if self.is_present(each) and each != image}
        self._images = kept | {order: image}
        self._failed.pop(order.branch, None)
        if image.made_at >= begun:
            seconds = time.monotonic() - start
            self._built(seconds)
            log.info(
                "%s: built the %s disk of %s at %s in %.2fs",
                order.repo, order.form, escape(order.branch), order.commit[:12], seconds,
            )  # fmt: skip
        return image

    def _ended(self, key: tuple[DiskOrder, int], task: asyncio.Task[DiskImage]) -> None:
        if key in self._builds and self._builds[key].task is task:
            self._builds.pop(key)
        if not task.cancelled():
            # Retrieved here, because the request that waited may be gone. `_build_and_log` logs every error but bugs.
            task.exception()
