"""Disks of real mirrors and a real database, with a builder that writes small files in place of file systems."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from appliance.core.access.catalog import Catalog
from appliance.core.config.settings import WorkspaceConfig
from appliance.core.git.mirror import Mirror
from appliance.core.git.mirrors import Mirrors
from appliance.core.lfs.pointers import Pointer
from appliance.core.models import Health, Repo
from appliance.core.store.database import Database
from appliance.core.store.disk_leases import DiskLeaseStore
from appliance.core.workspace.disk.disks import Disks
from appliance.core.workspace.disk.images import DiskForm, DiskImage, DiskPlace
from appliance.core.workspace.disk.order import DiskOrder
from appliance.core.workspace.disk.repository import BuildDisk
from tests.git.lab import Lab
from tests.support.generate import add_commit, create_repository
from tests.support.gitutil import git

_T = TypeVar("_T")

BLOCK = 4096
NAME = "acme/widgets"
SOON = 30.0
"""Seconds within which what happens in the background has happened; for hangs alone."""


@dataclass
class StandIn:
    """Keeps the rules of the builder: one blob file for a generation, and a new one when upstream dropped a commit."""

    orders: list[DiskOrder] = field(default_factory=list)
    """Every order, in the order in which they began."""
    gate: asyncio.Event | None = None
    """What each build waits for, if anything."""
    late: asyncio.Event | None = None
    """The same when it has begun a generation and not yet written an image."""
    error: Exception | None = None
    running: int = 0
    most: int = 0
    """The most builds at once, of all repositories."""
    tree_size: int = BLOCK
    data_size: int = 2 * BLOCK
    """What each image adds to the blob file."""

    async def __call__(self, place: DiskPlace, mirror: Mirror, order: DiskOrder) -> DiskImage:
        self.orders.append(order)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            if self.gate is not None:
                await self.gate.wait()
            if self.error is not None:
                raise self.error
            return await self._build(place, mirror, order)
        finally:
            self.running -= 1

    async def _build(self, place: DiskPlace, mirror: Mirror, order: DiskOrder) -> DiskImage:
        number = max(place.generations(), default=0)
        mine = [image for image in place.images() if image.generation == number]
        if not number or any([await self._is_out(image, order, mirror) for image in mine]):
            number, mine = place.next_generation(), []
        for image in mine:
            if (image.branch, image.commit, image.form) == (order.branch, order.commit, order.form):
                return image
        images = place.generation(number) / "images"
        images.mkdir(parents=True, exist_ok=True)
        with (place.generation(number) / "data").open("ab") as data:
            data.write(b"d" * self.data_size)
        if self.late is not None:
            await self.late.wait()
        name = f"{order.commit[:12]}-{len(self.orders)}.{order.form}"
        image = DiskImage(
            order.repo, order.url, order.branch, order.commit, order.form, order.history, order.visibility,
            number, name, self.tree_size, (place.generation(number) / "data").stat().st_size, "", time.time(),
        )  # fmt: skip
        place.tree(image).write_bytes(order.commit.encode().ljust(self.tree_size, b"t"))
        place.description(image).write_text(place.describe(image))
        return image

    async def _is_out(self, image: DiskImage, order: DiskOrder, mirror: Mirror) -> bool:
        if (image.url, image.visibility, image.history) != (order.url, order.visibility, order.history):
            return True
        found = await mirror.git.run(
            "for-each-ref", "--count=1", f"--contains={image.commit}", "refs/heads/", cwd=mirror.path, deadline=60
        )
        return not found.stdout

    def built(self, branch: str) -> list[str]:
        """The commits that were ordered of a branch."""
        return [order.commit for order in self.orders if order.branch == branch]


class ObjectsInFiles:
    """LFS objects in files below `directory`, and what an upstream has in `upstream`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.upstream: dict[str, bytes] = {}
        self.gate: asyncio.Event | None = None
        """What each fetch waits for, if anything."""
        self.asked: list[list[str]] = []

    def path_if_here(self, repo: Repo, oid: str) -> Path | None:
        """The file of an object."""
        path = self.directory / str(repo.id) / oid
        return path if path.exists() else None

    async def fetch(self, repo: Repo, pointers: Sequence[Pointer]) -> set[str]:
        """Takes what the upstream has."""
        self.asked.append([pointer.oid for pointer in pointers])
        if self.gate is not None:
            await self.gate.wait()
        here = {pointer.oid for pointer in pointers if pointer.oid in self.upstream}
        (self.directory / str(repo.id)).mkdir(parents=True, exist_ok=True)
        for oid in here:
            (self.directory / str(repo.id) / oid).write_bytes(self.upstream[oid])
        return here


class Bench:
    """A state directory with mirrors, and `Disks` over it as `serve` has it."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.lab = Lab(top / "state")
        self.database = Database(self.lab.layout.database)
        self.now = time.time()
        self.leases = DiskLeaseStore(self.database, lambda: self.now)
        self.builder = StandIn()
        self.settings = WorkspaceConfig()
        self.private = False
        self.secrets: set[int] = set()
        """The ids of private registrations, beside `private`, which makes all of them private."""
        self.readers: dict[str | None, set[int]] = {}
        """The ids of the private registrations that known guests may read, by name."""
        self.objects = ObjectsInFiles(top / "objects")
        self.build: BuildDisk = self.builder
        self.repos: list[Repo] = []
        self.disks = self.make()

    def make(self) -> Disks:
        """What a new start of `serve` has."""
        mirrors = Mirrors(self.lab.layout, self.lab.git)
        self.disks = Disks(
            self.lab.layout,
            mirrors,
            lambda _: Health(cloned=True, head="refs/heads/main"),
            self.leases,
            settings=lambda: self.settings,
            repos=lambda: self.repos,
            is_private=self.is_private,
            build=self.build,
            find=lambda url, base: Catalog(self.repos).by_url(url, base),
            reader_of=lambda guest: lambda repo: repo.id in self.readers.get(guest, ()) or not self.is_private(repo),
            objects=self.objects,
        )
        return self.disks

    def is_private(self, repo: Repo) -> bool:
        """Whether a registration is private."""
        return self.private or repo.id in self.secrets

    def add(self, name: str = NAME, *, repo_id: int = 1, upstream: Path | None = None) -> Repo:
        """Register a repository whose upstream has one commit on main, and mirror it."""
        if upstream is None:
            upstream = create_repository(self.top / f"upstream-{repo_id}.git")
            add_commit(upstream, "main", {"README.md": f"{name}\n"})
        repo = replace(self.lab.repo(upstream, name=name), id=repo_id)
        self.repos = [each for each in self.repos if each.name != name] + [repo]
        return repo

    async def sync(self, repo: Repo) -> None:
        """Bring the mirror to its upstream, and tell the disks as the event does."""
        await asyncio.to_thread(self.lab.refresh, repo)
        self.disks.refresh(repo)

    async def lease(self, repo: Repo, **changed: Any) -> dict[str, Any]:
        """Lease a disk for an hour, of the followed branch unless told otherwise."""
        given: dict[str, Any] = {
            "branch": None, "commit": None, "guest": None, "ttl": 3600.0, "form": DiskForm.EROFS,
        }  # fmt: skip
        return await self.disks.lease(repo, **(given | changed))

    def place(self, repo: Repo) -> DiskPlace:
        """Where the disks of a repository are."""
        return DiskPlace(self.lab.layout.disks / repo.name)

    def commits(self, repo: Repo) -> list[str]:
        """The commits of the images on disk, the oldest first."""
        return [image.commit for image in self.place(repo).images()]

    def run(self, work: Callable[[Bench], Coroutine[Any, Any, _T]]) -> _T:
        """Run a whole test in one event loop."""

        async def whole() -> _T:
            try:
                async with asyncio.timeout(2 * SOON):
                    return await work(self)
            finally:
                for gate in (self.builder.gate, self.builder.late):
                    if gate is not None:
                        gate.set()
                await self.disks.stop()

        return asyncio.run(whole())


@contextmanager
def benches(top: Path) -> Iterator[Bench]:
    """A bench that is closed afterwards."""
    bench = Bench(top)
    try:
        yield bench
    finally:
        bench.database.close()
        bench.lab.close()


async def until(true: Callable[[], object]) -> None:
    """Wait for something that happens in the background."""
    async with asyncio.timeout(SOON):
        while not true():
            await asyncio.sleep(0.01)


async def fails(work: Awaitable[Any], kind: type[BaseException]) -> str:
    """The message of the error that `work` ends with."""
    try:
        await work
    except kind as error:
        return str(error)
    raise AssertionError(f"no {kind.__name__}")


def paths(document: dict[str, Any]) -> list[Path]:
    """The drives of a lease."""
    return [Path(drive["path"]) for drive in document["drives"]]


def advance(repo: Repo, branch: str = "main", text: str = "more\n") -> str:
    """Add a commit to a branch of the upstream; returns it."""
    return add_commit(Path(repo.url), branch, {"more.txt": text}, f"A change: {text}")


def rewrite(repo: Repo, branch: str = "main", text: str = "instead\n") -> str:
    """Replace the last commit of a branch of the upstream by another one; returns that."""
    upstream = Path(repo.url)
    git("update-ref", f"refs/heads/{branch}", f"refs/heads/{branch}~1", cwd=upstream)
    return advance(repo, branch, text)


def branch_off(repo: Repo, branch: str, start: str = "main") -> str:
    """Begin a branch in the upstream with a commit of its own; returns that."""
    git("branch", branch, start, cwd=Path(repo.url))
    return advance(repo, branch, f"{branch}\n")


def tip(repo: Repo, branch: str = "main") -> str:
    """The tip of a branch of the upstream."""
    return git("rev-parse", f"refs/heads/{branch}", cwd=Path(repo.url))
