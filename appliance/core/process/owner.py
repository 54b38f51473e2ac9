"""The owner of a state directory: the one process that may write there, `serve` or a command while no `serve` runs."""

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
from typing import TYPE_CHECKING

from appliance.core.errors import Forbidden, GitmirrorError, UsageError
from appliance.core.layout import Layout
from appliance.core.process.groups import how_to_get_in

if TYPE_CHECKING:
    from appliance.core.process.children import Children

log = logging.getLogger(__name__)

SERVE = "serve"


class StateInUse(GitmirrorError):
    """Another process owns this state directory."""


@dataclass(frozen=True)
class OwnerInfo:
    """The owner of a state directory: `role` is the command it runs, `control` its socket ("" when it has none)."""

    pid: int
    role: str
    control: str


@dataclass
class Claim:
    """Ownership, until `release` or the end of this process.

    `survivors` counts the processes that a killed owner had left running and that were ended.
    """

    children: Children
    survivors: int
    _locks: tuple[int, ...]

    def release(self) -> None:
        """Gives up ownership of the state directory."""
        for lock in self._locks:
            os.close(lock)


def claim(layout: Layout, role: str, *, control: Path | None = None, wait: float = 0.0) -> Claim:
    """Makes this process the owner, and ends the processes that a killed owner left running.

    Waits up to `wait` seconds for an owner other than a `serve` that runs. Raises StateInUse that names the owner,
    LockHeld when processes of a killed owner cannot be ended, and GitmirrorError when the directory cannot be used.
    """
    # Imported here, because every command looks for the owner, few become one, and asyncio takes a while to load.
    from appliance.core.process.children import Children, LockHeld, end_survivors, take_lock

    try:
        layout.run.mkdir(parents=True, exist_ok=True)
        lock = _take_owner_lock(layout, wait)
        info = {"pid": os.getpid(), "role": role, "control": str(control or "")}
        _write_info(lock, json.dumps(info).encode())
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


def _write_info(lock: int, info: bytes) -> None:
    """Overwrites the info of the previous owner in place, so that it needs no new block on a full disk."""
    try:
        os.pwrite(lock, info, 0)
        os.ftruncate(lock, len(info))
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        # This process owns the directory all the same, because the lock decides. Commands find it only after a
        # restart with free space.
        log.error("the disk is full: commands cannot find this process")


def _take_owner_lock(layout: Layout, wait: float) -> int:
    from appliance.core.process.children import LockHeld, start_time, take_lock

    until = time.monotonic() + wait
    while True:
        try:
            return take_lock(layout.owner_lock)
        except LockHeld:
            owner = find_owner(layout)
            who = f"{owner.role} (process {owner.pid})" if owner else "another process"
            # One that was killed holds the lock for a moment longer, if a child of it had yet to become git.
            serves = owner is not None and owner.role == SERVE and start_time(owner.pid) is not None
            if serves or time.monotonic() > until:
                raise StateInUse(
                    f"{who} already uses {layout.state}",
                    hint="stop it first, or choose another state directory with --state",
                ) from None
        time.sleep(0.05)


def find_owner(layout: Layout) -> OwnerInfo | None:
    """Returns the current owner of the state directory, or None when nobody owns it."""
    try:
        descriptor = os.open(layout.owner_lock, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return None
        # For a moment after it has taken the lock, the owner has not written its info yet.
        for _ in range(100):
            with contextlib.suppress(ValueError, KeyError, TypeError):
                return OwnerInfo(**json.loads(os.pread(descriptor, 4096, 0)))
            time.sleep(0.01)
        return OwnerInfo(0, "unknown", "")
    finally:
        os.close(descriptor)


def refuse_strangers(layout: Layout) -> None:
    """Raises Forbidden for a user who may not read the state directory, and is told how to become one who may.

    To such a user, a `serve` that runs looks as if it did not.
    """
    state, database = layout.state, layout.database
    closed = None
    try:
        if state.exists():
            if not state.is_dir():
                raise UsageError(f"the state directory {state} is not a directory", hint="name one with --state DIR")
            closed = None if os.access(state, os.X_OK) else state
            # With `disk_group`, everybody may pass.
            # Its owner is no stranger: the database is what needs mending then, and whoever opens it says so.
            if closed is None and database.exists() and not os.access(database, os.R_OK):
                closed = None if database.stat().st_uid == os.geteuid() else database
    except PermissionError:
        # So is a directory above it.
        closed = state
    if closed is None:
        return
    words = f"enter the state directory {state}" if closed == state else f"read {database}"
    raise Forbidden(
        f"this user may not {words}",
        hint=f"{how_to_get_in(closed)}, or name another state directory with --state DIR",
    )


def becomes_another(state: Path) -> bool:
    """Whether `become_owner_of` makes this process another user."""
    return _other_owner(state) is not None


def _other_owner(state: Path) -> os.stat_result | None:
    if os.geteuid() != 0:
        return None
    try:
        status = state.stat()
    except OSError:
        return None
    return status if status.st_uid != 0 else None


def become_owner_of(state: Path) -> None:
    """Run as root on another user's state directory, switches to that user for good. Otherwise does nothing.

    `serve` could not read or change files that root had written there.
    """
    status = _other_owner(state)
    if status is None:
        return
    import pwd

    try:
        name = pwd.getpwuid(status.st_uid).pw_name
        os.initgroups(name, status.st_gid)
    except KeyError:
        os.setgroups([])
    os.setgid(status.st_gid)
    os.setuid(status.st_uid)
