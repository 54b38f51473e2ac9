"""The files of unix sockets: made so that none is overwritten, and removed only by who made them.

A socket's file is made under a temporary name, its identity is remembered, and only then does it get its name, by
link(2), which never overwrites. So a file that this program made is known as such after a kill at any moment, and a
file of somebody else is never mistaken for it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import socket
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from appliance.core.errors import GitmirrorError
from appliance.core.models import Guest
from appliance.core.process.socket_identity import identity_of

LONGEST_NAME = 255
"""The longest name of a file in most file systems, in bytes."""


class SocketPathError(GitmirrorError):
    """A unix socket cannot be at a path."""


@dataclass(frozen=True)
class SocketFile:
    """A socket's file `name` in an open directory. `identity` says which file it is; see `identity_of`."""

    directory: int
    name: str
    identity: str

    def remove(self) -> None:
        """Removes the file if it is still this one, wherever its directory is now. Never raises."""
        with contextlib.suppress(OSError):
            if is_file(self.directory, self.name, self.identity):
                os.unlink(self.name, dir_fd=self.directory)


def temporary_name(guest: Guest, port: int) -> str:
    """The name under which a guest's socket is made. It is the same after a restart."""
    tag = hashlib.sha256(f"{guest.name} {guest.created_at!r} {guest.unix}".encode()).hexdigest()[:16]
    return f".gitmirror-{guest.id}-{tag}_{port}"


def open_directory(path: Path) -> int:
    """Opens a directory, to be used by its descriptor: whatever takes its path later, it stays this one.

    Raises SocketPathError.
    """
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ENOTDIR and path.is_symlink():
            raise SocketPathError(
                f"the directory {path} is a symbolic link", hint=f"name the directory itself: {path.resolve()}"
            ) from None
        hint = {
            errno.ENOENT: "create it before the guest is added, with write permission for the service's user",
            errno.EACCES: "the service's user must be able to enter it",
        }.get(error.errno or 0, "choose a path in another directory")
        raise SocketPathError(f"the directory {path} cannot be used: {error.strerror}", hint=hint) from None


def is_file(directory: int, name: str, identity: str) -> bool:
    """Whether the file of that name is a socket with this identity."""
    with contextlib.suppress(OSError):
        status = os.stat(name, dir_fd=directory, follow_symlinks=False)
        return stat.S_ISSOCK(status.st_mode) and identity_of(status) == identity
    return False


def is_dead(directory: int, name: str) -> bool:
    """Whether the file of that name is a socket on which nobody listens."""
    with contextlib.suppress(OSError):
        if not stat.S_ISSOCK(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode):
            return False
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
            return probe.connect_ex(f"/proc/self/fd/{directory}/{name}") == errno.ECONNREFUSED
    return False


def remove_dead(directory: int, name: str) -> None:
    """Removes a socket's file on which nobody listens, under a name that nobody but this program uses. Never raises."""
    if is_dead(directory, name):
        with contextlib.suppress(OSError):
            os.unlink(name, dir_fd=directory)


def grant(directory: int, name: str, mode: int, group: int) -> os.stat_result:
    """Sets the mode and the group of a socket's file of ours. Raises OSError."""
    # O_PATH and O_NOFOLLOW: a link that somebody puts in its place is not followed to a file of ours.
    descriptor = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISSOCK(status.st_mode) or status.st_uid != os.geteuid():
            raise FileExistsError(errno.EEXIST, "another program replaced it", name)
        if status.st_gid != group:
            os.chown(f"/proc/self/fd/{descriptor}", -1, group)
        if stat.S_IMODE(status.st_mode) != mode:
            os.chmod(f"/proc/self/fd/{descriptor}", mode)
    finally:
        os.close(descriptor)
    return status


def bind(directory: int, name: str, mode: int, group: int, backlog: int) -> tuple[socket.socket, SocketFile]:
    """Binds a new socket to a name in an open directory, sets its mode and group, and listens.

    It works by the descriptor, because the address of a unix socket is limited to 107 bytes and paths may be longer.
    Nobody can connect before the mode is set. Raises OSError, and then the name is free again.
    """
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    bound = False
    try:
        listening.bind(f"/proc/self/fd/{directory}/{name}")
        bound = True
        file = SocketFile(directory, name, identity_of(grant(directory, name, mode, group)))
        listening.listen(backlog)
    except BaseException:
        listening.close()
        if bound:
            remove_dead(directory, name)
        raise
    return listening, file


def require_below(directory: int, path: str, allowed: Iterable[str]) -> None:
    """Raises SocketPathError unless an open directory is in one of those that the config allows, if it names any."""
    places = [Path(place).resolve() for place in allowed]
    found = Path(f"/proc/self/fd/{directory}").readlink()
    if places and not any(found == place or place in found.parents for place in places):
        raise SocketPathError(
            f"{path} is outside [guests] socket_directories",
            hint=f"choose a path below {', '.join(map(str, places))}, or add its directory there and reload",
        )


def explained(error: OSError, path: str, group: str) -> SocketPathError:
    """The error for a socket that cannot be made at `path`."""
    if error.errno == errno.EEXIST:
        return SocketPathError(
            f"{path} is there already, and gitmirror did not make it",
            hint="remove it if nobody uses it, or choose another path",
        )
    if group and error.errno == errno.EPERM:
        return SocketPathError(
            f"this service may not give files to the group {group}",
            hint=f"`systemctl edit gitmirror` with [Service] and SupplementaryGroups={group}; then restart",
        )
    hint = {
        errno.EACCES: "the service's user needs write permission for the directory",
        errno.EROFS: "under systemd, list the directory in [guests] socket_directories and run `install` again",
        errno.ENOSPC: "free space or inodes on its file system",
        errno.ENOENT: "the directory was removed meanwhile",
        errno.EMFILE: "raise LimitNOFILE= of the service: each guest takes three descriptors",
        errno.ENAMETOOLONG: "choose a shorter name",
    }.get(error.errno or 0, "choose another path")
    return SocketPathError(f"cannot listen at {path}: {error.strerror}", hint=hint)
