"""The first start of a gitmirror.pyz: unpacks the packages durably and removes those of older versions.

It is in the file beside the launcher, which imports it when it finds no unpacked packages.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import _bootstrap
from _places import is_safe, lease


def unpack_somewhere(pyz: str, roots: Sequence[str], name: str) -> tuple[str, int]:
    """Unpacks `pyz` into `name` below the first of `roots` that is writable. Returns that root and the lock held.

    Exits with a message when none is writable.
    """
    refused = []
    # Only this user may write. Others may read, which a command that switches from root to another user needs.
    umask = os.umask(0o022)
    try:
        for root in roots:
            try:
                return root, unpack(pyz, Path(root), name)
            except OSError as error:
                refused.append(f"  {error.filename or root}: {error.strerror or error}")
    finally:
        os.umask(umask)
    sys.exit(
        "gitmirror.pyz cannot unpack itself anywhere:\n"
        + "\n".join(refused)
        + "\nhint: set SHIV_ROOT to a directory with 50 MB free that belongs to the user who runs this"
    )


def unpack(pyz: str, root: Path, name: str) -> int:
    """Unpacks into `root`/`name`, unless another process just did, and returns the lock held on it.

    Raises OSError. A process killed at any moment leaves a directory without the marker, or a `.tmp` beside it; the
    next process then starts again and overwrites it.
    """
    root.mkdir(parents=True, exist_ok=True)
    if not is_safe(str(root)):
        raise PermissionError(None, "belongs to another user, or others can write to it", str(root))
    place = root / name
    with open(root / ".gitmirror.lock", "wb") as lock:
        lockable = True
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError:
            lockable = False
        held = lease(str(place))
        if held is None:
            with zipfile.ZipFile(pyz) as archive:
                _bootstrap.extract_site_packages(archive, place, force=True)
            # One sync for everything, because an fsync for each of 1,900 files takes many times as long on most disks.
            os.sync()
            marker = os.open(place / "complete", os.O_WRONLY | os.O_CREAT, 0o644)
            os.fsync(marker)
            os.close(marker)
            held = lease(str(place))
        if held is None:
            raise OSError(None, "was removed while gitmirror.pyz unpacked into it", str(place))
        if lockable:
            _remove_unused(root, name)
    return held


def _remove_unused(root: Path, name: str) -> None:
    """Removes what other versions of the file have unpacked in `root`, except directories that a process runs from.

    The caller holds the lock of `root`, so nothing is being unpacked.
    """
    file_name = name.rpartition("_")[0]
    for other in root.glob(f"{file_name}_*"):
        if other.name == name:
            continue
        try:
            held = os.open(other, os.O_RDONLY | os.O_DIRECTORY)
        except OSError:
            continue
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Remove the marker first, so that an interrupted removal leaves nothing that looks complete.
            (other / "complete").unlink(missing_ok=True)
            shutil.rmtree(other, ignore_errors=True)
            (root / f".{other.name}_lock").unlink(missing_ok=True)
        except OSError:
            pass  # In use.
        finally:
            os.close(held)
