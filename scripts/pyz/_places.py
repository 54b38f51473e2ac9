"""Where gitmirror.pyz unpacks itself, and which of those directories can be used. For the launcher and `_unpack`.

Every Python 3 since 3.6 must be able to parse this file, like the launcher.
"""

import fcntl
import os


def roots() -> "list[str]":
    """Returns the directories to unpack into, best first. They are absolute, so that a later chdir changes nothing.

    Only $SHIV_ROOT when it is set; else `~/.shiv`, like shiv; else a private directory for temporary files.
    root has a directory of its own before these: a command run as root switches to the owner of the state directory,
    and that user could not import more modules from below /root.
    """
    chosen = os.environ.get("SHIV_ROOT")
    if chosen:
        return [os.path.abspath(os.path.expanduser(chosen))]
    places = ["/var/cache/gitmirror-root"] if os.geteuid() == 0 else []
    home = os.path.expanduser("~")
    # For a user without a home, expanduser leaves the ~ in place.
    if os.path.isabs(home):
        places.append(os.path.join(home, ".shiv"))
    return [*places, _private_root()]


def is_safe(root: str) -> bool:
    """Returns False when another user may have put code into `root`: anybody can guess the private one's name."""
    if root != _private_root():
        return True
    try:
        found = os.lstat(root)
    except OSError:
        return False
    # It must be a directory and not a link, belong to this user, and be writable by nobody else.
    return found.st_uid == os.geteuid() and found.st_mode & 0o170022 == 0o040000


def lease(place: str) -> "int | None":
    """Returns a descriptor with a shared lock on `place`, or None if it is incomplete or being removed."""
    try:
        held = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(held, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(held)
        return None
    except OSError:
        pass  # A file system without locks. Nothing is ever removed there.
    # Check only now, and by name, because before the lock the directory could have been in the middle of its removal.
    if os.path.exists(os.path.join(place, "complete")):
        return held
    os.close(held)
    return None


def _private_root() -> str:
    return os.path.join(os.path.abspath(os.environ.get("TMPDIR") or "/tmp"), f"gitmirror-{os.geteuid()}")
