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

from appliance.core.access.catalog import Catalog
from appliance.core.config.settings import WorkspaceConfig
from appliance.core.errors import GitmirrorError
from appliance.core.git.mirror import Mirror
from appliance.core.layout import Layout
from appliance.core.models import Health, Repo
from appliance.core.process.endurance import EXPECTED, Endurance
from appliance.core.workspace.history import History
from appliance.core.workspace.lfs_ahead import FetchAhead, complaints, has_content
from appliance.core.workspace.module_finder import ModuleFinder
from appliance.core.workspace.part_builds import PartBuilds
from appliance.core.workspace.parts import require_directories
from appliance.core.workspace.shape import Shape, WantedShape
from appliance.core.workspace.shape_choice import AUTO, history_for, shape_of
from appliance.core.workspace.snapshot_builder import SnapshotBuilder
from appliance.core.workspace.snapshot_place import Snapshot, SnapshotPlace, remove_foreign
from appliance.core.workspace.snapshot_registry import UNASKED, KeptBranch, KeptSnapshot, KeptSnapshots, NoSnapshot
from appliance.core.workspace.tar_checks import TarChecks

log = logging.getLogger(__name__)

BUILDS_AT_ONCE = 2
DEMAND_WAIT = 60.0
"""Seconds that a guest waits for a snapshot that was never requested before."""
_AS_USUAL = WantedShape()


class Snapshots:
    """The snapshots of all repositories. `health(id)` gives a mirror's health, which includes its default branch.

    `settings` are those of `[workspace]`. Without `modules`, no workspace has submodules; without `lfs`, LFS files are
    always pointers.
    """

    def __init__(
        self,
        layout: Layout,
        mirror_of: Callable[[str], Mirror],
        health: Callable[[int], Health],
        *,
        settings: Callable[[], WorkspaceConfig],
        modules: ModuleFinder | None = None,
        lfs: FetchAhead | None = None,
    ) -> None:
        self._layout = layout
        self._mirror_of = mirror_of
        self._settings = settings
        nothing = Catalog()
        self.modules = modules or ModuleFinder(lambda: nothing, mirror_of, settings, lambda _: None)
        """Which submodules there are, and who may have them."""
        self._lfs = lfs
        self._kept = KeptSnapshots(layout, health)
        self.checks = TarChecks(self._kept)
        self.trouble: str | None = None
        """Why there are no snapshots at all, as a sentence; None if they can be built."""
        self._places = asyncio.Semaphore(BUILDS_AT_ONCE)
        self._ending: set[asyncio.Task[None]] = set()
        self._endurance = Endurance(log, "removing old snapshots")
        self._builder = SnapshotBuilder(mirror_of, self.modules, lfs, self.checks)
        self._tip = self._builder.tip
        self._parts = PartBuilds(self._kept, self._places, self._build_once, self._failed, self._follow)

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
        return self.checks.gauges()

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
        if not self._kept.is_set_aside(repo, followed):
            self._kept.branch(known, followed)
        if not known.swept:
            known.swept = True
            with self._endurance.over(repo.name):
                self._kept.sweep(known)
        for branch in list(known.branches.values()):
            if branch.name == followed or not branch.has_only_parts():
                self._build(repo, branch)
            self._parts.refresh(repo, branch)

    def forget(self, repo: Repo) -> None:
        """Stops building snapshots of a repository that is no longer served; its snapshots stay on disk."""
        known = self._kept.forget(repo)
        self.modules.forget(repo)
        for branch in known.branches.values() if known else ():
            for kept in branch.kept.values():
                kept.ended.set()
            for building in (branch.building, branch.building_parts):
                if building is not None and not building.done():
                    building.cancel()
                    self._ending.add(building)
                    building.add_done_callback(self._ending.discard)
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
        await self.modules.stop()
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

    @property
    def kept(self) -> KeptSnapshots:
        """Which snapshots there are, for whoever has to make room."""
        return self._kept

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
        if name not in known.branches:
            self._kept.ask_for(repo, name)
        found = self._kept.branch(known, name)
        usual = found.usual or await self._choose(repo, found)
        shape = shape_of(wanted, usual)
        if shape.only and ((before := found.kept.get(shape)) is None or before.current is None):
            # Only what can be built may take the place of something else.
            if (tip := await self._tip(repo, name)) is None:
                raise NoSnapshot(f"there is no branch {name}")
            await require_directories(self._mirror_of(repo.name), tip, name, shape.only)
            found = self._kept.branch(known, name)
        if wanted.submodules or shape.modules is not None:
            if not found.kept:
                self.modules.forget_branch(repo, name)
            shape = await self.modules.shape_for(repo, name, lambda: self._tip(repo, name), wanted, shape)
        # It may have been dropped meanwhile and asked for anew, and two of them would build in one directory.
        found = self._kept.branch(known, name)
        kept = self._kept.keep(known, found, shape, wanted.asker)
        while kept.tar is not None and kept.current is not None and not kept.tar.is_untouched():
            await self._check(repo, kept)
        if kept.current is None or not self._may_send(kept, wanted):
            await self._build_now(repo, found, kept)
        if not self._may_send(kept, wanted):
            # The build had begun before something became private.
            await self._build_now(repo, found, kept)
        if kept.current is None or not self._may_send(kept, wanted):
            raise NoSnapshot(kept.error or f"the snapshot of {name} is being built; try again")
        self.modules.used(kept.current)
        return kept.current, kept.place.path(kept.current)

    async def _build_now(self, repo: Repo, branch: KeptBranch, kept: KeptSnapshot) -> None:
        kept.current = None
        kept.ended.clear()
        if kept.place.shape.only:
            kept.due = True
            self._parts.start(repo, branch)
        else:
            self._build(repo, branch)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(kept.ended.wait(), DEMAND_WAIT)

    def _may_send(self, kept: KeptSnapshot, wanted: WantedShape) -> bool:
        """Whether the guest may have, now, what the snapshot has, if it exists."""
        return kept.current is None or self.modules.may_have(kept.current, wanted)

    async def check_next(self) -> bool:
        """Reads the tar that was read longest ago, if it is due. Returns whether it was. Raises OSError."""
        was_due, repo = await self.checks.check_next()
        if repo is not None and self._kept.find(repo) is not None:
            self.refresh(repo)
        return was_due

    async def _check(self, repo: Repo, kept: KeptSnapshot) -> None:
        """Checks a tar that somebody touched before it is sent. Raises NoSnapshot if it cannot be read now."""
        assert kept.tar is not None
        try:
            await self.checks.judge(repo, kept, kept.tar, slowly=False)
        except OSError as error:
            self.look()
            raise NoSnapshot(f"the snapshot cannot be read: {error.strerror}") from error

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
            content = has_content(settings, self._lfs)
            branch.chosen = Shape(history, modules=() if settings.submodules else None, content=content)
            return branch.chosen

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
            for shape, kept in branch.kept.items():
                if not shape.only and not kept.waits:
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
            await self._follow(repo, branch)
        except EXPECTED as error:
            self._failed(repo, branch, [kept for shape, kept in branch.kept.items() if not shape.only], error)
            if isinstance(error, NoSnapshot):
                # The branch was deleted upstream.
                for kept in list(branch.kept.values()):
                    self._kept.drop(known, branch, kept)
            return
        if not branch.swept:
            branch.swept = True
            with self._endurance.over(repo.name):
                async with branch.tree:
                    await asyncio.to_thread(remove_foreign, branch.directory, list(branch.kept))
        whole = [kept for shape, kept in branch.kept.items() if not shape.only]
        for kept in sorted(whole, key=lambda kept: kept.place.shape != usual):
            is_usual = kept.place.shape == usual
            if self._kept.is_extra(known, branch, kept.place.shape) and time.monotonic() - kept.asked_at > UNASKED:
                self._kept.drop(known, branch, kept)
                continue
            kept.waits = False
            try:
                async with branch.tree:
                    await self._build_once(repo, kept)
                kept.error = None
                if is_usual and kept.current is not None:
                    branch.usual = usual
            except EXPECTED as error:
                self._failed(repo, branch, [kept], error)
            if not kept.waits:
                kept.ended.set()

    async def _follow(self, repo: Repo, branch: KeptBranch) -> None:
        is_asked = any(shape.modules is not None for shape in branch.kept)
        await self.modules.follow(repo, branch.name, lambda: self._tip(repo, branch.name), is_asked=is_asked)

    def _failed(self, repo: Repo, branch: KeptBranch, kept: Iterable[KeptSnapshot], error: BaseException) -> None:
        # Guests see this text, so leave out the paths of this node that an OSError names.
        reason = error.message if isinstance(error, GitmirrorError) else getattr(error, "strerror", None)
        for each in kept:
            each.error = reason or "the snapshot cannot be written"
        self.look()
        log.warning("%s: the snapshot of %s failed: %s", repo.name, branch.name, error)

    async def _build_once(self, repo: Repo, kept: KeptSnapshot) -> None:
        await self._builder.build(repo, kept, functools.partial(self._build_again, repo, kept.place))

    def _build_again(self, repo: Repo, place: SnapshotPlace) -> None:
        """Builds a snapshot if it is still wanted, and with it the others of its branch that are outdated."""
        known = self._kept.find(repo)
        branch = known.branches.get(place.branch) if known else None
        if branch is None:
            return
        if not place.shape.only:
            self._build(repo, branch)
        elif (part := branch.kept.get(place.shape)) is not None:
            part.due = True
            self._parts.start(repo, branch)
