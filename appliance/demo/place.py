"""The directory of one demo: everything that it writes, and who it started. A demo that was killed leaves it behind."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from appliance.core.errors import GitmirrorError
from appliance.core.layout import Layout
from appliance.core.process.children import Children, LockHeld, end_survivors, take_lock

PREFIX = "gitmirror-demo-"
MEMORY = Path("/dev/shm")
ROOM = 256 * 2**20
"""Bytes that MEMORY must have free. A demo takes some tens of MiB."""
EMPTY_WITHIN = 5.0
"""Seconds in which a directory must stay empty. The view's last reads, for which its end does not wait, may write git's
configs there once more."""


def directories() -> list[Path]:
    """Where a demo may be, the best one first.

    In memory, because a disk may take seconds to remove two thousand files, and the user waits for the prompt.
    """
    usual = Path(tempfile.gettempdir())
    if os.environ.get("TMPDIR"):
        return [usual]
    try:
        status = os.statvfs(MEMORY)
    except OSError:
        return [usual]
    # git must be able to run the hooks.
    is_fit = os.access(MEMORY, os.W_OK | os.X_OK) and not status.f_flag & os.ST_NOEXEC
    is_roomy = status.f_bavail * status.f_frsize >= ROOM
    return [MEMORY, usual] if is_fit and is_roomy else [usual, MEMORY]


@dataclass(frozen=True)
class DemoPlace:
    """The paths below the directory of a demo."""

    root: Path

    @property
    def layout(self) -> Layout:
        """The state directory of the node."""
        return Layout(self.root / "state")

    @property
    def config(self) -> Path:
        """The configuration of the node."""
        return self.root / "gitmirror.toml"

    @property
    def log(self) -> Path:
        """What the node and the demo log."""
        return self.root / "demo.log"

    @property
    def home(self) -> Path:
        """The home of guests and upstreams, so that nothing of the user's configuration plays a part."""
        return self.root / "home"

    @property
    def scratch(self) -> Path:
        """Temporary files of everything that the demo starts."""
        return self.root / "tmp"

    @property
    def upstreams(self) -> Path:
        """The bare repositories of the upstreams, `<owner>/<repo>.git`."""
        return self.root / "upstreams"

    @property
    def guests(self) -> Path:
        """What guests have on their disks."""
        return self.root / "guests"

    @property
    def owner_lock(self) -> Path:
        """Held by the demo for as long as it lives."""
        return self.root / "owner.lock"

    @property
    def children(self) -> Path:
        """Records of the processes that the demo started."""
        return self.root / "children"

    @property
    def children_lock(self) -> Path:
        """Inherited by every process that the demo started."""
        return self.root / "children.lock"


@dataclass(frozen=True)
class Tenancy:
    """A place in use: `children` starts processes there. The descriptors hold its two locks."""

    place: DemoPlace
    children: Children
    owner: int
    lock: int

    def end(self) -> None:
        """Ends the processes that are left, and removes the directory. Raises LockHeld if one cannot be ended."""
        os.close(self.lock)
        _clear(self.place)
        os.close(self.owner)


def move_in() -> Tenancy:
    """Makes a directory for a new demo. Raises GitmirrorError."""
    try:
        place = DemoPlace(Path(tempfile.mkdtemp(prefix=PREFIX, dir=directories()[0])).resolve())
        owner = take_lock(place.owner_lock)
        lock = take_lock(place.children_lock, inheritable=True)
        for directory in (place.layout.state, place.home, place.scratch, place.upstreams, place.guests):
            directory.mkdir()
        return Tenancy(place, Children(place.children, lock), owner, lock)
    except OSError as error:
        raise GitmirrorError(
            f"the demo cannot write to {directories()[0]}: {error.strerror}",
            hint="name another directory for temporary files with TMPDIR",
        ) from error


def remove_leavings() -> int:
    """Ends and removes every demo of this user whose owner was killed, and returns how many there were."""
    found = 0
    for root in (path for directory in directories() for path in directory.glob(f"{PREFIX}*")):
        place = DemoPlace(root)
        # Others may make directories of this name, and links to somewhere else.
        with contextlib.suppress(OSError, LockHeld):
            if not stat.S_ISDIR(root.lstat().st_mode) or root.lstat().st_uid != os.geteuid():
                continue
            if place.owner_lock.exists():
                owner = take_lock(place.owner_lock)
                _clear(place)
                os.close(owner)
                found += 1
    return found


def _clear(place: DemoPlace) -> None:
    end_survivors(place.children, place.children_lock)
    # The node's own children have sessions of their own, and outlive a node that was killed.
    end_survivors(place.layout.children, place.layout.children_lock)
    until = time.monotonic() + EMPTY_WITHIN
    while place.root.exists():
        try:
            shutil.rmtree(place.root)
        except OSError as error:
            # Something came, or went, between the look and the removal.
            if error.errno not in (errno.ENOTEMPTY, errno.ENOENT) or time.monotonic() > until:
                raise
