"""The mtimes of a ready workspace, by which git recognises unchanged files.

With `core.checkStat=minimal` and `core.trustctime=false` git compares only mtime and size, so the mtime must reveal the
contents. If all files had the same mtime, git would miss `mv b a`, `cp -p`, `ln -f` or an unpacked tar when the sizes
are equal. So a file's mtime is derived from its object id. Every mtime is in the past, so that an edit always changes
it, and older than the index, because git rehashes files that are not (racy-git).
"""

from __future__ import annotations

FIRST_TIME = 315_619_200
"""1980-01-02, because zip and FAT cannot store a local time before 1980, in any time zone."""
INDEX_TIME = 1_388_534_400
"""2014-01-01, the mtime of the index, which is younger than every file."""
FIXED_TIME = 1_000_000_000
"""2001-09-09, the mtime of everything that git does not compare: directories, and all of `.git` but the index."""


def file_time(oid: bytes) -> int:
    """The mtime, in whole seconds, of a file or symbolic link whose blob has this binary object id.

    It is one of about a thousand million values, so two contents of equal size are not expected to share one. It has
    whole seconds because tar, busybox and git's comparison drop the fraction.
    """
    return FIRST_TIME + int.from_bytes(oid[:8], "big") % (INDEX_TIME - FIRST_TIME)
