"""The mirrors of a state directory, by name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from appliance.core.git.command import Git
from appliance.core.git.mirror import Mirror
from appliance.core.git.mirror_locks import MirrorLocks
from appliance.core.layout import Layout
from appliance.core.models import Repo
from appliance.core.names import is_repo_name


class Mirrors:
    """The mirrors below `layout`, on which `git` runs. `locks` has the lock of each mirror."""

    def __init__(self, layout: Layout, git: Git) -> None:
        self.layout = layout
        self.git = git
        self.locks = MirrorLocks()
        # A request looks its mirror up several times, and building a path costs as much as reading a file.
        self._made: dict[str, Mirror] = {}

    def __call__(self, name: str) -> Mirror:
        """Returns the mirror of that name, which need not exist."""
        found = self._made.get(name)
        if found is None:
            found = self._made[name] = Mirror(self.layout.mirror(name), self.git)
        return found

    def has(self, repo: Repo) -> bool:
        """Returns whether it can be served: not before its first clone, or its first refresh after a restore."""
        mirror = self(repo.name)
        return mirror.exists() and not mirror.awaits_upstream()

    def on_disk(self) -> list[str]:
        """Returns the names of the mirrors that exist."""
        return list(mirrors_on_disk(self.layout))


def mirrors_on_disk(layout: Layout) -> Iterator[str]:
    """Yields the names of the mirrors that exist, registered or not."""
    try:
        found = sorted(layout.mirrors.glob("*/*.git"))
    except OSError:
        return
    for path in found:
        name = f"{path.parent.name}/{path.stem}"
        if is_repo_name(name) and _has_head(path):
            yield name


def _has_head(mirror: Path) -> bool:
    try:
        return (mirror / "HEAD").exists()
    except OSError:
        # It exists, but this user may not look into it.
        return True
