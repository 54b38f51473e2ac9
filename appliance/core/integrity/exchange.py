"""Puts a repository in the place of another in one rename, and finishes or undoes what a kill interrupted.

A new repository contains a file NEW, which says whether it is ready. The file stays until the old repository has been
moved into evidence, so at every moment the files on disk show which of the two is the new one.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
from pathlib import Path

from appliance.core.integrity.evidence import Evidence
from appliance.core.layout import Layout
from appliance.core.process.atomic_file import write_atomically

NEW = "made-by-healing"
"""A file in a repository that a heal builds: UNFINISHED, then READY."""
UNFINISHED = "unfinished\n"
READY = "ready\n"
_AT_FDCWD = -100
_EXCHANGE = 2
_UNSUPPORTED = frozenset({errno.ENOSYS, errno.EINVAL, errno.ENOTSUP})


def building(layout: Layout, name: str) -> Path:
    """Where the new mirror of `OWNER/REPO` is built: as a mirror in a separate layout."""
    return Layout(layout.healing).mirror(name)


def replace(layout: Layout, name: str, evidence: Evidence) -> None:
    """Puts the repository at `building` in the mirror's place, and the old one into evidence. Raises OSError.

    Nobody else may work on the mirror. A guest that is being served from the old one is not interrupted: its git keeps
    using the directory that it started in. A push whose git started there and that was not let through is refused
    (`serving/push/whereabouts`).
    """
    new, mirror = building(layout, name), layout.mirror(name)
    write_atomically(new / NEW, READY)
    mirror.parent.mkdir(parents=True, exist_ok=True)
    if not os.path.lexists(mirror):
        new.rename(mirror)
    elif _exchange(new, mirror):
        evidence.take(new, "mirror.git")
    else:
        evidence.take(mirror, "mirror.git")
        new.rename(mirror)
    _sync(mirror.parent)
    (mirror / NEW).unlink(missing_ok=True)


def settle(layout: Layout) -> list[str]:
    """Finishes or undoes every heal that was killed; returns what was done. Raises OSError.

    Call it at the start, before anything writes below `mirrors`, or while no other heal runs.
    """
    done = []
    for new in sorted(Layout(layout.healing).mirrors.glob("*/*.git")):
        name = f"{new.parent.name}/{new.stem}"
        mirror, stage = layout.mirror(name), _stage(new)
        if stage == READY and not (mirror / "objects").exists():
            # The disk has no atomic exchange, and the old repository is in evidence already.
            if os.path.lexists(mirror):
                Evidence(layout, name).take(mirror, "mirror.git")
            mirror.parent.mkdir(parents=True, exist_ok=True)
            new.rename(mirror)
            _sync(mirror.parent)
            done.append(f"{name}: the healed mirror was put in place")
        elif stage is not None:
            shutil.rmtree(new)
            done.append(f"{name}: the unfinished heal was undone")
        else:
            Evidence(layout, name).take(new, "mirror.git")
            done.append(f"{name}: the damaged mirror was put into evidence")
    shutil.rmtree(layout.healing, ignore_errors=True)
    for mark in layout.mirrors.glob(f"*/*.git/{NEW}"):
        mark.unlink(missing_ok=True)
    return done


def _stage(repository: Path) -> str | None:
    """The content of NEW. A directory without NEW was not made by a heal, and may be the only copy of something."""
    try:
        return (repository / NEW).read_text(encoding="ascii")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError):
        return UNFINISHED


def _exchange(one: Path, other: Path) -> bool:
    """Exchanges two directories in one step; False where the kernel or the file system cannot. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        renameat2 = libc.renameat2
    except AttributeError:
        return False
    if renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in _UNSUPPORTED:
        return False
    raise OSError(code, os.strerror(code), str(one), None, str(other))


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
