"""What an image has besides the tree and the history of its commit: submodules, and LFS files in place.

A drive is of files, so what is not on this node when it is built is not in it. A submodule is left out if its upstream
is not mirrored here, if whoever gets the drive may not read it, or if no branch or tag of it has the commit. An LFS
object that the upstream does not give in time leaves the pointer in place of the file.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from appliance.core.git.mirror import QUICK, Mirror
from appliance.core.lfs.pointers import Pointer
from appliance.core.models import Repo
from appliance.core.workspace.disk.order import LargeFile, OrderedModule
from appliance.core.workspace.disk.upstream_commits import UpstreamRefs
from appliance.core.workspace.lfs_files import LfsSource
from appliance.core.workspace.submodules import Lack, MissingSubmodule, Submodule, resolve

log = logging.getLogger(__name__)

MOST_REMEMBERED = 64
"""Commits whose LFS files are remembered."""
MOST_NAMED = 100
"""The most missing things that a lease names."""
NO_OBJECT = "its LFS object is not on this node"

_MAY_COME = (Lack.NOT_MIRRORED, Lack.NO_COMMIT, Lack.UNREADABLE)

Find = Callable[[str, str], Sequence[Repo]]
"""The registrations whose upstream is where a URL leads, for a `.gitmodules` in a repository with another URL."""
FindLarge = Callable[[Mirror, str], Awaitable[dict[str, Pointer]]]
"""Returns the LFS files of a commit by path. Raises GitmirrorError."""
Reader = Callable[[Repo], bool]
"""Whether somebody may read a repository."""


@dataclass(frozen=True)
class Missing:
    """A path of the workspace that is not as a checkout leaves it, and why."""

    path: str
    reason: str


@dataclass(frozen=True)
class DiskContents:
    """What an image has besides the commit.

    `members` are the ids of the registrations among its submodules, and `private` those of private ones. `wanted` are
    the URLs of submodules that may be mirrored here later. `seen` is as in `DiskOrder`.
    """

    modules: tuple[OrderedModule, ...] = ()
    large: tuple[LargeFile, ...] = ()
    seen: str = ""
    private: tuple[int, ...] = ()
    members: frozenset[int] = frozenset()
    missing: tuple[Missing, ...] = ()
    wanted: frozenset[str] = frozenset()

    def has_same_modules(self, other: DiskContents) -> bool:
        """Whether the submodules and the refs of their mirrors are the same; LFS objects may have come or gone."""
        return self.seen == other.seen and [each.without_large() for each in self.modules] == [
            each.without_large() for each in other.modules
        ]


class ContentsFinder:
    """Finds what images have.

    `find` is `Catalog.by_url`. `find_large` returns the LFS files of a commit, by path. `on_arrival` is called with the
    id of a repository whose LFS objects arrived after nobody waited for them any more.
    """

    def __init__(
        self,
        mirror_of: Callable[[str], Mirror],
        *,
        find: Find,
        is_private: Callable[[Repo], bool],
        objects: LfsSource,
        find_large: FindLarge,
        on_arrival: Callable[[int], None],
    ) -> None:
        self._mirror_of = mirror_of
        self._find = find
        self._is_private = is_private
        self._objects = objects
        self._find_large = find_large
        self._on_arrival = on_arrival
        self._refs: dict[str, UpstreamRefs] = {}
        self._large: OrderedDict[tuple[str, str], dict[str, Pointer]] = OrderedDict()
        self._on_upstream: OrderedDict[tuple[str, str], bytes] = OrderedDict()
        self._fetching: dict[tuple[int, str], asyncio.Task[None]] = {}
        self._late: set[tuple[int, str]] = set()
        """What is still being fetched for images that were built without it."""

    async def of(
        self, repo: Repo, commit: str, *, may_read: Reader | None, content: bool, seconds: float
    ) -> DiskContents:
        """The contents of an image of `commit`, without submodules if `may_read` is None.

        With `content`, waits at most `seconds` for LFS objects that are missing. Raises GitmirrorError, OSError.
        """
        found: list[Submodule] = []
        missing: list[Missing] = []
        wanted: set[str] = set()
        digests: list[bytes] = []
        if may_read is not None:
            found, lacking = await resolve(
                repo, commit, find=self._find, mirror_of=self._mirror_of, may_read=may_read
            )  # fmt: skip
            missing = [Missing(each.path, _reason(each)) for each in lacking]
            wanted = {each.url for each in lacking if each.reason in _MAY_COME}
            found, dropped = await self._on_branches(found, digests)
            missing += dropped
        end = asyncio.get_running_loop().time() + seconds
        members = [(repo, commit, ""), *((each.repo, each.commit, each.path) for each in found)]
        large = {}
        for owner, oid, path in members if content else ():
            left = max(0.0, end - asyncio.get_running_loop().time())
            large[path], lacking_files = await self._large_files(owner, oid, path, left)
            missing += lacking_files
        modules = tuple(self._ordered(each, large.get(each.path, ())) for each in found)
        private = sorted({each.repo.id for each in found if self._is_private(each.repo)})
        seen = hashlib.sha256(b"".join(digests)).hexdigest() if digests else ""
        return DiskContents(
            modules, large.get("", ()), seen, tuple(private), frozenset(each.repo.id for each in found),
            tuple(missing), frozenset(wanted),
        )  # fmt: skip

    def leads_to(self, urls: Iterable[str], base: str, repo: Repo) -> bool:
        """Whether one of these URLs, in a `.gitmodules` of the repository at `base`, is that of `repo`."""
        return any(each.id == repo.id for url in urls for each in self._find(url, base))

    # -- submodules ---------------------------------------------------------------------------------------------------

    async def _on_branches(
        self, modules: Sequence[Submodule], digests: list[bytes]
    ) -> tuple[list[Submodule], list[Missing]]:
        """Those whose commits upstream has, and the rest; adds a digest of the refs of each mirror that was asked."""
        kept: list[Submodule] = []
        missing: list[Missing] = []
        lost: list[str] = []
        for module in modules:
            name = module.repo.name
            refs = self._refs.setdefault(name, UpstreamRefs(self._mirror_of(name)))
            digest = await refs.digest()
            digests.append(digest)
            if module.git.startswith(tuple(lost)):
                continue
            if len(module.commit) != 40:
                missing.append(Missing(module.path, "its object ids are not SHA-1"))
            elif not await self._is_on_upstream(name, module.commit, digest):
                missing.append(Missing(module.path, "no branch or tag of its mirror has the commit"))
            else:
                kept.append(module)
                continue
            lost.append(f"{module.git}/modules/")
        return kept, missing

    async def _is_on_upstream(self, name: str, commit: str, digest: bytes) -> bool:
        """Whether an upstream branch or tag has a commit. Recordings of agents and what upstream dropped do not."""
        if self._on_upstream.get((name, commit)) == digest:
            return True
        mirror = self._mirror_of(name)
        output = await mirror.git.run(
            "for-each-ref", "--count=1", f"--contains={commit}", "--format=%(refname)", "refs/heads", "refs/tags",
            cwd=mirror.path, deadline=QUICK,
        )  # fmt: skip
        if not output.stdout:
            return False
        self._on_upstream[name, commit] = digest
        while len(self._on_upstream) > 16 * MOST_REMEMBERED:
            self._on_upstream.popitem(last=False)
        return True

    def _ordered(self, module: Submodule, large: tuple[LargeFile, ...]) -> OrderedModule:
        repo = module.repo
        identity = f"{repo.id} {'private' if self._is_private(repo) else 'open'} {repo.url}"
        return OrderedModule(
            module.path, module.git, module.name, module.url, module.commit, module.update,
            repo.name, identity, str(self._mirror_of(repo.name).path), large,
        )  # fmt: skip

    # -- LFS files ----------------------------------------------------------------------------------------------------

    async def _large_files(
        self, repo: Repo, commit: str, top: str, seconds: float
    ) -> tuple[tuple[LargeFile, ...], list[Missing]]:
        """The LFS files of the tree at `top` whose objects are here after at most `seconds`, and the others."""
        key = repo.name, commit
        pointers = self._large.get(key)
        if pointers is None:
            pointers = self._large[key] = await self._find_large(self._mirror_of(repo.name), commit)
            while len(self._large) > MOST_REMEMBERED:
                self._large.popitem(last=False)
        self._large.move_to_end(key)
        absent = self._absent(repo, pointers)
        if absent and seconds:
            await self._fetch(repo, commit, absent, seconds)
        large: list[LargeFile] = []
        missing: list[Missing] = []
        for path, pointer in pointers.items():
            file = self._objects.path_if_here(repo, pointer.oid)
            if file is None or not _has_size(file, pointer.size):
                missing.append(Missing(f"{top}/{path}" if top else path, NO_OBJECT))
            else:
                large.append(LargeFile(path, pointer.oid, str(file)))
        return tuple(large), missing

    def _absent(self, repo: Repo, pointers: Mapping[str, Pointer]) -> list[Pointer]:
        wanted = dict.fromkeys(pointers.values())
        return [pointer for pointer in wanted if self._objects.path_if_here(repo, pointer.oid) is None]

    async def _fetch(self, repo: Repo, commit: str, pointers: Sequence[Pointer], seconds: float) -> None:
        """Fetches objects, which goes on after `seconds` without this."""
        key = repo.id, commit
        task = self._fetching.get(key)
        if task is None:
            task = self._fetching[key] = asyncio.create_task(self._bring(key, repo, pointers), name="LFS for disks")
        done, _ = await asyncio.wait([task], timeout=seconds)
        if not done:
            log.info("%s: a disk does not wait longer for LFS objects of %s", repo.name, commit[:12])
            self._late.add(key)

    async def _bring(self, key: tuple[int, str], repo: Repo, pointers: Sequence[Pointer]) -> None:
        try:
            here = await self._objects.fetch(repo, pointers)
        finally:
            del self._fetching[key]
            was_late = key in self._late
            self._late.discard(key)
        if here and was_late:
            self._on_arrival(repo.id)

    async def stop(self) -> None:
        """Ends what is being fetched."""
        tasks = list(self._fetching.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _has_size(file: Path, size: int) -> bool:
    """Whether an object is as large as its pointer says; for another one, git-lfs would make another pointer."""
    try:
        return file.stat().st_size == size
    except OSError:
        return False


def named(missing: Collection[Missing]) -> list[dict[str, str]]:
    """The first of what is missing, as the document of a lease has it."""
    return [{"path": each.path, "reason": each.reason} for each in list(missing)[:MOST_NAMED]]


def _reason(module: MissingSubmodule) -> str:
    return f"{module.reason}: {module.details}" if module.details else str(module.reason)
