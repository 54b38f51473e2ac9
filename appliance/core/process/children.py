"""Child processes: each has its own process group, is recorded, holds an inherited lock, and is ended by group.

Children outlive a killed `serve`: an orphaned receive-pack still moved a ref three seconds later. Therefore each child
inherits the owner's lock, and an empty file records its process group and its start time. The next `serve` ends the
processes that are left, and touches git's lock files only once the inherited lock is free.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import re
import resource
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from appliance.core.errors import GitmirrorError

log = logging.getLogger(__name__)

_RECORD = re.compile(r"[0-9]+\.[0-9]+")

TERM_GRACE = 3.0
"""Seconds between SIGTERM and SIGKILL to a group."""


MOST_OPEN_FILES = 65536
"""Each served guest needs three descriptors and each waiting guest one, more than the usual limit of 1024 allows."""


def raise_open_files_limit() -> None:
    """Raises this process's soft limit of open files to the hard limit, but not above MOST_OPEN_FILES."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


MOST_DATA = 2 * 2**30
"""Bytes of memory for each process of a push. A delta of 20 bytes can demand a buffer of terabytes."""
MOST_CPU = 600
"""Seconds of CPU time for each process of a push. An idle timeout does not end it, because it sends keepalives."""


def limit_push(pid: int) -> None:
    """Limits memory and CPU time of the child `pid` and of every process it starts from now on. Raises OSError."""
    resource.prlimit(pid, resource.RLIMIT_DATA, (MOST_DATA, MOST_DATA))
    resource.prlimit(pid, resource.RLIMIT_CPU, (MOST_CPU, MOST_CPU))


MOST_DATA_OF_A_READER = 3 * 2**29
"""Bytes of memory for a process that reads a mirror for somebody who has no git. A diff takes five times the size of a
file that it adds; one that an agent made of zeros is a gigabyte, although it took next to nothing to push."""


def limited_reader(argv: Sequence[str]) -> list[str]:
    """The command `argv` with limits on its memory and CPU time, from its first instruction on."""
    # Limits set from outside would come after git has begun. Where less is allowed already, a limit cannot be set.
    script = f'ulimit -d {MOST_DATA_OF_A_READER // 1024}; ulimit -t {MOST_CPU}; exec "$@"'
    return ["/bin/sh", "-c", script, "sh", *argv]


class LockHeld(GitmirrorError):
    """Another process holds a required lock."""


def take_lock(path: Path, *, inheritable: bool = False) -> int:
    """Opens and locks `path` exclusively without waiting, and returns the descriptor. Raises LockHeld.

    The lock belongs to the open file, so a child that inherits the descriptor keeps it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise LockHeld(f"{path} is locked by another process") from None
    os.set_inheritable(descriptor, inheritable)
    return descriptor


def start_time(pid: int) -> int | None:
    """Returns when a process started, in clock ticks since boot, or None when it does not exist or is a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    # The command name is in parentheses and may itself contain any byte, even a parenthesis.
    fields = stat.rpartition(b")")[2].split()
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


class Children:
    """The children of this process: starts them, records them in `directory`, ends them by group.

    `lock` is an inheritable descriptor that every child keeps open.
    """

    def __init__(self, directory: Path, lock: int) -> None:
        self._directory = directory
        self._lock = lock
        self._running: dict[int, Child] = {}
        directory.mkdir(parents=True, exist_ok=True)

    def start(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: Path | str = "/",
        stdin: int | IO[Any] = subprocess.DEVNULL,
        stdout: int | IO[Any] = subprocess.DEVNULL,
        stderr: int | IO[Any] = subprocess.DEVNULL,
        pass_fds: Sequence[int] = (),
        nice: int = 0,
    ) -> Child:
        """Starts `argv` in a session of its own, with the descriptors `pass_fds` open. Raises OSError.

        `nice` is added to the niceness of its process group.
        """
        process = subprocess.Popen(
            argv,
            env=dict(env),
            cwd=cwd,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
            pass_fds=(self._lock, *pass_fds),
        )
        try:
            if nice:
                # nice(1) would take two thirds of what a small git command takes.
                os.setpriority(os.PRIO_PGRP, process.pid, os.getpriority(os.PRIO_PROCESS, 0) + nice)
            child = Child(process, self)
        except OSError:
            # Without a free descriptor for a pidfd the child cannot be watched, and nobody would ever end it.
            process.kill()
            process.wait()
            raise
        self._running[process.pid] = child
        child.record = self._directory / f"{process.pid}.{start_time(process.pid) or 0}"
        with contextlib.suppress(OSError):
            # If the record cannot be written (disk full), the next owner still finds the child by its open lock.
            child.record.touch()
        return child

    def forget(self, child: Child) -> None:
        """Removes a child and its record once its group is gone."""
        self._running.pop(child.pid, None)
        if child.record is not None:
            with contextlib.suppress(OSError):
                child.record.unlink(missing_ok=True)

    def __len__(self) -> int:
        return len(self._running)

    async def end_all(self) -> None:
        """Ends every child's group: TERM, up to TERM_GRACE seconds, KILL."""
        await asyncio.gather(*(child.end() for child in list(self._running.values())))


class Child:
    """One running child and its process group."""

    def __init__(self, process: subprocess.Popen[bytes], children: Children) -> None:
        self.process = process
        self.pid = process.pid
        self.record: Path | None = None
        self._children = children
        loop = asyncio.get_running_loop()
        self._exited = loop.create_future()
        # A pidfd needs no thread and no SIGCHLD handler, whatever the Python version's child watcher is.
        self._pidfd = os.pidfd_open(process.pid)
        loop.add_reader(self._pidfd, self._on_exit)

    def _on_exit(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        # Kill what the leader left in its group, such as a fetch's index-pack. This happens before the leader is
        # reaped, because until then no other group can get its number.
        self.signal(signal.SIGKILL)
        code = self.process.wait()
        self._children.forget(self)
        if not self._exited.done():
            self._exited.set_result(code)

    async def wait(self) -> int:
        """Waits for the end and returns the exit code (negative: the signal)."""
        return int(await asyncio.shield(self._exited))

    def signal(self, number: int) -> None:
        """Sends a signal to the whole group; does nothing when the group is gone."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    async def end(self) -> int:
        """Ends the group: TERM, up to TERM_GRACE seconds, KILL. Returns the exit code."""
        if not self._exited.done():
            self.signal(signal.SIGTERM)
            try:
                return await asyncio.wait_for(self.wait(), TERM_GRACE)
            except TimeoutError:
                self.signal(signal.SIGKILL)
        return await self.wait()


def end_survivors(directory: Path, lock: Path, *, deadline: float = 10.0) -> int:
    """Ends the process groups that a dead owner left running, and returns how many.

    Goes through the records first, then through every process that still has `lock` open (a child that was not
    recorded yet, or one that left its group). Raises LockHeld when the lock is still held after `deadline` seconds.
    """
    ended: set[int] = set()
    for record in sorted(path for path in directory.glob("*") if _RECORD.fullmatch(path.name)):
        pid, started = (int(part) for part in record.name.split("."))
        # The lock is checked too: start times count from the boot, so after a reboot another process may have the
        # same pid and start time.
        if started and start_time(pid) == started and _has_open(pid, lock):
            ended |= _end_group(pid)
        else:
            ended |= _end_members(pid, lock)
        record.unlink(missing_ok=True)
    until = time.monotonic() + deadline
    while True:
        try:
            os.close(take_lock(lock))
        except LockHeld:
            holders = [pid for pid in _processes() if pid != os.getpid() and _has_open(pid, lock)]
            if time.monotonic() > until:
                raise LockHeld(
                    f"processes of an earlier serve cannot be ended: {holders}",
                    hint=f"they hold {lock}; end them by hand, then start again",
                ) from None
            for pid in holders:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
                    ended.add(pid)
            time.sleep(0.02)
        else:
            return len(ended)


def _end_group(pid: int) -> set[int]:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
        return {pid}
    return set()


def _end_members(group: int, lock: Path) -> set[int]:
    """Ends members of a group whose leader is gone, but only those that hold the lock, because pids are reused."""
    ended = set()
    for pid in _processes():
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if os.getpgid(pid) == group and _has_open(pid, lock):
                os.kill(pid, signal.SIGKILL)
                ended.add(pid)
    return ended


def _processes() -> Iterator[int]:
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            yield int(entry.name)


def _has_open(pid: int, path: Path) -> bool:
    try:
        wanted = path.stat()
        for entry in os.scandir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                status = os.stat(entry.path)
                if (status.st_dev, status.st_ino) == (wanted.st_dev, wanted.st_ino):
                    return True
    except OSError:
        return False
    return False
