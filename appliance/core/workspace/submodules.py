"""Finds the submodules of a commit whose upstreams are mirrored here, nested ones too."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from appliance.core.git.command import GitError
from appliance.core.git.gitmodules import (
    FILE,
    Entry,
    Refused,
    TreeEntry,
    ancestors_of,
    check_name,
    check_path,
    has_a_double,
    list_tree,
    read_entries,
    resolve_url,
)
from appliance.core.git.mirror import Mirror
from appliance.core.models import Repo

MOST_DEPTH = 8
"""How deep submodules may be nested. Repositories in use have up to four levels; those that contain each other, at
older and older commits, have as many as they have commits."""
MOST_SUBMODULES = 512
"""How many a workspace may have in all. Each costs some git processes per tip; the largest collections in use have
about 400."""
MOST_OF_ONE = 32
"""How often one repository may occur in a workspace, so that a small `.gitmodules` cannot ask for a large repository
hundreds of times."""

MOST_LOOKS = 1024
"""How many commits are looked for in all, because each that a mirror lacks costs a git process as well."""
MOST_MISSING = 2048
"""How many missing submodules are noted in all. Beyond that, the search ends: the `.gitmodules` of five hundred
submodules may each name thousands."""


class Lack(StrEnum):
    """Why a submodule is not in the workspace."""

    NOT_MIRRORED = "not mirrored here"
    NO_COMMIT = "its mirror does not have the commit"
    NOT_ALLOWED = "not readable for the guest of the lease"
    UNREADABLE = "its mirror cannot be read"
    HOSTILE = "refused"
    TOO_DEEP = "nested too deep"
    TOO_MANY = "too many"


@dataclass(frozen=True)
class Submodule:
    """A submodule that can be in the workspace.

    `path` is where its tree is, from the top of the workspace, and `git` where its repository is: `.git/modules/NAME`,
    nested `.git/modules/A/modules/B`. `url` is absolute, as `git submodule init` writes it. `repo` is the registration
    whose mirror has the `commit`. `update` is what `.gitmodules` says of how to update it, or empty.
    """

    path: str
    git: str
    name: str
    url: str
    commit: str
    repo: Repo
    update: str = ""

    @property
    def noted(self) -> tuple[str, str, str, str, int]:
        """What the description of a workspace notes of it: two with the same are the same."""
        return (self.path, self.git, self.url, self.commit, self.repo.id)


@dataclass(frozen=True)
class MissingSubmodule:
    """A submodule that stays empty. `commit` is None when the tree was not read so far; `details` are for people.

    `url` is absolute, unless it is refused. For a `.gitmodules` that is refused as a whole, `path` is that file's.
    """

    path: str
    url: str
    commit: str | None
    reason: Lack
    details: str = ""


@dataclass(frozen=True)
class _Level:
    """A repository whose submodules are looked for. `path` is empty for the workspace itself."""

    repo: Repo
    url: str
    commit: str
    path: str = ""
    git: str = ".git"
    depth: int = 0


@dataclass
class _Search:
    find: Callable[[str, str], Sequence[Repo]]
    mirror_of: Callable[[str], Mirror]
    may_read: Callable[[Repo], bool]
    found: list[Submodule] = field(default_factory=list)
    missing: list[MissingSubmodule] = field(default_factory=list)
    used: Counter[int] = field(default_factory=Counter)
    looks: int = 0

    @property
    def is_over(self) -> bool:
        """Whether too much is missing already."""
        return len(self.missing) >= MOST_MISSING


class _Taken:
    """The paths and names that the entries of one `.gitmodules` have, which may be thousands."""

    def __init__(self, entries: Iterable[Entry]) -> None:
        self.paths = Counter(entry.path for entry in entries)
        self.names = Counter(entry.name.casefold() for entry in entries)

    def is_inside_another(self, name: str) -> bool:
        """Whether a name begins with that of another submodule, as a path does."""
        parts = name.casefold().split("/")
        return any("/".join(parts[:count]) in self.names for count in range(1, len(parts)))


async def resolve(
    repo: Repo,
    commit: str,
    *,
    find: Callable[[str, str], Sequence[Repo]],
    mirror_of: Callable[[str], Mirror],
    may_read: Callable[[Repo], bool],
) -> tuple[list[Submodule], list[MissingSubmodule]]:
    """The submodules of a commit of `repo` that a workspace for this reader has, parents before children, and the rest.

    `find` returns the registrations whose upstream is where a URL leads, the best first, for a `.gitmodules` in a
    repository with another URL (`Catalog.by_url`). A submodule that `.gitmodules` says never to update is in neither.
    Raises GitError if git fails on the mirror of `repo`.
    """
    search = _Search(find, mirror_of, may_read)
    top = _Level(repo, repo.url, commit)
    await _look(search, top, await list_tree(mirror_of(repo.name), commit))
    return search.found, search.missing


async def _look(search: _Search, level: _Level, tree: dict[str, TreeEntry]) -> None:
    """Adds the submodules of one repository, whose top directory has `tree`, and of those below."""
    if FILE not in tree:
        return
    mirror, prefix = search.mirror_of(level.repo.name), f"{level.path}/" if level.path else ""
    lacks_all = (f"{prefix}{FILE}", "", None)
    try:
        entries = await read_entries(mirror, tree[FILE])
        below = ancestors_of(entry.path for entry in entries if _is_path(entry.path))
        if below:
            tree = tree | await list_tree(mirror, level.commit, below)
    except Refused as error:
        search.missing.append(MissingSubmodule(*lacks_all, Lack.HOSTILE, str(error)))
        return
    except GitError:
        if not level.path:
            raise
        # The workspace can do without what is below a submodule.
        search.missing.append(MissingSubmodule(*lacks_all, Lack.UNREADABLE))
        return
    folded = Counter(path.casefold() for path in tree)
    links = [entry for entry in entries if entry.path in tree and tree[entry.path].is_gitlink]
    links += [entry for entry in entries if not _is_path(entry.path)]
    taken = _Taken(links)
    for entry in sorted(links, key=lambda entry: entry.path.encode("utf-8", "surrogateescape")):
        if entry.update == "none":
            continue
        if search.is_over:
            return
        gitlink = tree.get(entry.path)
        lacks = (f"{prefix}{entry.path}", entry.url, gitlink.oid if gitlink else None)
        try:
            _check(entry, taken, folded)
            url = resolve_url(level.url, entry.url)
        except Refused as error:
            search.missing.append(MissingSubmodule(*lacks, Lack.HOSTILE, str(error)))
            continue
        assert gitlink is not None
        await _take(search, level, entry, url, gitlink.oid)


def _is_path(path: str) -> bool:
    try:
        check_path(path)
    except Refused:
        return False
    return True


def _check(entry: Entry, taken: _Taken, folded: Counter[str]) -> None:
    """Raises Refused."""
    check_path(entry.path)
    check_name(entry.name)
    if taken.paths[entry.path] > 1:
        raise Refused("another submodule has its path")
    if taken.names[entry.name.casefold()] > 1:
        raise Refused("another submodule has its name")
    if taken.is_inside_another(entry.name):
        # CVE-2019-1387: its repository would be among the hooks of the other.
        raise Refused("its repository would be inside another's")
    if has_a_double(entry.path, folded):
        raise Refused("its path differs from another in case alone")


async def _take(search: _Search, level: _Level, entry: Entry, url: str, commit: str) -> None:
    """Adds one submodule with those below it, or notes why it cannot be had."""
    path = f"{level.path}/{entry.path}" if level.path else entry.path

    def lack(reason: Lack) -> None:
        search.missing.append(MissingSubmodule(path, url, commit, reason))

    if level.depth >= MOST_DEPTH:
        return lack(Lack.TOO_DEEP)
    if len(search.found) >= MOST_SUBMODULES:
        return lack(Lack.TOO_MANY)
    here = [repo for repo in search.find(url, level.url) if search.mirror_of(repo.name).exists()]
    allowed = [repo for repo in here if search.may_read(repo)]
    if not allowed:
        return lack(Lack.NOT_ALLOWED if here else Lack.NOT_MIRRORED)
    for repo in allowed:
        if search.looks >= MOST_LOOKS:
            return lack(Lack.TOO_MANY)
        search.looks += 1
        try:
            tree = await list_tree(search.mirror_of(repo.name), commit)
        except GitError:
            continue
        if search.used[repo.id] >= MOST_OF_ONE:
            return lack(Lack.TOO_MANY)
        search.used[repo.id] += 1
        git = f"{level.git}/modules/{entry.name}"
        search.found.append(Submodule(path, git, entry.name, url, commit, repo, entry.update))
        return await _look(search, _Level(repo, url, commit, path, git, level.depth + 1), tree)
    lack(Lack.NO_COMMIT)
