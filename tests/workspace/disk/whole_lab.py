"""Repositories with submodules on three levels and LFS files, and a person's clone to compare their disks with."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from appliance.core.workspace.disk.images import DiskImage
from appliance.core.workspace.disk.order import DiskOrder, LargeFile, OrderedModule
from appliance.core.workspace.disk.worker import Build
from tests.support.generate import commit_entries
from tests.support.gitutil import git
from tests.workspace.disk.disk_lab import DiskLab

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {size}\n"
LFS_ATTRIBUTES = "*.bin filter=lfs diff=lfs merge=lfs -text\n"


def create(bare: Path) -> Path:
    """Creates an empty bare repository."""
    bare.parent.mkdir(parents=True, exist_ok=True)
    git("init", "-q", "--bare", "-b", "main", str(bare), cwd=bare.parent)
    return bare


def commit(bare: Path, files: Mapping[str, str | bytes], links: Mapping[str, str] | None = None) -> str:
    """Commits these files and these gitlinks by path, as the only content of `main`; returns the commit."""
    lines = [f"160000 {oid}\t{path}" for path, oid in (links or {}).items()]
    for path, text in files.items():
        (bare / "content").write_bytes(text if isinstance(text, bytes) else text.encode())
        lines.append(f"100644 {git('hash-object', '-w', str(bare / 'content'), cwd=bare)}\t{path}")
    return commit_entries(bare, lines)


def section(name: str, path: str, url: str) -> str:
    """One submodule in a `.gitmodules`."""
    return f'[submodule "{name}"]\n\tpath = {path}\n\turl = {url}\n'


def pointer(content: bytes) -> str:
    """The pointer of an LFS file with these contents."""
    return POINTER.format(oid=hashlib.sha256(content).hexdigest(), size=len(content))


@dataclass
class WholeLab:
    """A workspace with `lib`, `lib/inner` and `lib/inner/core`, one in the other, and an LFS file in each of two."""

    lab: DiskLab
    directory: Path
    large: bytes
    modules: tuple[OrderedModule, ...] = ()
    own: tuple[LargeFile, ...] = ()

    def make(self) -> None:
        """Creates the repositories, each with two commits and a tag, and what is ordered of them."""
        core, inner, lib = (create(self.directory / f"{name}.git") for name in ("core", "inner", "lib"))
        top = self.lab.bare
        commits: dict[Path, str] = {}
        nested = ((core, None, ""), (inner, core, "core"), (lib, inner, "deep/inner"), (top, lib, "lib"))
        for bare, below, path in nested:
            files: dict[str, str | bytes] = {"README": f"{bare.name}\n", ".gitattributes": LFS_ATTRIBUTES}
            links = {}
            if below is not None:
                files[".gitmodules"] = section(f"the {below.stem}", path, f"../{below.name}")
                links = {path: commits[below]}
            if bare in (top, inner):
                files["data/model.bin"] = pointer(self.large)
            commit(bare, {**files, "old": "old\n"}, links)
            git("tag", "-m", "one", f"{bare.stem}-1", "main", cwd=bare)
            commits[bare] = commit(bare, files, links)
        stored = self.directory / "object"
        stored.write_bytes(self.large)
        oid = hashlib.sha256(self.large).hexdigest()
        self.own = (LargeFile("data/model.bin", oid, str(stored)),)
        places = {
            lib: ("lib", ".git/modules/the lib", "the lib"),
            inner: ("lib/deep/inner", ".git/modules/the lib/modules/the inner", "the inner"),
            core: ("lib/deep/inner/core", ".git/modules/the lib/modules/the inner/modules/the core", "the core"),
        }
        self.modules = tuple(
            OrderedModule(
                path, git_directory, name, str(bare), commits[bare], "", f"acme/{bare.stem}", f"{at} open", str(bare),
                self.own if bare == inner else (),
            )
            for at, (bare, (path, git_directory, name)) in enumerate(places.items(), 1)
        )  # fmt: skip

    def order(self, **changes: object) -> DiskOrder:
        """The order of all of it."""
        whole = replace(self.lab.order(), url=str(self.lab.bare), modules=self.modules, large=self.own)
        return replace(whole, **changes)  # type: ignore[arg-type]

    def build(self, **changes: object) -> DiskImage:
        """Builds it."""
        return Build(self.lab.place, self.lab.bare, self.order(**changes)).run()

    def clone(self, to: Path) -> Path:
        """What a person has, with LFS files in place."""
        git("clone", "-q", str(self.lab.bare), str(to), cwd=self.directory)
        git("-c", "protocol.file.allow=always", "submodule", "update", "-q", "--init", "--recursive", cwd=to)
        for top in (to, to / "lib" / "deep" / "inner"):
            (top / "data" / "model.bin").write_bytes(self.large)
        return to


def without_git(top: Path) -> dict[str, tuple[int, bytes]]:
    """Every path of a workspace with its mode and contents, but those in `.git` directories."""
    found: dict[str, tuple[int, bytes]] = {}
    for parent, directories, files in os.walk(top):
        if ".git" in directories:
            directories.remove(".git")
        for name in directories + files:
            path = Path(parent, name)
            status = path.lstat()
            content = path.read_bytes() if stat.S_ISREG(status.st_mode) else b""
            found[str(path.relative_to(top))] = (status.st_mode, content)
    return found


def check_whole(workspace: Path, clone: Path, *, history: str = "full") -> None:
    """Compares a workspace with a person's clone: files, status, submodules, their configs, without a file rehashed."""
    assert without_git(workspace) == without_git(clone)
    assert git("status", "--porcelain", "--ignored", cwd=workspace) == ""
    assert git("diff", "HEAD", cwd=workspace) == ""
    assert git("submodule", "foreach", "-q", "--recursive", "git status --porcelain; git diff", cwd=workspace) == ""
    assert git("submodule", "foreach", "-q", "--recursive", "git diff-files", cwd=workspace) == "", "rehashed"
    status = git("submodule", "status", "--recursive", cwd=workspace)
    assert [line.split()[:-1] for line in status.splitlines()] == [
        line.split()[:-1] for line in git("submodule", "status", "--recursive", cwd=clone).splitlines()
    ]
    if history == "full":
        assert status == git("submodule", "status", "--recursive", cwd=clone)
        names = "git for-each-ref --format='%(refname) %(objectname)'"
        assert git("submodule", "foreach", "--recursive", names, cwd=workspace) == git(
            "submodule", "foreach", "--recursive", names, cwd=clone
        )
    for key in ("core.worktree", "remote.origin.url", "remote.origin.fetch", "submodule.the core.url"):
        asked = ("submodule", "foreach", "--recursive", f"git config --get '{key}' || true")
        assert git(*asked, cwd=workspace) == git(*asked, cwd=clone), key
    assert git("submodule", "foreach", "-q", "--recursive", "git fsck --no-progress 2>&1", cwd=workspace) == ""
