"""Puts submodules into an image: their trees and their git directories."""

from __future__ import annotations

import os

from appliance.core.errors import GitmirrorError
from appliance.core.text import escape
from appliance.core.workspace.disk.assemble import own_file
from appliance.core.workspace.disk.erofs import Directory
from appliance.core.workspace.disk.order import OrderedModule
from appliance.core.workspace.module_files import git_file


def graft(root: Directory, module: OrderedModule, tree: Directory, git: Directory) -> None:
    """Puts the tree and the git directory of a submodule into the image of the workspace `root`.

    Raises GitmirrorError where the workspace has no place for it.
    """
    place = root
    for name in os.fsencode(module.path).split(b"/"):
        below = place.entries.get(name)
        if not isinstance(below, Directory):
            raise _impossible(module, "is not there")
        place = below
    if place.entries:
        raise _impossible(module, "is not a submodule")
    place.entries.update(tree.entries)
    place.entries[b".git"] = own_file(git_file(module))
    *above, last = os.fsencode(module.git).split(b"/")
    place = root
    for name in above:
        below = place.entries.setdefault(name, Directory())
        if not isinstance(below, Directory):
            raise _impossible(module, "has a git directory that is a file")
        place = below
    if place.entries.setdefault(last, git) is not git:
        raise _impossible(module, "has the git directory of another one")


def _impossible(module: OrderedModule, why: str) -> GitmirrorError:
    return GitmirrorError(f"cannot build a disk with the submodule at {escape(module.path)}: it {why}")
