"""What somebody wants to have built as a disk."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Any

from appliance.core.workspace.disk.images import DiskForm


@dataclass(frozen=True)
class LargeFile:
    """A file of a tree whose contents are an LFS object: its `path` in the tree, and the object's SHA-256 in hex.

    `file` is where the node keeps the object.
    """

    path: str
    oid: str
    file: str


@dataclass(frozen=True)
class OrderedModule:
    """A submodule to check out at `commit`, from the mirror at `mirror`.

    `path` and `git`, its git directory, are relative to the top of the workspace. `name` is what the `.gitmodules`
    above it calls it, and `url` the upstream it is cloned from; `update` is how that file says to update it, or empty.
    `repo` is the name of the registration whose mirror this is, and `identity` says which registration of that name it
    is, and who may read it.
    """

    path: str
    git: str
    name: str
    url: str
    commit: str
    update: str
    repo: str
    identity: str
    mirror: str
    large: tuple[LargeFile, ...] = ()

    def without_large(self) -> OrderedModule:
        """The same with pointers in place of LFS objects."""
        return replace(self, large=())


@dataclass(frozen=True)
class DiskOrder:
    """An image of `commit` on `branch` of the repository `repo`, whose upstream is `url`.

    `history` is "full" or "tip", `visibility` "open" or "private". `modules` are the submodules that it has, each
    behind the one that it is in. `large` are the files whose contents are LFS objects. `seen` is a digest of the refs
    of the modules' mirrors, so that an order after any of them moved is another one, and is checked by a build.
    """

    repo: str
    url: str
    branch: str
    commit: str
    form: DiskForm
    history: str
    visibility: str
    modules: tuple[OrderedModule, ...] = ()
    large: tuple[LargeFile, ...] = ()
    seen: str = ""

    @property
    def line(self) -> str:
        """Names the data drives that the image may share: of images with submodules of the same registrations.

        Whoever has a data drive can read all of it. So the drives of a line have the contents of these registrations
        and of no other, and a submodule whose upstream becomes private begins another line. It is empty for an image
        without submodules.
        """
        registrations = sorted({f"{module.repo} {module.identity}" for module in self.modules})
        return hashlib.sha256("\n".join(registrations).encode()).hexdigest()[:16] if registrations else ""


def order_of(document: dict[str, Any]) -> DiskOrder:
    """The order in the JSON object that `asdict` made of it."""
    modules = tuple(
        OrderedModule(**module | {"large": tuple(LargeFile(**each) for each in module["large"])})
        for module in document["modules"]
    )
    large = tuple(LargeFile(**each) for each in document["large"])
    return DiskOrder(**document | {"form": DiskForm(document["form"]), "modules": modules, "large": large})
