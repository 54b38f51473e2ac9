"""Repositories with submodules, three levels deep, and a node that mirrors all but one of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import WIDGETS
from tests.support.generate import add_commit, commit_entries
from tests.support.gitutil import clean_env, git
from tests.support.upstream import HttpUpstream
from tests.workspace.conftest import Guest, Node, Result, quote

LIB, DEEP, FAR = "acme/lib", "acme/deep", "acme/far"
MIRRORED = (WIDGETS, LIB, DEEP)


def section(name: str, path: str, url: str, *more: str) -> str:
    """One submodule of a `.gitmodules`."""
    return "\n\t".join([f'[submodule "{name}"]', f"path = {path}", f"url = {url}", *more]) + "\n"


def link(bare: Path, modules: str, links: Mapping[str, str], branch: str = "main") -> str:
    """Commit a `.gitmodules` and links to commits to a branch; return the commit."""
    add_commit(bare, branch, {".gitmodules": modules})
    env = clean_env(bare, GIT_INDEX_FILE=str(bare / "links.index"))
    git("read-tree", branch, cwd=bare, env=env)
    listed = (line.partition("\t") for line in git("ls-files", "--stage", cwd=bare, env=env).splitlines())
    lines = [f"0 {'0' * 40}\t{path}" for entry, _, path in listed if entry.startswith("160000")]
    lines += [f"160000 {commit}\t{path}" for path, commit in links.items()]
    git("update-index", "--index-info", cwd=bare, env=env, input="".join(f"{line}\n" for line in lines))
    tree = git("write-tree", cwd=bare, env=env)
    who = [f"{key}={value}" for key, value in (("user.name", "a"), ("user.email", "a@example.com"))]
    commit = git("-c", who[0], "-c", who[1], "commit-tree", "-p", branch, "-m", "links", tree, cwd=bare)
    git("update-ref", f"refs/heads/{branch}", commit, cwd=bare)
    return commit


@dataclass(frozen=True)
class Family:
    """`acme/widgets` with `libs/lib`, which has `deps/deep`, and with `far`, which is not mirrored.

    On the branch `older` there is only `libs/lib`, at a commit without `deps/deep`.
    """

    upstream: HttpUpstream

    def build(self, widgets: Path) -> None:
        """Make the repositories; `widgets` is a bare one to start from."""
        deep = _commit(self.upstream.add(DEEP), {"deep.txt": "deep\n"}, {"to-a": "a.txt", "to-b": "b.txt"})
        add_commit(self.upstream.path(DEEP), "main", {"deep.txt": "newer\n"})
        self.upstream.add(LIB)
        first = add_commit(self.upstream.path(LIB), "main", {"lib.txt": "lib\n", "src/a.txt": "a\n"})
        lib = link(self.upstream.path(LIB), section("deep one", "deps/deep", "../deep.git"), {"deps/deep": deep})
        far = add_commit(self.upstream.add(FAR), "main", {"far.txt": "far\n"})
        bare = self.upstream.add(WIDGETS, widgets)
        text = section("lib", "libs/lib", "../lib") + section("far", "far", self.upstream.url(FAR))
        link(bare, text, {"libs/lib": lib, "far": far})
        git("branch", "older", "main", cwd=bare)
        link(bare, section("lib", "libs/lib", "../lib"), {"libs/lib": first}, "older")


def _commit(bare: Path, files: Mapping[str, str], links: Mapping[str, str]) -> str:
    """A commit of files and links in an empty repository."""
    lines = []
    for mode, entries in (("100644", files), ("120000", links)):
        for name, text in entries.items():
            lines.append(f"{mode} {git('hash-object', '-w', '--stdin', cwd=bare, input=text)} 0\t{name}")
    return commit_entries(bare, lines)


def hydrate(guest: Guest, dest: Path, want: str = "", *options: str, timeout: float = 60) -> Result:
    """`gitmirror_hydrate` with options."""
    words = [*options, WIDGETS, str(dest), *([want] if want else [])]
    return guest.run("gitmirror_hydrate " + " ".join(map(quote, words)), timeout=timeout)


def status(guest: Guest, workspace: Path) -> dict[str, str]:
    """What `git submodule status --recursive` says of each path: `-` (empty), `+` (another commit) or nothing."""
    said = guest.git("-c", "core.quotePath=false", "submodule", "status", "--recursive", cwd=workspace)
    lines = [line if line[0] in "+-U " else f" {line}" for line in said.splitlines()]
    return {line.split()[1]: line[0].strip() for line in lines}


def config(guest: Guest, place: Path, key: str) -> str:
    """One setting of a repository itself."""
    return guest.git("config", "--local", key, cwd=place)


def by_git(node: Node, guest: Guest) -> Guest:
    """The same guest, for which the mirror speaks git:// only."""
    return guest.with_(GITMIRROR_HTTP="", GITMIRROR_GIT=node.serve.git_url)
