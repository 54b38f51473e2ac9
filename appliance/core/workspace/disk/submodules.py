"""Puts submodules into an image, as `git submodule update --init --recursive` leaves them (gitsubmodules(7)).

The git directory of one is below that of the repository that it is in, at `modules/NAME`, and its tree has a file
`.git` that leads there. Both refer to each other by relative paths, so the workspace may be mounted anywhere.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from appliance.core.errors import GitmirrorError
from appliance.core.text import escape
from appliance.core.workspace.disk.assemble import own_file
from appliance.core.workspace.disk.erofs import Directory
from appliance.core.workspace.disk.order import OrderedModule
from appliance.core.workspace.refs import Tag, packed_tags


def default_branch(module: OrderedModule, branches: Mapping[str, str]) -> str:
    """The default branch of a submodule's mirror if it is among these branches, otherwise nothing. Raises OSError."""
    head = (Path(module.mirror) / "HEAD").read_text(errors="surrogateescape").strip().removeprefix("ref: refs/heads/")
    return head if head in branches else ""


def module_refs(branches: Mapping[str, str], head: str, tags: Sequence[Tag]) -> bytes:
    """The `packed-refs` of a submodule. A clone leaves the default branch `head`, although HEAD is detached."""
    refs = [Tag(f"refs/remotes/origin/{name}", oid, "") for name, oid in branches.items()]
    return packed_tags([*refs, *([Tag(f"refs/heads/{head}", branches[head], "")] if head else []), *tags])


def module_config(module: OrderedModule, head: str) -> str:
    """The config of a submodule's git directory, whose `origin` is the upstream with the default branch `head`."""
    branch = f"[branch {_quoted(head)}]\n\tremote = origin\n\tmerge = {_quoted(f'refs/heads/{head}')}\n" if head else ""
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
{branch}[gc]
\tauto = 0
[maintenance]
\tauto = false
"""


def active_config(git: str, modules: Iterable[OrderedModule]) -> str:
    """What the config of the git directory at `git` says about the submodules in its own tree."""
    own = (module for module in modules if module.git == f"{git}/modules/{module.name}")
    text = ""
    for module in own:
        text += f"[submodule {_quoted(module.name)}]\n\tactive = true\n\turl = {_quoted(module.url)}\n"
        text += f"\tupdate = {module.update}\n" if module.update else ""
    return text


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
