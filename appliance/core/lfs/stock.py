"""The LFS objects on disk, and which of them are evicted to make room. Belongs to one event loop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import re
import shutil
import time
from collections import OrderedDict
from collections.abc import Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from appliance.core.errors import NoRoom
from appliance.core.models import Repo
from appliance.core.names import is_repo_name
from appliance.core.process.atomic_file import write_atomically
from appliance.core.process.checked_file import CHECK_EVERY, CheckedFile, Identity, NotRight
from appliance.core.process.disk import LOW, free_bytes
from appliance.core.units import format_size
from appliance.core.upstream import same_upstream

log = logging.getLogger(__name__)

PROTECTED = 60.0
"""Seconds after its last use for which an object is not evicted, because a caller may not have opened it yet."""
_OID = re.compile(r"[0-9a-f]{64}")
_UPSTREAM = ".upstream"
"""A file in a repository's directory that names the upstream whose objects these are."""
_GROWING = ".new"
_GONE = "+gone-"
"""Begins the name of a directory that is being removed. No repository's name has a plus."""


@dataclass
class _Object:
    repo: str
    file: CheckedFile
    size: int
    used_at: float
    """On the monotonic clock."""
    last: float
    """The same in Unix seconds, also of a use before this `serve`."""
    users: int = 0


@dataclass(frozen=True)
class ColdObject:
    """An object that can be removed to make room, or that was: its bytes, and its last use in Unix seconds."""

    repo: str
    oid: str
    size: int
    used_at: float


class LfsStock:
    """The objects below `directory`, at most `budget` bytes. An object belongs to one repository (see `Layout.lfs`)."""

    def __init__(self, directory: Path, budget: int) -> None:
        self._directory = directory
        self.budget = budget
        self._objects: OrderedDict[tuple[str, str], _Object] = OrderedDict()
        """The objects by repository and id, the least recently used first."""
        self._upstreams: dict[str, str] = {}
        self._removing = ThreadPoolExecutor(1, thread_name_prefix="LFS removal")
        self._number = 0
        self.bytes = 0
        self.reserved = 0
        """Bytes of objects that are being fetched, as far as they have room."""
        self.evicted = 0
        self.damaged = 0
        self.trouble: str | None = None
        """Why no objects can be stored, as a sentence; None if they can."""

    def look(self) -> bool:
        """Checks whether objects can be stored. Returns True if that works again, so that `load` may find others."""
        probe, before = self._directory / ".probe", self.trouble
        try:
            if self._directory.exists():
                probe.touch()
                probe.unlink()
            self.trouble = None
        except OSError as error:
            self.trouble = f"LFS objects cannot be stored in {self._directory}: {error.strerror}"
            if self.trouble != before:
                log.error("%s", self.trouble)
        return before is not None and self.trouble is None

    def load(self) -> None:
        """Finds the objects of an earlier `serve`, and removes what it had only fetched, or removed, in part."""
        found: list[tuple[float, str, str, Path, int]] = []
        for left in self._directory.glob(f"*/{_GONE}*"):
            shutil.rmtree(left, ignore_errors=True)
        for place in sorted(self._directory.glob("*/*")):
            name = f"{place.parent.name}/{place.name}"
            if not is_repo_name(name):
                continue
            shutil.rmtree(place / _GROWING, ignore_errors=True)
            with contextlib.suppress(OSError, UnicodeDecodeError):
                self._upstreams[name] = (place / _UPSTREAM).read_text(encoding="utf-8").strip()
            for path in place.glob("??/*"):
                with contextlib.suppress(OSError):
                    status = path.lstat()
                    if _OID.fullmatch(path.name) and path.is_file() and not path.is_symlink():
                        found.append((max(status.st_atime, status.st_mtime), name, path.name, path, status.st_size))
        for last, name, oid, path, size in sorted(found):
            # Read before it is sent, and soon in any case, because it may have changed while `serve` was down.
            file = CheckedFile(path, None, oid)
            file.checked_at = -math.inf
            self._put(name, oid, file, size, -math.inf, last)

    def _put(self, name: str, oid: str, file: CheckedFile, size: int, used_at: float, last: float) -> None:
        self._drop(name, oid, unlink=False)
        self._objects[name, oid] = _Object(name, file, size, used_at, last)
        self.bytes += size

    def belongs_to(self, repo: Repo) -> bool:
        """Whether the objects under the repository's name are of its upstream; removes those of another upstream."""
        known = self._upstreams.get(repo.name)
        if known == repo.url:
            return True
        with contextlib.suppress(Exception):
            if known is not None and same_upstream(known, repo.url):
                return True
        if known is not None or self._place(repo.name).exists():
            self.purge(repo.name)
        return False

    def path(self, repo: Repo, oid: str) -> Path | None:
        """The file of an object, or None if it is missing or its size has changed. Marks it used."""
        found = self._objects.get((repo.name, oid))
        if found is None or not self.belongs_to(repo):
            return None
        if not self._is_usable(found):
            self._drop(repo.name, oid, unlink=False)
            return None
        found.used_at, found.last = time.monotonic(), time.time()
        self._objects.move_to_end((repo.name, oid))
        return found.file.path

    @staticmethod
    def _is_usable(found: _Object) -> bool:
        try:
            return os.stat(found.file.path).st_size == found.size
        except OSError:
            return False

    async def check(self, repo: Repo, oid: str) -> None:
        """Reads an object's file if it was touched, or not read since `serve` started; removes a wrong one."""
        found = self._objects.get((repo.name, oid))
        if found is not None and not found.file.is_untouched():
            await self._judge(found, oid, slowly=False)

    async def check_next(self) -> bool:
        """Reads the object that was read longest ago, if it is due. Returns whether one was. Raises OSError."""
        due = time.monotonic() - CHECK_EVERY
        key = min(self._objects, key=lambda each: self._objects[each].file.checked_at, default=None)
        if key is None or self._objects[key].file.checked_at > due:
            return False
        await self._judge(self._objects[key], key[1], slowly=True)
        return True

    async def _judge(self, found: _Object, oid: str, *, slowly: bool) -> None:
        try:
            await (found.file.check_slowly() if slowly else found.file.check())
        except (NotRight, OSError) as error:
            if self._objects.get((found.repo, oid)) is found:
                self._drop(found.repo, oid)
                if not isinstance(error, FileNotFoundError):
                    self.damaged += 1
                    log.warning("%s: the LFS object %s was removed, because %s", found.repo, oid, error)

    @contextlib.contextmanager
    def in_use(self, repo: Repo, oid: str) -> Iterator[None]:
        """A context in which an object is not evicted."""
        found = self._objects.get((repo.name, oid))
        if found is not None:
            found.users += 1
        try:
            yield
        finally:
            if found is not None:
                found.users -= 1
                found.used_at, found.last = time.monotonic(), time.time()

    # Adding and removing

    def begin(self, repo: Repo) -> Path:
        """The path of a new file for an object that is being fetched. Raises OSError."""
        place = self._place(repo.name) / _GROWING
        # Asked before there is a directory: one without an upstream would be removed.
        is_known = self.belongs_to(repo)
        place.mkdir(parents=True, exist_ok=True, mode=0o750)
        if not is_known:
            write_atomically(self._place(repo.name) / _UPSTREAM, f"{repo.url}\n", 0o640)
            self._upstreams[repo.name] = repo.url
        self._number += 1
        return place / f"{self._number:x}"

    def add(self, repo: Repo, oid: str, growing: Path, size: int) -> None:
        """Takes a complete file, whose SHA-256 is `oid`. Raises OSError."""
        path = self._place(repo.name) / oid[:2] / oid
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o750)
        growing.rename(path)
        file = CheckedFile(path, Identity.of(path.stat()), oid)
        self._put(repo.name, oid, file, size, time.monotonic(), time.time())

    def make_room(self, size: int) -> None:
        """Reserves `size` bytes, evicting the least recently used objects. Raises NoRoom if that is not enough.

        Call `give_back` with as many bytes later.
        """
        if size > self.budget:
            raise NoRoom(f"an LFS object of {format_size(size)} does not fit into [cache] lfs_budget")
        while self.bytes + self.reserved + size > self.budget:
            if self.evict_oldest("[cache] lfs_budget is used up") is None:
                raise NoRoom("[cache] lfs_budget is used up by LFS objects that are in use; try again")
        disk = self._disk()
        kept = _kept_free(disk)
        while free_bytes(disk) - size < kept:
            if self.evict_oldest("the disk is nearly full") is None:
                raise NoRoom("this node's disk has no room for LFS objects")
        self.reserved += size

    def require_room(self, size: int) -> None:
        """Raises NoRoom if `make_room` could not make room for so many bytes now. Evicts nothing."""
        cold = sum(each.size for each in self.cold())
        if self.bytes - cold + self.reserved + size > self.budget:
            raise NoRoom("[cache] lfs_budget is used up by LFS objects that are in use; try again")
        disk = self._disk()
        if free_bytes(disk) + cold - size < _kept_free(disk):
            raise NoRoom("this node's disk has no room for LFS objects")

    def give_back(self, size: int) -> None:
        """Ends a reservation."""
        self.reserved -= size

    async def set_budget(self, budget: int) -> None:
        """Changes the budget. Objects that no longer fit are evicted, the least recently used first."""
        self.budget = budget
        while self.bytes > self.budget and self.evict_oldest("[cache] lfs_budget is smaller", spare=bool(self.budget)):
            # There may be tens of thousands, and guests are served between two of them.
            await asyncio.sleep(0)

    def cold(self, *, spare: bool = True) -> Iterator[ColdObject]:
        """The objects that can be evicted, the least recently used first.

        With `spare`, it skips those that are in use or were used just now. Others may be open, too: a reader that has
        the file open can still read all of it.
        """
        until = time.monotonic() - PROTECTED
        for (name, oid), found in self._objects.items():
            if not spare or (not found.users and found.used_at <= until):
                yield ColdObject(name, oid, found.size, found.last)

    def evict_oldest(self, reason: str, *, spare: bool = True) -> ColdObject | None:
        """Removes the first of `cold`, and logs it with the reason; None if there is none to remove."""
        cold = next(self.cold(spare=spare), None)
        if cold is not None:
            self._drop(cold.repo, cold.oid)
            self.evicted += 1
            log.info("%s: the LFS object %s (%s) was evicted: %s", cold.repo, cold.oid, format_size(cold.size), reason)
        return cold

    def purge(self, name: str) -> Future[None]:
        """Forgets all objects of a repository at once. Their files are gone when the result is there."""
        for key in [key for key in self._objects if key[0] == name]:
            self._drop(*key, unlink=False)
        self._upstreams.pop(name, None)
        # Aside, because the next object under this name may come before they are gone.
        place = self._place(name)
        gone = place.with_name(f"{_GONE}{place.name}-{time.monotonic_ns()}")
        try:
            place.rename(gone)
        except OSError:
            # They must not pass for objects of the next upstream under this name.
            shutil.rmtree(place, ignore_errors=True)
        return self._removing.submit(shutil.rmtree, gone, ignore_errors=True)

    def keep_only(self, names: Collection[str]) -> None:
        """Removes the objects of all other repositories, as `purge` does."""
        for name in {*self._upstreams, *(key[0] for key in self._objects)}.difference(names):
            log.info("%s: its LFS objects were removed, because it has no mirror", name)
            self.purge(name)

    def gauges(self) -> Iterator[tuple[str, str, float]]:
        """The current values for /metrics: name, help text, value."""
        yield "lfs_bytes", "Bytes of LFS objects on disk.", self.bytes
        yield "lfs_budget_bytes", "The most bytes that LFS objects may take on disk.", self.budget
        yield "lfs_objects", "LFS objects on disk.", len(self)
        yield "lfs_evicted", "LFS objects removed to make room since the start.", self.evicted
        yield "damaged_lfs_objects", "LFS objects that were found changed, since the start.", self.damaged

    def __len__(self) -> int:
        return len(self._objects)

    def _disk(self) -> Path:
        return self._directory if self._directory.exists() else self._directory.parent

    def _place(self, name: str) -> Path:
        return self._directory / name

    def _drop(self, name: str, oid: str, *, unlink: bool = True) -> None:
        found = self._objects.pop((name, oid), None)
        if found is None:
            return
        self.bytes -= found.size
        if unlink:
            with contextlib.suppress(OSError):
                found.file.path.unlink()


def _kept_free(disk: Path) -> int:
    """Bytes that stay free for mirrors and recordings: a gigabyte, or a sixteenth of a small disk."""
    try:
        found = os.statvfs(disk)
    except OSError:
        return LOW
    return min(LOW, found.f_blocks * found.f_frsize // 16)
