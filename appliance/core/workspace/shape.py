"""What a ready workspace has, and what guests can ask for."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

from appliance.core.models import Repo
from appliance.core.workspace.history import History


@dataclass(frozen=True)
class Shape:
    """What a ready workspace of one branch has.

    `only` are the directories of a part of the tree, sorted, none below another; without any, it has the whole tree.
    `modules` is None without submodules; otherwise it has the ids of the private registrations, sorted, whose
    repositories the workspace has as submodules besides the open ones, and `withheld` has those of the open ones that
    it lacks, because it is for a guest that may read only some. `content` says whether LFS files are in place.
    """

    history: History
    only: tuple[str, ...] = ()
    modules: tuple[int, ...] | None = None
    content: bool = False
    withheld: tuple[int, ...] = ()

    @property
    def is_partial(self) -> bool:
        """Whether blobs that the commits refer to are not there, so that git fetches them when it needs them."""
        return self.history is History.TREES or (self.history is History.TIP and bool(self.only))

    @property
    def key(self) -> str:
        """A name for the shape that is unique, and a file name."""
        words = [str(self.history)]
        if self.content:
            words.append("lfs")
        if self.modules is not None:
            words += ["modules", *map(str, self.modules)]
        if self.withheld:
            words += ["without", *map(str, self.withheld)]
        if self.only:
            named = "\0".join(self.only).encode("utf-8", "surrogateescape")
            words += ["only", hashlib.sha256(named).hexdigest()[:16]]
        name = "-".join(words)
        return name if len(name) <= _LONGEST else f"{history_of(name)}-{hashlib.sha256(name.encode()).hexdigest()[:16]}"


_LONGEST = 120


def history_of(key: str) -> str:
    """The history in a shape's key."""
    return key.partition("-")[0]


@dataclass(frozen=True)
class WantedShape:
    """What a guest asks for. What is None is as usual for the repository.

    `asker` tells guests apart, so that each gets its share of what is kept. `may_read` says whether the guest may read
    a repository, which then may be among the submodules. Without it, the guest may read what is open.
    """

    history: History | None = None
    only: tuple[str, ...] = ()
    submodules: bool | None = None
    asker: str = ""
    may_read: Callable[[Repo], bool] | None = None
