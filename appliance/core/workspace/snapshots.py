"""Holds the snapshots of all repositories, rebuilds them when a branch moves, and builds others on first request."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from appliance.core.errors import GitmirrorError
from appliance.core.git.mirror import Mirror
from appliance.core.health import followed_branch
from appliance.core.layout import Layout
from appliance.core.models import Health, Repo
from appliance.core.process.checked_file import CHECK_EVERY, CheckedFile, NotRight
from appliance.core.process.endurance import EXPECTED, Endurance
from appliance.core.workspace.snapshot_build import Snapshot, SnapshotPlace, build_snapshot

log = logging.getLogger(__name__)

MOST_BRANCHES = 8
"""The most branches of one repository, besides the followed one, that are kept ready. Beyond that, the least recently
requested one is dropped."""
BUILDS_AT_ONCE = 2
DEMAND_WAIT = 60.0
"""Seconds that a guest waits for a branch that was never requested before."""


class NoSnapshot(GitmirrorError):
    """There is no snapshot; the message says why."""


@dataclass
class _Branch:
    place: SnapshotPlace
    looked: bool = False
    """Whether the disk was checked for a snapshot that an earlier `serve` left."""
    current: Snapshot | None = None
    tar: CheckedFile | None = None
    """The tar of `current`."""
    asked_at: float = 0.0
    error: str | None = None
    building: asyncio.Task[None] | None = None
    again: bool = False


@dataclass
class _Repository:
    repo: Repo
    swept: bool = False
    branches: dict[str, _Branch] = field(default_factory=dict)


class Snapshots:
    """The snapshots of all repositories. `health(id)` gives a mirror's health, which includes its default branch."""

    def __init__(
        self,
        layout: Layout,
        mirror_of: Callable[[str], Mirror],
        health: Callable[[int], Health],
        *,
        enabled: Callable[[], bool],
    ) -> None:
        self._layout = layout
        self._mirror_of = mirror_of
        self._health = health
        self._enabled = enabled
        self._known: dict[int, _Repository] = {}
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

    def refresh(self, repo: Repo) -> None:
        """Rebuilds outdated snapshots, after the repository's refs moved or when `serve` has just started."""
        branch = self._followed(repo)
        if not self._enabled() or self.trouble or branch is None:
            return
        known = self._repository(repo)
        self._branch(known, branch)
        if not known.swept:
            known.swept = True
            with self._endurance.over(repo.name):
                self._sweep(known)
        for known_branch in list(known.branches.values()):
            self._build(repo, known_branch)

    def forget(self, repo: Repo) -> None:
        """Stops building snapshots of a repository that is no longer served; its snapshots stay on disk."""
        known = self._known.pop(repo.id, None)
        for branch in known.branches.values() if known else ():
            if branch.building is not None and not branch.building.done():
                branch.building.cancel()
                self._ending.add(branch.building)
                branch.building.add_done_callback(self._ending.discard)

    async def delete(self, name: str) -> None:
        """Removes a forgotten repository's snapshots from disk."""
        await self._ended()
        await asyncio.to_thread(shutil.rmtree, self._directory(name), ignore_errors=True)

    async def stop(self) -> None:
        """Ends all running builds."""
        for known in list(self._known.values()):
            self.forget(known.repo)
        await self._ended()

    async def _ended(self) -> None:
        """Waits for cancelled builds, because their threads may still be writing."""
        if self._ending:
            await asyncio.wait(self._ending)

    def current(self, repo: Repo, branch: str | None = None) -> Snapshot | None:
        """The snapshot of a branch (default: the followed one) that exists now, if any."""
        known, name = self._known.get(repo.id), branch or self._followed(repo)
        found = known.branches.get(name) if known and name else None
        return found.current if found else None

    async def get(self, repo: Repo, branch: str | None) -> tuple[Snapshot, Path]:
        """The snapshot of a branch and the path of its tar, which is untouched since it was known to be right.

        Builds it first if necessary. Raises NoSnapshot.
        """
        if not self._enabled():
            raise NoSnapshot("snapshots are off here ([workspace] enabled)")
        if self.trouble:
            raise NoSnapshot("snapshots are off here: their directory cannot be used")
        name = branch or self._followed(repo)
        if name is None:
            raise NoSnapshot("the repository has no branch yet")
        known = self._repository(repo)
        if name not in known.branches and name != self._followed(repo):
            if await self._tip(repo, name) is None:
                raise NoSnapshot(f"there is no branch {name}")
            self._evict(known)
        found = self._branch(known, name)
        found.asked_at = time.monotonic()
        while found.tar is not None and found.current is not None and not found.tar.is_untouched():
            await self._check(repo, found)
        if found.current is None:
            self._build(repo, found)
            assert found.building is not None
            await asyncio.wait([found.building], timeout=DEMAND_WAIT)
        if found.current is None:
            raise NoSnapshot(found.error or f"the snapshot of {name} is being built; try again")
        return found.current, found.place.path(found.current)

    async def check_next(self) -> bool:
        """Reads the tar that was read longest ago, if it is due. Returns whether it was. Raises OSError."""
        oldest: tuple[float, _Repository, _Branch, CheckedFile] | None = None
        for known in self._known.values():
            for branch in known.branches.values():
                tar = branch.tar if branch.current is not None else None
                if tar is not None and (oldest is None or tar.checked_at < oldest[0]):
                    oldest = tar.checked_at, known, branch, tar
        if oldest is None or time.monotonic() - oldest[0] < CHECK_EVERY:
            return False
        _, known, branch, tar = oldest
        if not await self._judge(known.repo, branch, tar, slowly=True) and self._known.get(known.repo.id) is known:
            self.refresh(known.repo)
        return True

    async def _check(self, repo: Repo, branch: _Branch) -> None:
        """Checks a tar that somebody touched before it is sent. Raises NoSnapshot if it cannot be read now."""
        assert branch.tar is not None
        try:
            await self._judge(repo, branch, branch.tar, slowly=False)
        except OSError as error:
            self.look()
            raise NoSnapshot(f"the snapshot cannot be read: {error.strerror}") from error

    async def _judge(self, repo: Repo, branch: _Branch, tar: CheckedFile, *, slowly: bool) -> bool:
        """Reads a tar and returns whether it is right. If not, it is no longer current. Raises OSError."""
        try:
            await (tar.check_slowly() if slowly else tar.check())
        except (FileNotFoundError, NotRight) as error:
            # Every caller that waited for the check gets here, and a build may have replaced the tar meanwhile.
            if branch.tar is tar and branch.current is not None:
                if isinstance(error, NotRight):
                    self._throw_away(repo, branch, error)
                else:
                    log.warning("%s: %s is missing from the disk; rebuilding it", repo.name, branch.current.file)
                    branch.current = None
            return False
        return True

    def _throw_away(self, repo: Repo, branch: _Branch, error: NotRight) -> None:
        self.damaged += 1
        branch.current = None
        branch.place.distrust()
        log.warning(
            "%s: the snapshot of %s was thrown away, because %s; rebuilding it", repo.name, branch.place.branch, error
        )

    def _followed(self, repo: Repo) -> str | None:
        return followed_branch(repo, self._health(repo.id))

    def _repository(self, repo: Repo) -> _Repository:
        return self._known.setdefault(repo.id, _Repository(repo))

    def _branch(self, known: _Repository, name: str) -> _Branch:
        if name not in known.branches:
            known.branches[name] = _Branch(SnapshotPlace(self._directory(known.repo.name), name))
        return known.branches[name]

    def _directory(self, name: str) -> Path:
        return self._layout.workspaces / name

    def _sweep(self, known: _Repository) -> None:
        """Removes the snapshots that an earlier `serve` left for branches that nobody has requested from this one."""
        kept = {branch.place.directory.name for branch in known.branches.values()}
        directory = self._directory(known.repo.name)
        for entry in directory.iterdir() if directory.is_dir() else ():
            if entry.name not in kept:
                _remove(entry)

    def _evict(self, known: _Repository) -> None:
        """Makes room for one more branch. Raises NoSnapshot when all of them are being built."""
        extra = [b for name, b in known.branches.items() if name != self._followed(known.repo)]
        if len(extra) >= MOST_BRANCHES:
            idle = [branch for branch in extra if branch.building is None or branch.building.done()]
            if not idle:
                raise NoSnapshot(f"{len(extra)} other branches are being built right now; try again")
            oldest = min(idle, key=lambda branch: branch.asked_at)
            self._drop(known, oldest)

    def _drop(self, known: _Repository, branch: _Branch) -> None:
        if known.branches.get(branch.place.branch) is branch:
            del known.branches[branch.place.branch]
        _remove(branch.place.directory)

    def _build(self, repo: Repo, branch: _Branch) -> None:
        if branch.building is not None and not branch.building.done():
            branch.again = True
            return
        branch.building = asyncio.create_task(self._run(repo, branch), name=f"snapshot {repo.name}")

    async def _run(self, repo: Repo, branch: _Branch) -> None:
        again = True
        while again:
            branch.again = False
            try:
                async with self._places:
                    await self._ended()
                    await self._build_once(repo, branch)
                branch.error = None
            except EXPECTED as error:
                # Guests see this text, so leave out the paths of this node that an OSError names.
                reason = error.message if isinstance(error, GitmirrorError) else getattr(error, "strerror", None)
                branch.error = reason or "the snapshot cannot be written"
                self.look()
                log.warning("%s: the snapshot of %s failed: %s", repo.name, branch.place.branch, error)
            again = branch.again

    async def _build_once(self, repo: Repo, branch: _Branch) -> None:
        tip = await self._tip(repo, branch.place.branch)
        if tip is None:
            # The branch was deleted upstream, so drop its snapshot.
            branch.current = None
            self._drop(self._repository(repo), branch)
            raise NoSnapshot(f"there is no branch {branch.place.branch}")
        if not branch.looked:
            try:
                branch.current = await asyncio.to_thread(branch.place.load, repo.url)
            except NotRight as error:
                self._throw_away(repo, branch, error)
            branch.tar, branch.looked = branch.place.tar, True
        if branch.current is not None and branch.current.commit == tip:
            return
        mirror = self._mirror_of(repo.name)
        start = time.monotonic()
        branch.current = await build_snapshot(branch.place, mirror, mirror.git.gently(), repo.url, tip)
        branch.tar = branch.place.tar
        # Only now has everybody who was given the previous tar opened it.
        await asyncio.to_thread(branch.place.remove_others, branch.current)
        log.info(
            "%s: snapshot of %s at %s in %.2fs", repo.name, branch.place.branch, tip[:12], time.monotonic() - start
        )

    async def _tip(self, repo: Repo, branch: str) -> str | None:
        ref = f"refs/heads/{branch}"
        return (await self._mirror_of(repo.name).local_refs(ref)).get(ref)


def _remove(directory: Path) -> None:
    """Renames a directory at once and deletes it in a thread, because a tree may have many files."""
    gone = directory.with_name(f".gone-{directory.name}-{time.monotonic_ns()}")
    with contextlib.suppress(FileNotFoundError):
        directory.rename(gone)
        asyncio.get_running_loop().run_in_executor(None, lambda: shutil.rmtree(gone, ignore_errors=True))
