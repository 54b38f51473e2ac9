"""Where gitmirror.pyz unpacks itself, and which of those directories can be used. For the launcher and `_unpack`.

Written so that every Python 3 since 3.6 can parse it, like the launcher.
"""

import fcntl
import os


def roots() -> "list[str]":
    """The directories to unpack into, best first; absolute, so that a later chdir changes nothing.

    $SHIV_ROOT alone when it is set; else `~/.shiv`, as with shiv; else a private one for temporary files.
    Root has a place of its own before these: a command that it runs becomes the owner of the state directory,
    and that user could not import the rest of its modules from below /root.
    """
    chosen = os.environ.get("SHIV_ROOT")
    if chosen:
        return [os.path.abspath(os.path.expanduser(chosen))]
    places = ["/var/cache/gitmirror-root"] if os.geteuid() == 0 else []
    home = os.path.expanduser("~")
    # For a user without a home, the ~ stays as it is.
    if os.path.isabs(home):
        places.append(os.path.join(home, ".shiv"))
    return [*places, _private_root()]


def is_safe(root: str) -> bool:
    """False when somebody else may have put code into `root`: anybody can guess the private one's name."""
    if root != _private_root():
        return True
    try:
        found = os.lstat(root)
    except OSError:
        return False
    # A directory and no link, ours, and writable to us alone.
    return found.st_uid == os.geteuid() and found.st_mode & 0o170022 == 0o040000


def lease(place: str) -> "int | None":
    """A descriptor with a shared lock on `place`, when that is wholly unpacked and not being removed."""
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
    # Looked at only now, and by name: before the lock, the directory could have been on its way out.
    if os.path.exists(os.path.join(place, "complete")):
        return held
    os.close(held)
    return None


def _private_root() -> str:
    return os.path.join(os.path.abspath(os.environ.get("TMPDIR") or "/tmp"), f"gitmirror-{os.geteuid()}")
