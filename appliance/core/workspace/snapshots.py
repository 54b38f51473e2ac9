"""Holds the snapshots of all repositories, rebuilds them when a branch moves, and builds others on first request."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from appliance.core.config.settings import WorkspaceConfig
from appliance.core.errors import GitmirrorError
from appliance.core.git.mirror import Mirror
from appliance.core.layout import Layout
from appliance.core.models import Health, Repo
from appliance.core.process.checked_file import CHECK_EVERY, CheckedFile, NotRight
from appliance.core.process.endurance import EXPECTED, Endurance
from appliance.core.workspace.history import History
from appliance.core.workspace.lfs_ahead import FetchAhead, complaints, has_content
from appliance.core.workspace.shape import Shape, WantedShape
from appliance.core.workspace.shape_choice import AUTO, history_for, shape_of
from appliance.core.workspace.snapshot_build import build_snapshot
from appliance.core.workspace.snapshot_place import Snapshot, remove_foreign
from appliance.core.workspace.snapshot_registry import (
    UNASKED,
    KeptBranch,
    KeptRepository,
    KeptSnapshot,
    KeptSnapshots,
    NoSnapshot,
)

log = logging.getLogger(__name__)

BUILDS_AT_ONCE = 2
DEMAND_WAIT = 60.0
"""Seconds that a guest waits for a snapshot that was never requested before."""
_AS_USUAL = WantedShape()


class Snapshots:
    """The snapshots of all repositories. `health(id)` gives a mirror's health, which includes its default branch.

    `settings` are those of `[workspace]`. Without `lfs`, LFS files are always pointers.
    """

    def __init__(
        self,
        layout: Layout,
        mirror_of: Callable[[str], Mirror],
        health: Callable[[int], Health],
        *,
        settings: Callable[[], WorkspaceConfig],
        lfs: FetchAhead | None = None,
    ) -> None:
        self._layout = layout
        self._mirror_of = mirror_of
        self._settings = settings
        self._lfs = lfs
        self._kept = KeptSnapshots(layout, health)
        self.trouble: str | None = None
        """Why there are no snapshots at all, as a sentence; None if they can be built."""
        self.damaged = 0
        """How many were thrown away because their tar had changed since it was written."""
        self._places = asyncio.Semaphore(BUILDS_AT_ONCE)
        self._ending: set[asyncio.Task[None]] = set()
        self._endurance = Endurance(log, "removing old snapshots")

    def look(self) -> bool:
        """Checks whether snapshots can be written. Returns True if that works again, so all need to be rebuilt."""
        place, before = self._layout.workspaces, self.trouble
        probe = place / ".probe"
        try:
            place.mkdir(exist_ok=True)
            probe.touch()
            probe.unlink()
        except OSError as error:
            self.trouble = f"workspaces are off: they cannot be written to {place}: {error.strerror}"
        else:
            self.trouble = None
        if self.trouble and self.trouble != before:
            log.error("%s", self.trouble)
        return before is not None and self.trouble is None

    def gauges(self) -> Iterator[tuple[str, str, float]]:
        """The current values for /metrics: name, help text, value."""
        yield (
            "damaged_snapshots",
            "Snapshots thrown away because their tar had changed since it was written, since the start.",
            self.damaged,
        )

    def complaints(self) -> list[str]:
        """Warnings about LFS files that are not in place."""
        built = [(known.repo, kept.current) for known, _, kept in self._kept.all() if kept.current]
        return complaints(self._settings(), self._lfs, built)

    def refresh(self, repo: Repo) -> None:
        """Rebuilds outdated snapshots, after the repository's refs moved or when `serve` has just started."""
        followed = self._kept.followed(repo)
        if not self._settings().enabled or self.trouble or followed is None:
            return
        known = self._kept.repository(repo)
        self._kept.branch(known, followed)
        if not known.swept:
            known.swept = True
            with self._endurance.over(repo.name):
                self._kept.sweep(known)
        for branch in list(known.branches.values()):
            self._build(repo, branch)

    def forget(self, repo: Repo) -> None:
        """Stops building snapshots of a repository that is no longer served; its snapshots stay on disk."""
        known = self._kept.forget(repo)
        for branch in known.branches.values() if known else ():
            if branch.building is not None and not branch.building.done():
                branch.building.cancel()
                self._ending.add(branch.building)
                branch.building.add_done_callback(self._ending.discard)
        if self._lfs is not None:
            self._lfs.forget(repo)

    async def delete(self, name: str) -> None:
        """Removes a forgotten repository's snapshots from disk."""
        await self._ended()
        await asyncio.to_thread(shutil.rmtree, self._kept.directory(name), ignore_errors=True)

    async def stop(self) -> None:
        """Ends all running builds."""
        for known in self._kept.repositories():
            self.forget(known.repo)
        await self._ended()

    async def _ended(self) -> None:
        """Waits for cancelled builds, because their threads may still be writing."""
        if self._ending:
            await asyncio.wait(self._ending)

    def current(self, repo: Repo, branch: str | None = None) -> Snapshot | None:
        """The snapshot of a branch (default: the followed one) in its usual shape that exists now, if any."""
        known, name = self._kept.find(repo), branch or self._kept.followed(repo)
        found = known.branches.get(name) if known and name else None
        kept = found.kept.get(found.usual) if found and found.usual else None
        return kept.current if kept else None

    def usual_history(self, repo: Repo) -> History | None:
        """The history that guests get of the followed branch when they ask for none; None if it is not known yet."""
        setting = self._settings().history
        known, name = self._kept.find(repo), self._kept.followed(repo)
        found = known.branches.get(name) if known and name else None
        if found is not None and found.usual is not None:
            return found.usual.history
        return None if setting == AUTO else History(setting)

    async def get(self, repo: Repo, branch: str | None, wanted: WantedShape = _AS_USUAL) -> tuple[Snapshot, Path]:
        """The snapshot of a branch and the path of its tar, which is untouched since it was known to be right.

        Builds it first if necessary. Raises NoSnapshot.
        """
        if not self._settings().enabled:
            raise NoSnapshot("snapshots are off here ([workspace] enabled)")
        if self.trouble:
            raise NoSnapshot("snapshots are off here: their directory cannot be used")
        name = branch or self._kept.followed(repo)
        if name is None:
            raise NoSnapshot("the repository has no branch yet")
        known = self._kept.repository(repo)
        if name not in known.branches and name != self._kept.followed(repo) and await self._tip(repo, name) is None:
            raise NoSnapshot(f"there is no branch {name}")
        found = self._kept.branch(known, name)
        usual = found.usual or await self._choose(repo, found)
        kept = self._kept.keep(known, found, shape_of(wanted, usual))
        kept.asked_at = time.monotonic()
        while kept.tar is not None and kept.current is not None and not kept.tar.is_untouched():
            await self._check(repo, kept)
        if kept.current is None:
            kept.ended.clear()
            self._build(repo, found)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(kept.ended.wait(), DEMAND_WAIT)
        if kept.current is None:
            raise NoSnapshot(kept.error or f"the snapshot of {name} is being built; try again")
        return kept.current, kept.place.path(kept.current)

    async def check_next(self) -> bool:
        """Reads the tar that was read longest ago, if it is due. Returns whether it was. Raises OSError."""
        oldest: tuple[float, KeptRepository, KeptSnapshot, CheckedFile] | None = None
        for known, _, kept in self._kept.all():
            tar = kept.tar if kept.current is not None else None
            if tar is not None and (oldest is None or tar.checked_at < oldest[0]):
                oldest = tar.checked_at, known, kept, tar
        if oldest is None or time.monotonic() - oldest[0] < CHECK_EVERY:
            return False
        _, known, kept, tar = oldest
        if not await self._judge(known.repo, kept, tar, slowly=True) and self._kept.find(known.repo) is known:
            self.refresh(known.repo)
        return True

    async def _check(self, repo: Repo, kept: KeptSnapshot) -> None:
        """Checks a tar that somebody touched before it is sent. Raises NoSnapshot if it cannot be read now."""
        assert kept.tar is not None
        try:
            await self._judge(repo, kept, kept.tar, slowly=False)
        except OSError as error:
            self.look()
            raise NoSnapshot(f"the snapshot cannot be read: {error.strerror}") from error

    async def _judge(self, repo: Repo, kept: KeptSnapshot, tar: CheckedFile, *, slowly: bool) -> bool:
        """Reads a tar and returns whether it is right. If not, it is no longer current. Raises OSError."""
        try:
            await (tar.check_slowly() if slowly else tar.check())
        except (FileNotFoundError, NotRight) as error:
            # Every caller that waited for the check gets here, and a build may have replaced the tar meanwhile.
            if kept.tar is tar and kept.current is not None:
                if isinstance(error, NotRight):
                    self._throw_away(repo, kept, error)
                else:
                    log.warning("%s: %s is missing from the disk; rebuilding it", repo.name, kept.current.file)
                    kept.current = None
            return False
        return True

    def _throw_away(self, repo: Repo, kept: KeptSnapshot, error: NotRight) -> None:
        self.damaged += 1
        kept.current = None
        kept.place.distrust()
        log.warning(
            "%s: the snapshot of %s was thrown away, because %s; rebuilding it", repo.name, kept.place.branch, error
        )

    async def _choose(self, repo: Repo, branch: KeptBranch) -> Shape:
        """The usual shape of a branch. Raises NoSnapshot, GitError, OSError."""
        async with branch.choosing:
            tip = await self._tip(repo, branch.name)
            if tip is None:
                raise NoSnapshot(f"there is no branch {branch.name}")
            settings = self._settings()
            history = await history_for(
                settings.history, settings.history_below, self._mirror_of(repo.name), branch.directory, tip
            )
            return Shape(history, content=has_content(settings, self._lfs))

    def _build(self, repo: Repo, branch: KeptBranch) -> None:
        if not branch.is_idle():
            branch.again = True
            return
        branch.building = asyncio.create_task(self._run(repo, branch), name=f"snapshot {repo.name}")

    async def _run(self, repo: Repo, branch: KeptBranch) -> None:
        again = True
        try:
            while again:
                branch.again = False
                async with self._places:
                    await self._ended()
                    await self._build_all(repo, branch)
                again = branch.again
        finally:
            for kept in branch.kept.values():
                if not kept.waits:
                    kept.ended.set()

    async def _build_all(self, repo: Repo, branch: KeptBranch) -> None:
        """Builds the usual snapshot of a branch, and then the others that guests still ask for."""
        known = self._kept.repository(repo)
        if not branch.kept and branch.name != self._kept.followed(repo):
            # There was no room for it, or it was dropped meanwhile.
            known.branches.pop(branch.name, None)
            return
        try:
            usual = await self._choose(repo, branch)
            self._kept.keep(known, branch, usual)
        except EXPECTED as error:
            self._failed(repo, branch, list(branch.kept.values()), error)
            if isinstance(error, NoSnapshot):
                # The branch was deleted upstream.
                for kept in list(branch.kept.values()):
                    self._kept.drop(known, branch, kept)
            return
        if not branch.swept:
            branch.swept = True
            with self._endurance.over(repo.name):
                await asyncio.to_thread(remove_foreign, branch.directory, list(branch.kept))
        for kept in sorted(branch.kept.values(), key=lambda kept: kept.place.shape != usual):
            is_usual = kept.place.shape == usual
            if self._kept.is_extra(known, branch, kept.place.shape) and time.monotonic() - kept.asked_at > UNASKED:
                self._kept.drop(known, branch, kept)
                continue
            kept.waits = False
            try:
                await self._build_once(repo, kept)
                kept.error = None
                if is_usual and kept.current is not None:
                    branch.usual = usual
            except EXPECTED as error:
                self._failed(repo, branch, [kept], error)
            if not kept.waits:
                kept.ended.set()

    def _failed(self, repo: Repo, branch: KeptBranch, kept: Iterable[KeptSnapshot], error: BaseException) -> None:
        # Guests see this text, so leave out the paths of this node that an OSError names.
        reason = error.message if isinstance(error, GitmirrorError) else getattr(error, "strerror", None)
        for each in kept:
            each.error = reason or "the snapshot cannot be written"
        self.look()
        log.warning("%s: the snapshot of %s failed: %s", repo.name, branch.name, error)

    async def _build_once(self, repo: Repo, kept: KeptSnapshot) -> None:
        place = kept.place
        tip = await self._tip(repo, place.branch)
        if tip is None:
            raise NoSnapshot(f"there is no branch {place.branch}")
        if not kept.looked:
            try:
                kept.current = await asyncio.to_thread(place.load, repo.url)
            except NotRight as error:
                self._throw_away(repo, kept, error)
            kept.tar, kept.looked = place.tar, True
        again = functools.partial(self._build_again, repo, place.branch)
        lfs, before = self._lfs if place.shape.content else None, kept.current
        same = before if before and before.commit == tip else None
        if same and not (lfs and lfs.is_outdated(place, same)):
            return
        mirror = self._mirror_of(repo.name)
        start = time.monotonic()
        build = functools.partial(build_snapshot, place, mirror, mirror.git.gently(), repo.url, tip)
        built = await (lfs.build(repo, kept, build, again, same) if lfs else build())
        if built is None:
            return
        kept.current, kept.tar = built, place.tar
        # Only now has everybody who was given the previous tar opened it.
        await asyncio.to_thread(place.remove_others, built)
        seconds = time.monotonic() - start
        log.info("%s: snapshot of %s (%s) at %s in %.2fs", repo.name, place.branch, place.shape.key, tip[:12], seconds)

    def _build_again(self, repo: Repo, name: str) -> None:
        """Builds the snapshots of a branch if they are still wanted."""
        known = self._kept.find(repo)
        if known is not None and (branch := known.branches.get(name)):
            self._build(repo, branch)

    async def _tip(self, repo: Repo, branch: str) -> str | None:
        ref = f"refs/heads/{branch}"
        return (await self._mirror_of(repo.name).local_refs(ref)).get(ref)
