"""Builds one snapshot for the tip of its branch, unless it is there already, with all that goes into it."""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import Callable

from appliance.core.git.mirror import Mirror
from appliance.core.models import Repo
from appliance.core.process.checked_file import NotRight
from appliance.core.workspace.lfs_ahead import FetchAhead
from appliance.core.workspace.module_finder import ModuleFinder
from appliance.core.workspace.parts import require_directories
from appliance.core.workspace.snapshot_build import build_snapshot
from appliance.core.workspace.snapshot_registry import KeptSnapshot, NoSnapshot
from appliance.core.workspace.tar_checks import TarChecks

log = logging.getLogger(__name__)


class SnapshotBuilder:
    """`modules` knows the submodules of each tip, `lfs` fetches what is in place in it, `checks` judges old tars."""

    def __init__(
        self, mirror_of: Callable[[str], Mirror], modules: ModuleFinder, lfs: FetchAhead | None, checks: TarChecks
    ) -> None:
        self._mirror_of = mirror_of
        self._modules = modules
        self._lfs = lfs
        self._checks = checks

    async def tip(self, repo: Repo, branch: str) -> str | None:
        """Where a branch is, or None if there is none."""
        ref = f"refs/heads/{branch}"
        return (await self._mirror_of(repo.name).local_refs(ref)).get(ref)

    async def build(self, repo: Repo, kept: KeptSnapshot, again: Callable[[], None]) -> None:
        """Makes a snapshot that of the tip. If it has to wait for LFS objects, `again` is called once they are here.

        Builds of one branch run one at a time. Raises GitmirrorError, OSError.
        """
        place = kept.place
        tip = await self.tip(repo, place.branch)
        if tip is None:
            raise NoSnapshot(f"there is no branch {place.branch}")
        if not kept.looked:
            try:
                kept.current = await asyncio.to_thread(place.load, repo.url)
            except NotRight as error:
                self._checks.throw_away(repo, kept, error)
            kept.tar, kept.looked = place.tar, True
        modules = await self._modules.wanted(repo, place, tip)
        lfs, before = self._lfs if place.shape.content else None, kept.current
        same = before if before and before.commit == tip and modules.are_in(before) else None
        if same and not (lfs and lfs.is_outdated(place, same)):
            return
        mirror = self._mirror_of(repo.name)
        await require_directories(mirror, tip, place.branch, place.shape.only)
        start = time.monotonic()
        build = functools.partial(build_snapshot, place, mirror, mirror.git.gently(), repo.url, tip, modules)
        built = await (lfs.build(repo, kept, build, again, same) if lfs else build())
        if built is None:
            return
        kept.current, kept.tar = built, place.tar
        # Only now has everybody who was given the previous tar opened it.
        await asyncio.to_thread(place.remove_others, built)
        seconds = time.monotonic() - start
        log.info("%s: snapshot of %s (%s) at %s in %.2fs", repo.name, place.branch, place.shape.key, tip[:12], seconds)
