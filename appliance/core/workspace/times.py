"""The mtimes of a ready workspace, by which git knows each file again.

With `core.checkStat=minimal` and `core.trustctime=false` git compares mtime and size alone, so the mtime has to tell
contents apart: with one for all files, git does not see `mv b a`, `cp -p`, `ln -f` or a tar laid over them when the
sizes are the same. So a file's mtime comes from its object id. Every one is in the past, so an edit always has another,
and older than the index, because git hashes again what is not (racy-git).
"""

from __future__ import annotations

FIRST_TIME = 315_619_200
"""1980-01-02. zip and FAT hold no local time before 1980, wherever the guest is."""
INDEX_TIME = 1_388_534_400
"""2014-01-01, the mtime of the index: younger than every file."""
FIXED_TIME = 1_000_000_000
"""2001-09-09, of what git compares with nothing: directories, and what is in `.git` beside the index."""


def file_time(oid: bytes) -> int:
    """The mtime, in whole seconds, of a file or symbolic link whose blob has this binary object id.

    One of about a thousand million: two contents of one size that share it are not to be expected. Whole seconds,
    because tar, busybox and git's comparison drop the fraction.
    """
    return FIRST_TIME + int.from_bytes(oid[:8], "big") % (INDEX_TIME - FIRST_TIME)
