"""Puts submodules into an image, as `git submodule update --init --recursive` leaves them (gitsubmodules(7)).

The git directory of one is below that of the repository that it is in, at `modules/NAME`, and its tree has a file
`.git` that leads there. Both refer to each other by relative paths, so the workspace may be mounted anywhere.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from appliance.core.errors import GitmirrorError
from appliance.core.text import escape
from appliance.core.workspace.disk.assemble import own_file
from appliance.core.workspace.disk.erofs import Directory
from appliance.core.workspace.disk.order import OrderedModule


def module_config(module: OrderedModule) -> str:
    """The config of a submodule's git directory, whose `origin` is the upstream."""
    return f"""\
[core]
\trepositoryformatversion = 0
\tfilemode = true
\tbare = false
\tlogallrefupdates = true
\tcheckStat = minimal
\ttrustctime = false
\tworktree = {_quoted(os.path.relpath(module.path, module.git))}
[remote "origin"]
\turl = {_quoted(module.url)}
\tfetch = +refs/heads/*:refs/remotes/origin/*
[gc]
\tauto = 0
[maintenance]
\tauto = false
"""


def active_config(git: str, modules: Iterable[OrderedModule]) -> str:
    """What the config of the git directory at `git` says about the submodules in its own tree."""
    own = (module for module in modules if module.git == f"{git}/modules/{module.name}")
    return "".join(
        f"[submodule {_quoted(module.name)}]\n\tactive = true\n\turl = {_quoted(module.url)}\n" for module in own
    )


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
    place.entries[b".git"] = own_file(f"gitdir: {os.path.relpath(module.git, module.path)}\n")
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


def _quoted(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
