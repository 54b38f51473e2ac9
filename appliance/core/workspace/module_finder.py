"""Knows the submodules of the repositories here: what each branch has and lacks, and who may have which.

A workspace has a submodule only if whoever asks may read its repository. So its shape names the registrations that make
a difference between readers, and before a tar is sent, everything in it is compared with what the reader may have now.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from appliance.core.access.catalog import Catalog
from appliance.core.config.settings import WorkspaceConfig
from appliance.core.git.mirror import Mirror
from appliance.core.models import ALLOWED, Repo
from appliance.core.text import storable
from appliance.core.upstream import Place, place_of
from appliance.core.workspace.cone import directories_above, in_cone
from appliance.core.workspace.history import History
from appliance.core.workspace.shape import Shape, WantedShape
from appliance.core.workspace.shape_choice import AUTO, history_for
from appliance.core.workspace.snapshot_modules import WantedModules
from appliance.core.workspace.snapshot_place import Snapshot, SnapshotPlace
from appliance.core.workspace.submodules import Lack, MissingSubmodule, Submodule, resolve

log = logging.getLogger(__name__)

Bring = Callable[[str], Awaitable[Repo | None]]
"""Has an upstream mirrored here if `[[allow]]` allows it, within its rates; None if it is not."""
Tip = Callable[[], Awaitable[str | None]]
"""Finds out where a branch is; None if there is none."""
MOST_KNOWN = 4096
"""The most branches of which it is known what they have. Beyond that, the one that moved longest ago is forgotten."""
MOST_BROUGHT = 512
"""The most upstreams that one repository's submodules wait for, as many as a workspace has: each new tip may name
thousands of others, and each is asked for at a bounded rate."""
_MAY_COME = (Lack.NOT_MIRRORED, Lack.NO_COMMIT)


@dataclass(frozen=True)
class _Known:
    """What a branch has and lacks, for a reader of everything, by the `catalog` of that time."""

    catalog: Catalog
    commit: str
    found: tuple[Submodule, ...]
    missing: tuple[MissingSubmodule, ...]
    registered: frozenset[int]
    """The registrations of the places that its submodules come from."""
    may_come: frozenset[Place | None]
    """The places of those that are missing, and that may come."""


@dataclass
class _Asked:
    """For what the commit was already looked for elsewhere, so that this happens once."""

    commit: str
    nudged: set[int] = field(default_factory=set)
    brought: set[str] = field(default_factory=set)


class ModuleFinder:
    """Finds submodules by the `catalog` that holds now. `nudge` asks for a refresh of a mirror.

    `bring` is None where nothing is mirrored on demand, and `brings` says whether `[[allow]]` allows anything now.
    `on_use` hears of each submodule that a guest gets in a workspace.
    """

    def __init__(
        self,
        catalog: Callable[[], Catalog],
        mirror_of: Callable[[str], Mirror],
        settings: Callable[[], WorkspaceConfig],
        nudge: Callable[[Repo], object],
        bring: Bring | None = None,
        brings: Callable[[], bool] = lambda: True,
        on_use: Callable[[Repo], object] = lambda _: None,
    ) -> None:
        self._catalog = catalog
        self._mirror_of = mirror_of
        self._settings = settings
        self._nudge = nudge
        self._bring = bring
        self._brings = brings
        self._on_use = on_use
        self._known: dict[tuple[int, str], _Known] = {}
        self._asked: dict[tuple[int, str], _Asked] = {}
        self._seen = catalog()
        self._bringing: dict[asyncio.Task[None], int] = {}
        self._learning: dict[tuple[int, str, str, Catalog], asyncio.Task[_Known]] = {}

    # -- what a branch has --------------------------------------------------------------------------------------------

    async def learn(self, repo: Repo, branch: str, commit: str) -> _Known:
        """Finds out what a branch at `commit` has and lacks, once for all who ask at the same time. Raises GitError."""
        catalog = self._catalog()
        key = (repo.id, branch, commit, catalog)
        if (learning := self._learning.get(key)) is None:
            learning = asyncio.create_task(self._learn(repo, branch, commit, catalog), name=f"modules of {repo.name}")
            self._learning[key] = learning
            learning.add_done_callback(lambda task: self._was_learnt(key, task))
        return await asyncio.shield(learning)

    def _was_learnt(self, key: tuple[int, str, str, Catalog], learning: asyncio.Task[_Known]) -> None:
        del self._learning[key]
        if not learning.cancelled():
            # Retrieved here, because every caller that waited for it may have been cancelled.
            learning.exception()

    async def _learn(self, repo: Repo, branch: str, commit: str, catalog: Catalog) -> _Known:
        found, missing = await resolve(
            repo, commit, find=catalog.by_url, mirror_of=self._mirror_of, may_read=lambda _: True
        )
        urls = {each.url for each in found} | {each.url for each in missing}
        registered = frozenset(other.id for url in urls for other in catalog.by_url(url, url))
        may_come = frozenset(place_of(each.url) for each in missing if each.reason in _MAY_COME)
        known = _Known(catalog, commit, tuple(found), tuple(missing), registered, may_come)
        self._known.pop((repo.id, branch), None)
        self._known[repo.id, branch] = known
        while len(self._known) > MOST_KNOWN:
            del self._known[next(iter(self._known))]
        return known

    async def follow(self, repo: Repo, branch: str, tip: Tip, *, is_asked: bool) -> None:
        """The same for a branch whose snapshots are built, if anybody wants it; the node tries to get what it lacks.

        `is_asked` says that a guest asked for its submodules, and `tip` finds out where the branch is. Raises GitError.
        """
        if not is_asked and not self._settings().submodules and not (self._bring and self._brings()):
            # Reading each tip and its tree costs two processes, and few repositories have submodules.
            self._known.pop((repo.id, branch), None)
            return
        commit = await tip()
        if commit is None:
            return
        known, key = await self.learn(repo, branch, commit), (repo.id, branch)
        asked = self._asked.get(key)
        if asked is None or asked.commit != commit:
            asked = self._asked[key] = _Asked(commit)
        for missing in known.missing:
            if missing.reason is Lack.NO_COMMIT:
                for other in known.catalog.by_url(missing.url, repo.url):
                    if other.id not in asked.nudged:
                        asked.nudged.add(other.id)
                        self._nudge(other)
            elif missing.reason is Lack.NOT_MIRRORED and missing.url not in asked.brought and self._bring is not None:
                if list(self._bringing.values()).count(repo.id) >= MOST_BROUGHT:
                    break
                asked.brought.add(missing.url)
                task = asyncio.create_task(self._fetch(self._bring, missing.url), name=f"submodule of {repo.name}")
                self._bringing[task] = repo.id
                task.add_done_callback(self._bringing.pop)

    async def _fetch(self, bring: Bring, url: str) -> None:
        """Has a submodule's upstream mirrored. When it is, its refs move, and those that lack it are built anew."""
        try:
            await bring(url)
        except Exception:
            log.exception("a submodule's upstream could not be mirrored")

    def forget_branch(self, repo: Repo, branch: str) -> None:
        """Forgets what one branch has, because no snapshot of it is kept that would be built for its next tip."""
        self._known.pop((repo.id, branch), None)
        self._asked.pop((repo.id, branch), None)

    async def stop(self) -> None:
        """Gives up what is being brought and found out."""
        for task in (*self._bringing, *self._learning.values()):
            task.cancel()
        await self.wait()
        await asyncio.gather(*self._learning.values(), return_exceptions=True)

    async def wait(self) -> None:
        """Waits until nothing is being brought any more."""
        if self._bringing:
            await asyncio.wait(self._bringing)

    def forget(self, repo: Repo) -> None:
        """Forgets what a repository's branches have."""
        for key in [key for key in self._known if key[0] == repo.id]:
            del self._known[key]
        for key in [key for key in self._asked if key[0] == repo.id]:
            del self._asked[key]

    def lacks(self, repo: Repo, branch: str | None) -> list[dict[str, Any]]:
        """The submodules that a branch lacks, as `status --json` has them. For operators: guests may not know all."""
        known = self._known.get((repo.id, branch)) if branch is not None else None
        return [
            {
                "path": storable(each.path),
                "url": storable(each.url),
                "commit": each.commit,
                "reason": f"{each.reason}: {each.details}" if each.details else str(each.reason),
            }
            for each in (known.missing if known is not None else ())
        ]

    # -- who may have what --------------------------------------------------------------------------------------------

    async def shape_for(self, repo: Repo, branch: str, tip: Tip, wanted: WantedShape, shape: Shape) -> Shape:
        """The shape of what a guest gets, where `shape` is right but for the submodules.

        `tip` finds out where the branch is, if what it has is not known. Raises GitError.
        """
        if not (shape.modules is not None if wanted.submodules is None else wanted.submodules):
            return replace(shape, modules=None)
        known = self._known.get((repo.id, branch))
        if known is None or known.catalog is not self._catalog():
            commit = await tip()
            if commit is None:
                return shape
            known = await self.learn(repo, branch, commit)
        if not known.found and not known.missing:
            # What everybody gets is the same.
            return replace(shape, modules=() if self._settings().submodules else None)
        private, withheld = [], []
        for repo_id in sorted(known.registered):
            other = known.catalog.enabled(repo_id)
            if other is None:
                continue
            is_open, may_read = known.catalog.private(repo_id) is None, self._may_read(other, wanted)
            if may_read and not is_open:
                private.append(repo_id)
            elif is_open and not may_read:
                withheld.append(repo_id)
        return replace(shape, modules=tuple(private), withheld=tuple(withheld))

    def may_have(self, snapshot: Snapshot, wanted: WantedShape) -> bool:
        """Whether the guest may read, now, every repository that is in a snapshot as a submodule."""
        registered = [self._catalog().enabled(int(each[-1])) for each in snapshot.modules]
        return all(repo is not None and self._may_read(repo, wanted) for repo in registered)

    def _may_read(self, repo: Repo, wanted: WantedShape) -> bool:
        if wanted.may_read is None:
            return self._catalog().private(repo.id) is None
        return wanted.may_read(repo)

    async def wanted(self, repo: Repo, place: SnapshotPlace, commit: str) -> WantedModules:
        """The submodules that a snapshot of `commit` has in the place's shape. Raises GitError."""
        shape = place.shape
        if shape.modules is None:
            return WantedModules()
        catalog, allowed, withheld = self._catalog(), frozenset(shape.modules), frozenset(shape.withheld)

        def may_read(other: Repo) -> bool:
            is_open = catalog.private(other.id) is None
            return other.id not in withheld if is_open else other.id in allowed

        found, missing = await resolve(repo, commit, find=catalog.by_url, mirror_of=self._mirror_of, may_read=may_read)
        inside = in_part(found, shape.only)
        return WantedModules(inside, self._mirror_of, self._history_in(shape), [each.path for each in missing])

    def _history_in(self, shape: Shape) -> Callable[[Submodule, Path], Awaitable[History]]:
        async def history(module: Submodule, directory: Path) -> History:
            settings = self._settings()
            if shape.history is History.TIP or settings.history != AUTO:
                return shape.history
            mirror = self._mirror_of(module.repo.name)
            return await history_for(AUTO, settings.history_below, mirror, directory, module.commit)

        return history

    def used(self, snapshot: Snapshot) -> None:
        """Notes that a guest was given a snapshot, and with it the repositories in it."""
        for each in snapshot.modules:
            if (repo := self._catalog().enabled(int(each[-1]))) is not None:
                self._on_use(repo)

    def needs(self, repo: Repo) -> bool:
        """Whether a branch whose workspaces are kept ready has the repository as a submodule.

        Those that guests brought do not count, because two of them could keep each other for ever.
        """
        return any(
            (of := self._catalog().enabled(repo_id)) is not None
            and of.source != ALLOWED
            and any(each.repo.id == repo.id for each in known.found)
            for (repo_id, _), known in self._known.items()
        )

    # -- what changes them --------------------------------------------------------------------------------------------

    def depends_on(self, repo: Repo) -> list[Repo]:
        """The repositories that lack a submodule which this one, whose mirror has changed, may have now."""
        place = place_of(repo.url)
        return self._enabled(repo_id for (repo_id, _), known in self._known.items() if place in known.may_come)

    def changed(self) -> list[Repo]:
        """The repositories with submodules, if the registry, or who may read what, changed since the last call."""
        if self._seen is self._catalog():
            return []
        self._seen = self._catalog()
        return self._enabled(repo_id for (repo_id, _), known in self._known.items() if known.found or known.missing)

    def _enabled(self, ids: Iterable[int]) -> list[Repo]:
        found = [self._catalog().enabled(repo_id) for repo_id in dict.fromkeys(ids)]
        return [repo for repo in found if repo is not None]


def in_part(modules: Sequence[Submodule], only: tuple[str, ...]) -> list[Submodule]:
    """Those of the submodules, parents before children, that a part of a tree has, with all that is nested in them."""
    inside: dict[str, Submodule] = {}
    outside: set[str] = set()
    for each in modules:
        above = directories_above(each.path)
        if outside.isdisjoint(above) and (any(path in inside for path in above) or in_cone(each.path, only)):
            inside[each.path] = each
        else:
            outside.add(each.path)
    return list(inside.values())
