"""The one process that may write below the state directory: `serve`, or an `add-repo` while there is no `serve`."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path

from appliance.core.errors import GitmirrorError
from appliance.core.layout import Layout
from appliance.core.process.children import Children, LockHeld, end_survivors, take_lock

log = logging.getLogger(__name__)

SERVE = "serve"


class StateInUse(GitmirrorError):
    """Another process works on this state directory."""


@dataclass(frozen=True)
class OwnerInfo:
    """Who owns the state directory: `role` is the command it runs, `control` its socket ("" when it has none)."""

    pid: int
    role: str
    control: str


@dataclass
class Claim:
    """Ownership, until `release` or the end of this process. `survivors` were left by a killed owner and are ended."""

    children: Children
    survivors: int
    _locks: tuple[int, ...]

    def release(self) -> None:
        """Gives the state directory up."""
        for lock in self._locks:
            os.close(lock)


def claim(layout: Layout, role: str, *, control: Path | None = None, wait: float = 0.0) -> Claim:
    """Makes this process the owner, and ends whatever a killed owner left running.

    Waits up to `wait` seconds for an owner other than `serve`. Raises StateInUse, which says who it is.
    """
    try:
        layout.run.mkdir(parents=True, exist_ok=True)
        lock = _take_owner_lock(layout, wait)
        info = {"pid": os.getpid(), "role": role, "control": str(control or "")}
        _say_who(lock, json.dumps(info).encode())
        layout.children.mkdir(parents=True, exist_ok=True)
        try:
            survivors = end_survivors(layout.children, layout.children_lock)
            children_lock = take_lock(layout.children_lock, inheritable=True)
        except LockHeld:
            os.close(lock)
            raise
    except OSError as error:
        raise GitmirrorError(
            f"the state directory {layout.state} cannot be used: {error.strerror} ({error.filename})",
            hint="it must belong to the user that runs gitmirror; choose another with --state",
        ) from error
    return Claim(Children(layout.children, children_lock), survivors, (lock, children_lock))


def _say_who(lock: int, said: bytes) -> None:
    """Over what the owner before said, so that a full disk need not give a block for it."""
    try:
        os.pwrite(lock, said, 0)
        os.ftruncate(lock, len(said))
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        # The lock counts; commands do not find this owner until there is room and a restart.
        log.error("the disk is full: commands will not find this process")


def _take_owner_lock(layout: Layout, wait: float) -> int:
    until = time.monotonic() + wait
    while True:
        try:
            return take_lock(layout.owner_lock)
        except LockHeld:
            owner = find_owner(layout)
            who = f"{owner.role} (process {owner.pid})" if owner else "another process"
            if (owner is not None and owner.role == SERVE) or time.monotonic() > until:
                raise StateInUse(
                    f"{who} already works on {layout.state}",
                    hint="end it first, or choose another state directory with --state",
                ) from None
        time.sleep(0.05)


def find_owner(layout: Layout) -> OwnerInfo | None:
    """Who owns the state directory now, or None when nobody does."""
    try:
        descriptor = os.open(layout.owner_lock, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return None
        # Between taking the lock and writing its name the owner is nameless for an instant.
        for _ in range(100):
            with contextlib.suppress(ValueError, KeyError, TypeError):
                return OwnerInfo(**json.loads(os.pread(descriptor, 4096, 0)))
            time.sleep(0.01)
        return OwnerInfo(0, "unknown", "")
    finally:
        os.close(descriptor)


def become_owner_of(state: Path) -> None:
    """As root on another user's state directory: becomes that user, for good. Otherwise does nothing.

    What root wrote there, `serve` could not read or change again.
    """
    if os.geteuid() != 0:
        return
    try:
        status = state.stat()
    except OSError:
        return
    if status.st_uid == 0:
        return
    import pwd

    try:
        name = pwd.getpwuid(status.st_uid).pw_name
        os.initgroups(name, status.st_gid)
    except KeyError:
        os.setgroups([])
    os.setgid(status.st_gid)
    os.setuid(status.st_uid)
