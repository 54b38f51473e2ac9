"""Whether the child of a push writes to the mirror that is served, and not to one that was in its place before.

git enters the mirror's directory when it starts, so a child keeps the repository that was there then: after a heal,
that is evidence. A directory keeps its number as long as somebody works in it, so equal numbers are one directory.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from appliance.core.process.children import Child

log = logging.getLogger(__name__)

ENDED = "git receive-pack ended before the push began; the operator of this mirror finds the reason in its log"
REPLACED = "the mirror was replaced meanwhile; nothing was recorded, push again"


def why_not_there(child: Child, mirror: Path, *, may_enter: bool) -> str | None:
    """Why `child` must not have the commands of a push, for the guest; None if it writes to the mirror at this path.

    The caller holds the mirror's lock, so nobody takes its place meanwhile. With `may_enter`, a child that is still
    where `Children.start` put it is right too, because it enters the mirror by its path. What `git daemon` starts works
    in the directory of `git daemon`.
    """
    try:
        at = os.stat(f"/proc/{child.pid}/cwd")
    except OSError as error:
        log.error("%s: where git receive-pack works cannot be told, so its push is refused: %s", mirror, error)
        return ENDED
    try:
        is_there = os.path.samestat(at, os.stat(mirror)) or (may_enter and os.path.samestat(at, os.stat("/")))
    except OSError:
        is_there = False
    return None if is_there else REPLACED
