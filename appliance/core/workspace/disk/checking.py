"""Reads drives again, slowly, because a disk may corrupt what nobody touched, and no guest would notice.

A VMM reads the files itself, so nothing can be checked at the moment of use. A generation with a wrong byte keeps
serving the leases that it has, since there is nothing to put in its place, but no new lease gets it.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import sqlite3
import threading
import time
from asyncio import get_running_loop
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

from appliance.core.process.checked_file import CHECK_EVERY, CHECK_RATE, CheckedFile, NotRight, Pace, use_idle_disk
from appliance.core.workspace.disk.generation import CATALOGUE
from appliance.core.workspace.disk.images import DiskImage, DiskPlace

log = logging.getLogger(__name__)

_DAMAGE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR)
_CHUNK = 2**20
LEFT_BEHIND = "catalogue.damaged"
"""What the catalogue of a generation with a wrong byte is called, so that no build goes on in it."""


class DiskCheck:
    """Checks the drives below `directory`. `on_damage` gets the name of a repository whose drives are wrong."""

    def __init__(self, directory: Path, on_damage: Callable[[str], None]) -> None:
        self._directory = directory
        self._on_damage = on_damage
        self._checked_at: dict[Path, float] = {}
        self._looked = False
        self.damaged = 0
        """How many generations were found to be wrong since the start."""
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="check of disks", initializer=use_idle_disk)

    async def check_next(self, rate: float = CHECK_RATE) -> bool:
        """Reads the generation that was read longest ago, if it is due. Returns whether it was. Raises OSError."""
        due = await get_running_loop().run_in_executor(self._thread, self._next)
        if due is None:
            return False
        stop = threading.Event()
        self._checked_at[due] = time.monotonic()
        try:
            await get_running_loop().run_in_executor(self._thread, verify_generation, due, rate, stop)
        except NotRight as error:
            name = str(due.parent.relative_to(self._directory))
            self.damaged += 1
            log.error("%s: disks of generation %s are damaged: %s; later leases get others", name, due.name, error)
            with contextlib.suppress(FileNotFoundError):
                (due / CATALOGUE).rename(due / LEFT_BEHIND)
            self._on_damage(name)
        finally:
            # If the task was cancelled, this ends the thread, so that no exit waits for a large file.
            stop.set()
        return True

    def _next(self) -> Path | None:
        found = {path.parent for path in self._directory.glob(f"*/*/*/{CATALOGUE}") if path.parent.name.isdecimal()}
        # What was there at the start may have changed since it was written; what was built since then was just written.
        new = time.monotonic() if self._looked else time.monotonic() - CHECK_EVERY
        self._looked = True
        self._checked_at = {path: self._checked_at.get(path, new) for path in found}
        oldest = min(self._checked_at, key=lambda path: self._checked_at[path], default=None)
        return oldest if oldest and time.monotonic() - self._checked_at[oldest] >= CHECK_EVERY else None


def verify_generation(directory: Path, rate: float | None = None, stop: threading.Event | None = None) -> None:
    """Reads everything in a generation, at most `rate` bytes per second, until `stop` is set. Raises NotRight, OSError.

    What is added or removed meanwhile is left out.
    """
    place, stop = DiskPlace(directory.parent), stop or threading.Event()
    _verify_data(directory, Pace(rate, stop))
    for image in place.images():
        if image.generation == int(directory.name):
            _verify_tree(place, image, rate, stop)


def _verify_tree(place: DiskPlace, image: DiskImage, rate: float | None, stop: threading.Event) -> None:
    try:
        CheckedFile(place.tree(image), None, image.sha256).verify(rate, stop)
    except FileNotFoundError:
        return
    except NotRight as error:
        raise NotRight(f"{image.name}: {error}") from None


def _verify_data(directory: Path, pace: Pace) -> None:
    try:
        catalogue = sqlite3.connect(f"file:{quote(str(directory / CATALOGUE))}?mode=ro", uri=True)
        with contextlib.closing(catalogue):
            segments = catalogue.execute("SELECT start, size, sha256 FROM segments ORDER BY start").fetchall()
    except sqlite3.Error as error:
        if error.sqlite_errorcode in _DAMAGE:
            raise NotRight(f"its catalogue cannot be read: {error}") from None
        # It is being written, or was when a build was killed: the next build puts it in order.
        log.info("generation %s is checked later: %s", directory.name, error)
        return
    if not all(isinstance(start, int) and isinstance(size, int) and size > 0 <= start for start, size, _ in segments):
        raise NotRight("its catalogue has no sense")
    try:
        opened = (directory / "data").open("rb", buffering=0)
    except FileNotFoundError:
        if directory.exists():
            raise NotRight("its data drive is gone") from None
        return
    with opened as data:
        for start, size, expected in segments:
            digest, left = hashlib.sha256(), size
            data.seek(start)
            while left:
                try:
                    piece = data.read(min(left, _CHUNK))
                except OSError as error:
                    raise NotRight(f"its data drive cannot be read: {error.strerror}") from None
                if not piece:
                    raise NotRight("its data drive is shorter than it was written")
                if not os.fstat(data.fileno()).st_nlink:
                    # It was removed, and would take its room as long as this reads.
                    return
                digest.update(piece)
                left -= len(piece)
                pace.keep(len(piece))
            if digest.hexdigest() != expected:
                raise NotRight(f"bytes of its data drive between {start} and {start + size} are not those written")
