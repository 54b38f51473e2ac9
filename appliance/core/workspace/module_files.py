"""The files that lead git to a submodule, as `git submodule update --init` leaves them (gitsubmodules(7)).

The git directory of one is below that of the repository that it is in, at `modules/NAME`, and its tree has a file
`.git` that leads there. Both refer to each other by relative paths, so the workspace may be anywhere. Tars and disks
have the same files.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from appliance.core.workspace.config import PARTIAL, quoted
from appliance.core.workspace.refs import Tag, packed_tags


class PlacedModule(Protocol):
    """Where a submodule is in the workspace, what it is called there, and where it comes from; see `Submodule`."""

    @property
    def path(self) -> str: ...
    @property
    def git(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def url(self) -> str: ...
    @property
    def update(self) -> str: ...


Module = TypeVar("Module", bound=PlacedModule)


def children_of(git: str, modules: Iterable[Module]) -> list[Module]:
    """The submodules right inside the repository whose git directory is `git`."""
    return [module for module in modules if module.git == f"{git}/modules/{module.name}"]


def default_branch(mirror: Path, branches: Mapping[str, str]) -> str:
    """The default branch of a submodule's mirror if it is among these branches, otherwise nothing. Raises OSError."""
    head = (mirror / "HEAD").read_text(errors="surrogateescape").strip().removeprefix("ref: refs/heads/")
    return head if head in branches else ""


def git_file(module: PlacedModule) -> str:
    """The file `.git` in the tree of a submodule."""
    return f"gitdir: {posixpath.relpath(module.git, module.path)}\n"


def module_refs(branches: Mapping[str, str], head: str, tags: Sequence[Tag]) -> bytes:
    """The `packed-refs` of a submodule. A clone leaves the default branch `head`, although HEAD is detached."""
    refs = [Tag(f"refs/remotes/origin/{name}", oid, "") for name, oid in branches.items()]
    local = [Tag(f"refs/heads/{head}", branches[head], "")] if head else []
    return packed_tags([*refs, *local, *tags])


def module_config(module: PlacedModule, head: str, *, partial: bool = False) -> str:
    """The config of a submodule's git directory, whose `origin` is the upstream with the default branch `head`."""
    version, promisor, extension = PARTIAL if partial else (0, "", "")
    branch = f"[branch {quoted(head)}]\n\tremote = origin\n\tmerge = {quoted(f'refs/heads/{head}')}\n" if head else ""
    return f"""\
[core]
\trepositoryformatversion = {version}
\tfilemode = true
\tbare = false
\tlogallrefupdates = true
\tworktree = {quoted(posixpath.relpath(module.path, module.git))}
\tcheckStat = minimal
\ttrustctime = false
{extension}[remote "origin"]
\turl = {quoted(module.url)}
\tfetch = +refs/heads/*:refs/remotes/origin/*
{promisor}{branch}[gc]
\tauto = 0
[maintenance]
\tauto = false
"""


def active_config(git: str, modules: Iterable[PlacedModule]) -> str:
    """What the config of the git directory at `git` says about the submodules in its own tree.

    It is what `git submodule init` writes.
    """
    text = ""
    for module in children_of(git, modules):
        text += f"[submodule {quoted(module.name)}]\n\tactive = true\n\turl = {quoted(module.url)}\n"
        text += f"\tupdate = {module.update}\n" if module.update else ""
    return text
