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
    """Mirrors below `layout` that `git` works on, each under its lock of `locks`."""

    def __init__(self, layout: Layout, git: Git) -> None:
        self.layout = layout
        self.git = git
        self.locks = MirrorLocks()
        # Each request asks for its mirror some times, and making a path costs as much as reading a file.
        self._made: dict[str, Mirror] = {}

    def __call__(self, name: str) -> Mirror:
        """The mirror of that name, whether or not it is there."""
        found = self._made.get(name)
        if found is None:
            found = self._made[name] = Mirror(self.layout.mirror(name), self.git)
        return found

    def has(self, repo: Repo) -> bool:
        """Whether it can be served: a first clone, or the first refresh after a restore, may be under way."""
        mirror = self(repo.name)
        return mirror.exists() and not mirror.awaits_upstream()

    def on_disk(self) -> list[str]:
        """The names of those that are there."""
        return list(mirrors_on_disk(self.layout))


def mirrors_on_disk(layout: Layout) -> Iterator[str]:
    """The names of the mirrors that are there, registered or not."""
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
        # It may not be looked into, so it is there.
        return True
